"""What a screen shows of a supervisor that runs."""

from __future__ import annotations

from overnight.report.live import ProgressSnapshot, RunningTrial
from overnight.runner.supervisor import Supervisor
from overnight.runner.trial_process import TrialProcess
from overnight.search.formatting import format_duration
from overnight.search.record import TrialRecord


def progress(supervisor: Supervisor) -> ProgressSnapshot:
    """Return what a screen shows of a supervisor."""
    records, only = supervisor.records, supervisor.only
    running = tuple(
        RunningTrial(
            number,
            _last_index(trial, records.get(number)),
            r.objective if (r := records.get(number)) else None,
            trial.started_at,
            trial.fold,
            trial.fold_start,
        )
        for number, trial in supervisor.slots.running.items()
    )
    return ProgressSnapshot(
        supervisor.plan,
        records if only is None else {n: r for n, r in records.items() if n == only},
        running,
        tuple(supervisor.ended),
        supervisor.slots.count,
        _activity(supervisor),
        _warning(supervisor),
        supervisor.outlook,
        supervisor.finishes,
    )


def _last_index(trial: TrialProcess, record: TrialRecord | None) -> int:
    """Return the last complete epoch of a running trial, also before its process has reported that it resumes."""
    if trial.index < 0 and record is not None and record.history:
        return record.history[-1].index
    return trial.index


def _activity(supervisor: Supervisor) -> str | None:
    """Return what a supervisor does that is not training, and how long that may take where it has a limit."""
    stopping = supervisor.stopping
    if supervisor.closing is not None:
        left_s = stopping.seconds_to_exit() if stopping.is_by_user else None
        return supervisor.closing + ("" if left_s is None else f", at most {format_duration(left_s)}")
    if stopping.is_stopping:
        return f"saving the running trials, at most {format_duration(stopping.seconds_to_kill())}"
    return None


def _warning(supervisor: Supervisor) -> str | None:
    """Return what keeps trials from starting, or MLflow from being complete."""
    if supervisor.disk.is_full:
        settings = supervisor.plan.settings
        return (
            f"less than {settings.min_free_mib} MiB are free in {settings.location.paths.root}: trials are saved and "
            f"resumed when there is room"
        )
    error = supervisor.mlflow.error
    return f"MLflow cannot be written, retrying: {error}" if error else None
