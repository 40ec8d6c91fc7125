"""Finds and repairs what a kill, a lost server or a manual change left wrong around a study.

Trials and runs are repaired by the code that every start of a study runs. This module finds the defects, runs that
code, removes files that are no longer needed, and checks again.
"""

from __future__ import annotations

import dataclasses
import re
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from overnight.config.paths import StudyLocation, trial_name
from overnight.config.problems import ConfigError
from overnight.report.confirm import confirmation_plan
from overnight.search.plan import TRAIN_STUDY
from overnight.search.record import trials_with_weights
from overnight.study.lost import LostStudy, lost_studies
from overnight.study.open import reopen
from overnight.study.session import StudySession
from overnight.study.snapshot import StudyView, view
from overnight.study.storage.lock import StudyInUse, holder_file, holder_of
from overnight.system.files import remove_inside, set_aside
from overnight.tracking import store
from overnight.tracking.rebuild import rebuild, rebuild_confirmation
from overnight.tracking.reconcile import reconcile, summary_missing
from overnight.tracking.sync import MlflowSync
from overnight.trial import checkpoint

_ADOPT_EVERY_S = 0.5
_TRIED_AGAIN = "the next start tries again"


@dataclass(frozen=True)
class Defect:
    """A defect.

    Attributes:
        subject: A trial, a run or a file.
        repair: What `repair` does.
        path: A file or a folder that it removes, or sets aside if `is_unknown`.
        trial: The number of the trial that it concerns, if it is one of the study.
    """

    subject: str
    problem: str
    repair: str
    path: Path | None = None
    is_unknown: bool = False
    trial: int | None = None


def rebuild_lost(
    location: StudyLocation, names: Sequence[str], *, dry_run: bool = False
) -> dict[str, tuple[Defect, bool]]:
    """Rebuild the studies that only MLflow has: all, or those of `names`.

    Returns:
        Name -> the defect, and whether it remains.
    """
    return {
        study.name: _rebuild(location, study, dry_run)
        for study in lost_studies(location)
        if not names or study.name in names
    }


def _rebuild(location: StudyLocation, study: LostStudy, dry_run: bool) -> tuple[Defect, bool]:
    problem = f"lacks this study, of which MLflow has {study.trials} trial(s)"
    if not dry_run:
        try:
            count, found = rebuild(location, study), _read(location, study.name)
            count += rebuild_confirmation(found, confirmation_plan(found.plan, found.records))
            return Defect("study storage", problem, f"{count} trials rebuilt from MLflow"), False
        except ConfigError as error:
            problem = f"{problem}; {'; '.join(error.problems)}"
    return Defect("study storage", problem, "rebuilt from MLflow"), True


def find_defects(location: StudyLocation, name: str) -> list[Defect]:
    """Find the defects of a study that is not running; changes nothing. Raises StudyInUse if it is running."""
    holder = holder_of(location, name)
    if holder is not None:
        raise StudyInUse(name, holder)
    found = _read(location, name)
    return [*_in_home(location, name), *_in_storage(found), *_in_checkpoints(found), *_in_mlflow(found)]


def repair(
    location: StudyLocation, name: str, found: Iterable[Defect] = (), doing: Callable[[str], None] = lambda _: None
) -> dict[Defect, str]:
    """Repair a study as its next start would, and remove stale files.

    Supervisors may join a shared study meanwhile. What concerns trials of other processes is left to them.

    Args:
        found: The defects that were found before.
        doing: Called with what the user waits for.

    Returns:
        The defects that remain, each with the reason.

    Raises:
        StudyInUse: the study is running.
    """
    session, home = reopen(location, name), location.paths
    free: list[int] = []
    error: str | None = "interrupted"
    try:
        free = session.coordinator.adopt(free=True)
        _adopt(session, doing)
        foreign = {r.number for r in session.records() if session.coordinator.ownership(r.number) == "foreign"}
        session.writer.requeue_orphans(foreign)
        for defect in (*_in_home(location, name), *_in_checkpoints(_read(location, name))):
            if defect.path is None or defect.trial in foreign:
                continue
            if defect.is_unknown:
                set_aside(home.root, defect.path, home.set_aside)
            else:
                remove_inside(home.root, defect.path)
        error = _write_mlflow(session, _read(location, name))
    finally:
        # Where MLflow lacks something of an adopted trial, the next process that adopts it tries again.
        session.coordinator.release(free if error else [t.number for t in session.trials()])
        session.close()
    try:
        return dict.fromkeys(find_defects(location, name), "still wrong")
    except StudyInUse:  # by supervisors that have joined it, and whose work is no defect
        left = {d: "left to the supervisors that have joined the study" for d in found if d.trial in foreign}
        unwritten = Defect("MLflow", f"cannot be written: {error}", _TRIED_AGAIN)
        return left | ({unwritten: "still wrong"} if error else {})


def _adopt(session: StudySession, doing: Callable[[str], None]) -> None:
    """Adopt the trials of dead processes once their leases have ended, unless there are peers, which will."""
    coordinator, wait_s = session.coordinator, session.coordinator.peer_timeout_s
    until = time.monotonic() + wait_s
    while True:
        coordinator.adopt()
        is_complete = all(coordinator.ownership(t.number) != "foreign" for t in session.trials())
        if is_complete or coordinator.count_peers() or time.monotonic() > until:
            return
        doing(f"waiting for the trials of processes that have ended, at most {wait_s:.0f} s ...")
        time.sleep(_ADOPT_EVERY_S)


