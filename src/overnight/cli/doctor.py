"""Looks for what a kill, a lost server or a curious person may have left wrong around a study, and mends it.

Nothing here knows how to mend a trial or a run: that is what every start does anyway. The doctor looks, lets the
ledger and the mirror do what they do at a start, removes the files that nobody wants, and looks again.
"""

from __future__ import annotations

import dataclasses
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

from overnight.config.paths import StudyLocation, trial_name
from overnight.search.plan import TRAIN_STUDY
from overnight.search.record import trials_with_weights
from overnight.study.open import reopen
from overnight.study.snapshot import StudyView, view
from overnight.study.storage.lock import StudyInUse, holder_file, holder_of
from overnight.tracking import store
from overnight.tracking.reconcile import reconcile, summary_missing
from overnight.tracking.sync import MlflowSync
from overnight.trial import checkpoint


@dataclass(frozen=True)
class Finding:
    """about: a trial, a run or a file. wrong: what is, in words. mends: what is done about it. path: to be removed."""

    about: str
    wrong: str
    mends: str
    path: Path | None = None


def examine(location: StudyLocation, name: str) -> list[Finding]:
    """What is wrong around a study that nobody works on; touches nothing. Raises StudyInUse where somebody does."""
    holder = holder_of(location, name)
    if holder is not None:
        raise StudyInUse(name, holder)
    found = _seen(location, name)
    return [*_in_the_home(location, name), *_in_the_ledger(found), *_in_the_folders(found), *_in_mlflow(found)]


def mend(location: StudyLocation, name: str) -> list[Finding]:
    """Do what the next start would, and remove what nobody wants; what is still wrong then. Raises StudyInUse."""
    session = reopen(location, name)
    try:
        session.writer.requeue_orphans()
        for finding in (*_in_the_home(location, name), *_in_the_folders(_seen(location, name))):
            if finding.path is not None:
                shutil.rmtree(finding.path) if finding.path.is_dir() else finding.path.unlink(missing_ok=True)
        mlflow_sync = MlflowSync(
            session.plan, session.attributes.uid, with_parent=name != TRAIN_STUDY, check_steps=True
        )
        mlflow_sync.start(session.records())
        found = _seen(location, name)
        best = found.best
        weights = location.paths.study(name).checkpoint(best.number) / checkpoint.WEIGHTS if best else None
        mlflow_sync.close(_ending(found), best, str(weights) if weights and weights.exists() else None)
        if mlflow_sync.ready:
            session.attributes.set_mlflow(mlflow_sync.experiment_id, mlflow_sync.parent_run_id)
    finally:
        session.close()
    return examine(location, name)


def _seen(location: StudyLocation, name: str) -> StudyView:
    found, _ = view(location, name)
    assert found is not None, "the caller has seen it"
    return found


def _spent(found: StudyView) -> bool:
    over = (found.launch or {}).get("ended_by")  # a search that patience or a terminator ended has no more to do
    return found.count("complete", "pruned", "failed") >= found.budget or over in ("patience", "terminator")


def _ending(found: StudyView) -> str:
    if not _spent(found):
        return "KILLED"
    return "FINISHED" if found.count("complete", "pruned") else "FAILED"


def _in_the_home(location: StudyLocation, name: str) -> Iterator[Finding]:
    for path in sorted(location.paths.root.glob("*.creating-*")):
        pid = re.search(r"\.creating-(\d+)", path.name)
        if pid is not None and not psutil.pid_exists(int(pid[1])):
            yield Finding(path.name, "a store whose creation was cut off", "removed", path)
    if holder_file(location, name).exists():
        yield Finding(holder_file(location, name).name, "names a process that is gone", "taken over")


def _in_the_ledger(found: StudyView) -> Iterator[Finding]:
    for record in found.records:
        if record.state == "running":
            yield Finding(
                trial_name(record.number), "says running, and nobody is at it", "put back, to be gone on with"
            )


def _in_the_folders(found: StudyView) -> Iterator[Finding]:
    """A trial that goes on wants its states, one of the best its weights, and nobody anything else."""
    where = found.plan.settings.location.paths
    complete = {r.number for r in found.records if r.state == "complete"}
    kept = complete if found.name == TRAIN_STUDY else trials_with_weights(found.records, found.plan.settings)
    for folder in sorted(found.plan.paths.checkpoints.glob("trial-*")):
        number = int(folder.name.removeprefix("trial-")) if folder.name[6:].isdigit() else -1
        about = str(folder.relative_to(where.root))
        if not 0 <= number < len(found.records):
            yield Finding(about, "checkpoints of a trial that the ledger does not have", "removed", folder)
        elif not found.records[number].done:
            yield from _unusable(folder, about)
        elif number not in kept:
            yield Finding(about, f"checkpoints of a trial that is {found.records[number].state}", "removed", folder)
        else:
            for path in sorted(folder.iterdir()):
                if path.name != checkpoint.WEIGHTS:
                    yield Finding(f"{about}/{path.name}", "a state of a trial that is complete", "removed", path)


def _unusable(folder: Path, about: str) -> Iterator[Finding]:
    for name in checkpoint.STATES:
        if (folder / name).exists():
            try:
                checkpoint.verified(folder / name)
            except checkpoint.Unusable as error:
                mends = "removed; the trial goes on from the one before, or starts over"
                yield Finding(f"{about}/{name}", str(error).partition(": ")[2], mends, folder / name)


def _in_mlflow(found: StudyView) -> Iterator[Finding]:
    location, written = found.plan.settings.location, "written from the ledger"
    # Whoever says running is put back first.
    records = [dataclasses.replace(r, state="paused") if r.state == "running" else r for r in found.records]
    try:
        client = store.open_client(location) if store.exists(location) else None
        experiment = client.get_experiment_by_name(found.name) if client is not None else None
        if client is None or experiment is None or experiment.lifecycle_stage == "deleted":
            if any(r.state != "waiting" for r in records):
                yield Finding("MLflow", f"has no experiment {found.name}", written)
            return
        seen = reconcile(client, experiment.experiment_id, found.uid, found.plan, records, check_steps=True)
        for run_id, why in seen.strays.items():
            yield Finding(f"MLflow's run {run_id}", why, "removed")
        for number, lacks in seen.missing.items():
            yield Finding(f"MLflow's run of {trial_name(number)}", f"lacks {', '.join(lacks)}", written)
        lacks = summary_missing(client, seen.parent, found.best, _spent(found)) if found.name != TRAIN_STUDY else []
        if lacks:
            yield Finding(f"MLflow's run of {found.name}", f"lacks {', '.join(lacks)}", written)
    except Exception as error:  # MLflow's, SQLAlchemy's, the network's: it is wrong, whatever it is
        yield Finding("MLflow", f"can't be read: {store.describe_error(error)}", "the next start tries again")
