"""Managing stored studies: list, delete, export, and mark trials."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import optuna

from overnight.config.paths import StudyLocation, trial_name
from overnight.config.problems import ConfigError
from overnight.config.values import to_text
from overnight.report import winner_config
from overnight.search import attributes
from overnight.search.plan import CONFIRM_SUFFIX, TRAIN_STUDY
from overnight.search.record import TrialRecord, best_of
from overnight.search.schedulers.study import trained_epochs
from overnight.study import exclusions
from overnight.study.open import reopen
from overnight.study.snapshot import StudyView, study_names, view
from overnight.study.storage.database import opened
from overnight.study.storage.lock import lock_study
from overnight.system.files import remove_inside, write_atomically
from overnight.tracking import registry, store
from overnight.tracking.sync import MlflowSync

if TYPE_CHECKING:
    import pandas as pd

TABLES = (".csv", ".parquet")
_COLUMNS = ("number", "state", "reason", "objective", "started_at", "ended_at", "seconds", "epochs", "notes")
_STATES = ("complete", "pruned", "failed", "running", "paused", "waiting")


# List -----------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class StudyListing:
    """A study as `list` shows it.

    Attributes:
        bytes: Size of its files; its rows in the two databases are not counted.
        trials: State -> number of trials.
        budget: The largest number of trials; None where only epochs are limited.
        progress: How much of the budget is spent, in words.
        epochs: `trained` and `budget`, which is None where the budget is a number of trials.
        latest: Of `train`, which has no best trial, the trial that ended last, after its metric.
        seconds: Training time of search and confirmation, summed over all slots.
        problems: Why the study cannot be read; empty if it can.
    """

    name: str
    state: str
    bytes: int
    trials: dict[str, int] = field(default_factory=dict)
    budget: int | None = None
    progress: str = ""
    epochs: Mapping[str, int | None] = field(default_factory=dict)
    metric: str | None = None
    best: TrialRecord | None = None
    latest: tuple[str, TrialRecord] | None = None
    seconds: float = 0.0
    problems: tuple[str, ...] = ()


def list_studies(location: StudyLocation) -> list[StudyListing]:
    """List every study, the one that ran last first."""
    found = []
    for name in study_names(location):
        artifacts = [where] if (where := location.paths.artifacts / name).exists() else []
        size = sum(map(_size, [*_files(location, name), *artifacts]))
        try:
            study, _ = view(location, name)
        except ConfigError as error:
            found.append(StudyListing(name, "unreadable", size, problems=tuple(error.problems)))
            continue
        assert study is not None, "it was just listed"
        records = (*study.records, *(study.confirmation.records if study.confirmation else ()))
        found.append(
            StudyListing(
                name,
                study.state,
                size,
                {s: n for s in _STATES if (n := study.count(s))},  # type: ignore[arg-type]
                study.budget if not study.plan.budget.counts_epochs else None,
                study.progress,
                {"trained": trained_epochs(study.records), "budget": study.plan.budget.epoch_limit},
                study.plan.settings.study.metric if name != TRAIN_STUDY else None,
                study.best,
                (study.metric_of(last), last) if name == TRAIN_STUDY and (last := study.latest) else None,
                sum(e.seconds for r in records for e in r.history),
            )
        )
    return found


def _files(location: StudyLocation, name: str) -> list[Path]:
    """Return the existing folders and files of a study; MLflow manages its artifacts."""
    both = [location.paths.study(n) for n in (name, name + CONFIRM_SUFFIX)]
    folders = [folder for paths in both for folder in (paths.checkpoints, paths.logs, paths.logged, paths.plots)]
    files = [both[0].report, *winner_config.written_files(location, name)]
    return [path for path in (*folders, *files) if path.exists() or path.is_symlink()]


def _size(path: Path) -> int:
    if not path.is_dir():
        return path.stat().st_size
    total = 0
    for file in path.rglob("*"):
        with contextlib.suppress(OSError):  # it was removed in the meantime
            total += file.lstat().st_size if file.is_file() else 0
    return total


# Delete ---------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class StudyFootprint:
    """Everything that is stored of a study.

    Attributes:
        optuna_studies: Its Optuna studies, with extensions and confirmations.
        uids: The ids that mark its runs in MLflow.
        trials: Number of trials in the newest extension.
        runs: Number of MLflow runs.
        versions: Number of model versions in MLflow's registry.
        bytes: Size of its files.
    """

    name: str
    optuna_studies: tuple[str, ...]
    uids: tuple[str, ...]
    trials: int
    runs: int
    versions: int
    files: tuple[Path, ...]
    bytes: int


def footprint(location: StudyLocation, name: str) -> StudyFootprint:
    """Return what `delete` would delete, even if its plan cannot be read. Raises ConfigError if there is no study."""
    optuna_studies: list[str] = []
    uids: set[str] = set()
    trials, tracked = 0, True
    if location.storage_url is not None or location.paths.optuna_db.exists():
        with opened(location) as storage:
            for frozen in storage.get_all_studies():
                if re.fullmatch(rf"{re.escape(name)}({re.escape(CONFIRM_SUFFIX)})?(~\d+)?", frozen.study_name):
                    optuna_studies.append(frozen.study_name)
                    uids |= {str(v) for k, v in frozen.user_attrs.items() if k == attributes.UID}
                    plan = frozen.user_attrs.get(attributes.PLAN) or {}
                    tracked = _tracked_in(location, plan.get("settings", {}).get("tracking", {}))
                    if CONFIRM_SUFFIX not in frozen.study_name:
                        trials = max(trials, storage.get_n_trials(frozen._study_id))
    names = study_names(location)  # without extensions, confirmations and foreign studies
    if not optuna_studies or name not in names:
        known = ", ".join(names) or "none"
        raise ConfigError(
            [f"study: must be a study in {location.storage_description}, got {name!r}; there are: {known}"]
        )
    if not tracked:
        raise ConfigError(
            [
                f"tracking: must name the MLflow store of {name}, and names another; give the same tracking= and "
                f"tracking.uri= as for `overnight tune`"
            ]
        )
    files = _files(location, name)
    with _reporting_mlflow_errors(name):
        runs, versions = registry.count(location, name, uids)
    return StudyFootprint(
        name, tuple(optuna_studies), tuple(sorted(uids)), trials, runs, versions, tuple(files), sum(map(_size, files))
    )


def _tracked_in(location: StudyLocation, tracking_settings: Mapping[str, Any]) -> bool:
    """Whether the runs of a study are in the MLflow store of a location; a server may have many addresses."""
    if tracking_settings.get("name", "local") != "local" or location.tracking != "local":
        return tracking_settings.get("name") == location.tracking
    return tracking_settings.get("uri", location.given_tracking_uri) == location.given_tracking_uri


def delete(location: StudyLocation, found: StudyFootprint) -> list[str]:
    """Delete a study permanently and return messages about what remains.

    The Optuna storage comes last, so that an interrupted deletion can be repeated.

    Raises:
        StudyInUse: the study is running.
    """
    with contextlib.ExitStack() as held:
        for name in (found.name, found.name + CONFIRM_SUFFIX):
            held.callback(lock_study(location, name))
            held.callback(location.paths.study(name).lock.unlink, missing_ok=True)
        with _reporting_mlflow_errors(found.name):
            remains = registry.delete_study(location, found.name, found.uids)
        for path in found.files:
            if not _remove(location, path, found.name):
                remains.append(f"{path} is outside of home and stays")
        with opened(location) as storage:
            there = {s.study_name for s in storage.get_all_studies()}
            for name in sorted(set(found.optuna_studies) & there, key=len, reverse=True):  # the search last
                optuna.delete_study(study_name=name, storage=storage)
    return remains


def _remove(location: StudyLocation, path: Path, name: str) -> bool:
    """Remove a folder or file; returns False where it is outside of the home.

    Raises:
        ConfigError: It can't be removed. A new study of this name would use it.
    """
    try:
        return remove_inside(location.paths.root, path)
    except OSError as error:
        raise ConfigError(
            [f"{path}: must be removable to delete {name}: {error}; the study still exists: delete it again"]
        ) from error


@contextlib.contextmanager
def _reporting_mlflow_errors(name: str) -> Iterator[None]:
    """Turn an error of MLflow into a ConfigError of one line."""
    try:
        yield
    except Exception as error:  # of MLflow, SQLAlchemy or the network
        raise ConfigError(
            [
                f"MLflow: must be reachable to delete {name}, got {store.describe_error(error)}; the study still "
                f"exists: delete it again when MLflow is reachable, or give the right tracking.uri"
            ]
        ) from error


# Export ---------------------------------------------------------------------------------------------------------------


def export(study: StudyView, path: Path) -> int:
    """Write one row for each trial as CSV or Parquet, by the suffix of the file, and return their number.

    Columns: number, state, reason, objective, started_at, ended_at (UTC), seconds of training, epochs, notes, and
    `params.NAME` and `metrics.NAME` (at the last epoch of the trial) for each parameter and metric.
    """
    if path.suffix.lower() not in TABLES:
        raise ConfigError([f"FILE: must end in {' or '.join(TABLES)}, got {str(path)!r}; rename it"])
    frame = _frame(study.records)
    content = frame.to_csv(index=False) if path.suffix.lower() == ".csv" else frame.to_parquet(index=False)
    try:
        write_atomically(path, content)
    except OSError as error:
        reason = error.strerror if path.parent.is_dir() else f"there is no folder {path.parent}; create it"
        raise ConfigError([f"FILE: must be a file that can be written, got {str(path)!r}: {reason}"]) from error
    return len(frame)


def _frame(records: Sequence[TrialRecord]) -> pd.DataFrame:
    import pandas as pd

    rows = [
        {
            "number": r.number,
            "state": r.state,
            "reason": r.reason,
            "objective": r.objective,
            "started_at": r.first_started_at,
            "ended_at": r.last_ended_at if r.done else None,
            "seconds": sum(e.seconds for e in r.history),
            "epochs": len(r.history),
            "notes": "; ".join(r.notes),
            **{f"params.{k}": v for k, v in r.params.items()},
            **{f"metrics.{k}": v for k, v in (r.history[-1].metrics if r.history else {}).items()},
        }
        for r in records
    ]
    frame = pd.DataFrame(rows) if rows else pd.DataFrame(columns=_COLUMNS)
    names = sorted(map(str, frame.columns), key=lambda n: (n.startswith("metrics."), n.startswith("params.")))
    frame = frame[names]
    for column in [c for c in names if c.startswith("params.")]:
        kinds = {type(row[column]) for row in rows if column in row}
        if kinds == {int}:  # rows without a value would turn 64 into 64.0
            frame[column] = frame[column].astype("Int64")
        elif kinds != {float}:  # a table has one type for a column; the texts keep the type of each value
            frame[column] = [to_text(row[column]) if column in row else None for row in rows]
    for column in ("started_at", "ended_at"):
        frame[column] = pd.to_datetime(frame[column], unit="s", utc=True)
    for column in [c for c in frame.columns if str(frame[c].dtype) == "object"]:
        kinds = {type(v) for v in frame[column] if v is not None and v == v}
        if len(kinds) > 1 or not kinds <= {str, bool, int, float}:  # Parquet columns have one type
            frame[column] = [None if v is None or v != v else str(v) for v in frame[column]]
    return frame


# Mark -----------------------------------------------------------------------------------------------------------------


def mark(
    location: StudyLocation, name: str, numbers: Iterable[int], bad: bool, why: str = ""
) -> tuple[StudyView, str | None]:
    """Mark trials bad, so that they count as failed, or good again, in the Optuna storage and in MLflow.

    Returns:
        The study afterwards, and why MLflow does not show the marks; None if it does.

    Raises:
        ConfigError: a trial cannot be marked.
        StudyInUse: the study is running.
    """
    session = reopen(location, name)
    try:
        marked, records = session.attributes.exclusions, session.records()
        if problems := list(_unmarkable(name, records, numbers, bad)):
            raise ConfigError(problems)
        for number in numbers:
            if bad:
                marked[number] = " ".join(why.split())  # it is shown on one line
            else:
                marked.pop(number, None)
        session.attributes.set_exclusions(marked)
    finally:
        session.close()
    study, _ = view(location, name)
    assert study is not None, "it was just open"
    return study, _sync_mlflow(location, study)


def _unmarkable(name: str, records: Sequence[TrialRecord], numbers: Iterable[int], bad: bool) -> Iterator[str]:
    if name.endswith(CONFIRM_SUFFIX):
        yield f"{name}: must be a search, got a confirmation; mark the trial that it confirms"
        return
    for number in numbers:
        if not 0 <= number < len(records):
            yield f"{name}/{number}: must be one of its trials, 0 to {len(records) - 1}"
        elif (
            bad and records[number].state not in ("complete", "pruned") and records[number].reason != exclusions.MARKED
        ):
            yield f"{name}/{number}: must be complete or pruned to be marked bad, got {_when_markable(records[number])}"
        elif not bad and records[number].reason != exclusions.MARKED:
            yield f"{name}/{number}: must be marked bad before it is marked good, got {records[number].state}; leave it"


def _when_markable(record: TrialRecord) -> str:
    """Return the state of a trial that cannot be marked bad, and from when on it can be."""
    if record.state == "failed":  # it is ignored already
        return "failed; leave it"
    if record.waits_at_rung:
        return "paused at a rung; mark it once the search has ended, which leaves it pruned"
    return f"{record.state}; mark it once it has ended"


def _sync_mlflow(location: StudyLocation, study: StudyView) -> str | None:
    """Write the marks to MLflow and return why that failed, if so; the next start tries again."""
    session = reopen(location, study.name)
    try:
        mlflow_sync = MlflowSync(study.plan, study.uid, with_parent=study.name != TRAIN_STUDY)
        mlflow_sync.start(session.records())
        ending = (
            "KILLED" if study.state != "complete" else "FINISHED" if study.count("complete", "pruned") else "FAILED"
        )
        best: Any = best_of(study.records, study.plan.settings) if study.name != TRAIN_STUDY else None
        mlflow_sync.close(ending, best, None)
        return mlflow_sync.incomplete
    finally:
        session.close()


def format_state(record: TrialRecord) -> str:
    """Format a trial as `mark` prints it."""
    reason = record.notes[-1] if record.reason == exclusions.MARKED else record.reason
    return f"{trial_name(record.number)} {record.state}" + (f" ({reason})" if reason else "")