def _write_mlflow(session: StudySession, found: StudyView) -> str | None:
    """Write what MLflow lacks of the trials that this process owns; return why that failed, if so."""
    with_parent = found.name != TRAIN_STUDY
    mlflow_sync = MlflowSync(
        session.plan, found.uid, with_parent=with_parent, repairs=True, coordinator=session.coordinator
    )
    mlflow_sync.start(session.records())
    best = found.best
    weights = found.plan.paths.checkpoint(best.number) / checkpoint.WEIGHTS if best else None

    def keep_waiting() -> bool:
        session.coordinator.keep_alive()
        return True

    kept = str(weights) if weights and weights.exists() else None
    mlflow_sync.close(_ending(found), best, kept, keep_waiting=keep_waiting)
    if mlflow_sync.ready:
        session.attributes.set_mlflow(mlflow_sync.experiment_id, mlflow_sync.parent_run_id)
    return mlflow_sync.error


def _read(location: StudyLocation, name: str) -> StudyView:
    found, _ = view(location, name)
    assert found is not None, "the caller has read it"
    return found


def _is_over(found: StudyView) -> bool:
    over = (found.launch or {}).get("ended_by")
    return found.is_spent or over in ("patience", "terminator")


def _ending(found: StudyView) -> str:
    if not _is_over(found):
        return "KILLED"
    return "FINISHED" if found.count("complete", "pruned") else "FAILED"


def _in_home(location: StudyLocation, name: str) -> Iterator[Defect]:
    for path in sorted(location.paths.root.glob("*.creating-*")):
        pid = re.search(r"\.creating-(\d+)", path.name)
        if pid is not None and not psutil.pid_exists(int(pid[1])):
            yield Defect(path.name, "database whose creation was interrupted", "removed", path)
    if holder_file(location, name).exists():
        yield Defect(holder_file(location, name).name, "names a process that has ended", "replaced by the next start")


def _in_storage(found: StudyView) -> Iterator[Defect]:
    for record in found.records:
        if record.state == "running":
            name = trial_name(record.number)
            yield Defect(name, "running, but its process has ended", "requeued", trial=record.number)


def _in_checkpoints(found: StudyView) -> Iterator[Defect]:
    """Keep the states of unfinished trials and the weights of the best ones; every other file is a defect."""
    where = found.plan.settings.location.paths
    complete = {r.number for r in found.records if r.state == "complete"}
    kept = complete if found.name == TRAIN_STUDY else trials_with_weights(found.records, found.plan.settings)
    for folder in sorted(found.plan.paths.checkpoints.glob("trial-*")):
        number = int(folder.name.removeprefix("trial-")) if folder.name[6:].isdigit() else -1
        subject = str(folder.relative_to(where.root))
        if not 0 <= number < len(found.records):
            yield Defect(subject, "checkpoints of a trial that does not exist", "moved to set-aside", folder, True)
        elif found.records[number].may_resume:
            yield from _unusable(folder, subject, number)
        elif number not in kept:
            problem = f"checkpoints of a {found.records[number].state} trial"
            yield Defect(subject, problem, "removed", folder, trial=number)
        else:
            for path in sorted(folder.iterdir()):
                if path.name != checkpoint.WEIGHTS:
                    problem = "training state of a complete trial"
                    yield Defect(f"{subject}/{path.name}", problem, "removed", path, trial=number)


def _unusable(folder: Path, subject: str, number: int) -> Iterator[Defect]:
    for name in checkpoint.STATE_FILES:
        if (folder / name).exists():
            try:
                checkpoint.read_verified(folder / name)
            except checkpoint.UnusableCheckpoint as error:
                repair = "removed; the trial resumes from the previous state, or starts again"
                problem = str(error).partition(": ")[2]
                yield Defect(f"{subject}/{name}", problem, repair, folder / name, trial=number)


def _in_mlflow(found: StudyView) -> Iterator[Defect]:
    location, written = found.plan.settings.location, "written from the Optuna storage"
    # Running trials are requeued first.
    records = [dataclasses.replace(r, state="paused") if r.state == "running" else r for r in found.records]
    try:
        client = store.open_client(location) if store.exists(location) else None
        experiment = store.find_experiment(client, found.name, found.uid) if client is not None else None
        if client is None or experiment is None or experiment.lifecycle_stage == "deleted":
            if any(r.state != "waiting" for r in records):
                yield Defect("MLflow", f"no experiment {found.name}", written)
            return
        seen = reconcile(client, experiment.experiment_id, found.uid, found.plan, records, check_steps=True)
        for run_id, why in seen.strays.items():
            yield Defect(f"MLflow run {run_id}", why, "removed")
        for number, missing in seen.missing.items():
            run = f"MLflow run of {trial_name(number)}"
            yield Defect(run, f"missing: {', '.join(missing)}", written, trial=number)
        missing = summary_missing(client, seen.parent, found.best, _is_over(found)) if found.name != TRAIN_STUDY else []
        if missing:
            yield Defect(f"MLflow run of {found.name}", f"missing: {', '.join(missing)}", written)
    except Exception as error:  # of MLflow, SQLAlchemy or the network
        yield Defect("MLflow", f"cannot be read: {store.describe_error(error)}", _TRIED_AGAIN)
