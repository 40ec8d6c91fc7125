"""Compares the runs that MLflow holds of a study with the trials in the Optuna storage."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from overnight.config.paths import trial_name
from overnight.search.plan import Plan
from overnight.search.record import TrialRecord
from overnight.tracking import names, tags
from overnight.tracking.run_update import STATUS, TrialRun, metrics_of, params_of, rounded
from overnight.tracking.store import study_runs

_NO_RUN = "the whole run"
# What the parent run holds beside its params and metrics.
STUDY_FILES = ("config.yaml", "search_space.yaml", "environment.json")


@dataclass(frozen=True)
class Reconciliation:
    """What MLflow holds of a study, and what it lacks.

    Attributes:
        parent: MLflow's run of the study.
        runs: Trial number -> the run to continue.
        strays: Id of a run that should not exist -> reason.
        missing: Trial number -> descriptions of what its run lacks; without the trials whose run lacks nothing.
    """

    parent: Any | None
    runs: dict[int, TrialRun]
    strays: dict[str, str]
    missing: dict[int, list[str]]


def reconcile(
    client: Any,
    experiment_id: str | None,
    uid: str,
    plan: Plan,
    records: Sequence[TrialRecord],
    *,
    check_steps: bool = False,
    parent_run_id: str | None = None,
) -> Reconciliation:
    """Compare the runs of a study with `records`, all trials of the Optuna storage.

    The comparison of the last value of every metric costs no further request. It is enough after a crash, because a run
    is ended last: a run that has ended is complete.

    Args:
        check_steps: Compare every step of every metric too, with one request a metric.
        parent_run_id: The parent run, if it belongs to another study: confirmation runs have the search's parent.
    """
    parent: Any = None
    found: dict[int, Any] = {}
    strays: dict[str, str] = {}
    for run in study_runs(client, experiment_id, uid) if experiment_id is not None else ():
        run_id = run.info.run_id
        number = int(run.data.tags.get(tags.TRIAL, run.data.tags.get(tags.CONFIRMATION, -1)))
        if number < 0 and parent is None:
            parent = run
        elif number < 0:
            strays[run_id] = "a second run of the study"
        elif number in found:
            strays[run_id] = f"a second run of {trial_name(number)}"
        elif number >= len(records):
            strays[run_id] = f"a run of {trial_name(number)}, which the Optuna storage does not have"
        else:
            found[number] = run
    if parent_run_id is None and parent is not None:
        parent_run_id = parent.info.run_id
    missing = {}
    for record in records:
        if record.state != "waiting":
            run = found.get(record.number)
            parts = [_NO_RUN] if run is None else _missing_parts(run, record, plan, parent_run_id)
            if run is not None and check_steps:
                parts = parts or _missing_steps(client, run, record)
            if parts:
                missing[record.number] = parts
    return Reconciliation(parent, {number: trial_run(run) for number, run in found.items()}, strays, missing)


def trial_run(run: Any) -> TrialRun:
    """Return what an MLflow run holds, except for its steps."""
    return TrialRun(
        run.info.run_id,
        run.info.status,
        params=set(run.data.params),
        has_reason=tags.REASON in run.data.tags,
        logged=run.data.tags.get(tags.LOGGED, ""),
    )


def logged_steps(client: Any, run_id: str, record: TrialRecord) -> dict[str, set[int]]:
    """Return metric name in MLflow -> steps that a run holds. Sends one request a metric."""
    logged = {
        name: {m.step for m in client.get_metric_history(run_id, name)}
        for name in {names.OBJECTIVE, *(m.name for m in metrics_of(record))}
    }
    return {name: steps for name, steps in logged.items() if steps}


def summary_missing(client: Any, parent: Any | None, best: TrialRecord | None, complete: bool) -> list[str]:
    """Describe what the parent run lacks of a study that is not running.

    Args:
        complete: Whether the study has spent its budget.
    """
    if parent is None:
        return [_NO_RUN]
    missing = []
    if parent.info.status == "RUNNING" or (complete and parent.info.status == "KILLED"):
        missing.append(f"an end: its status is {parent.info.status}")
    if best is not None:
        if best.objective is not None and not _is_shown(parent, names.BEST_OBJECTIVE, best.objective):
            missing.append("the best objective")
        if parent.data.tags.get(tags.BEST) != trial_name(best.number):
            missing.append(f"the tag {tags.BEST}={trial_name(best.number)}")
    files = {file.path for file in client.list_artifacts(parent.info.run_id)}
    return missing + [name for name in STUDY_FILES if name not in files]


def _missing_parts(run: Any, record: TrialRecord, plan: Plan, parent_run_id: str | None) -> list[str]:
    missing = []
    if run.data.tags.get(tags.PARENT) != parent_run_id:
        missing.append("its link to the study's run")
    if run.info.status != STATUS[record.state]:
        missing.append(f"the status {STATUS[record.state]}: it is {run.info.status}")
    if run.data.tags.get(tags.STATE) != record.state:
        missing.append(f"the tag {tags.STATE}={record.state}")
    missing.extend(f"the param {name}" for name in params_of(record, plan) if name not in run.data.params)
    last = {m.name: m.value for m in metrics_of(record)}
    objective = last.pop(names.OBJECTIVE, None)
    missing.extend(f"values of {name}" for name, value in last.items() if run.data.metrics.get(name) != value)
    if objective is not None and not _is_shown(run, names.OBJECTIVE, objective):
        missing.append(f"values of {names.OBJECTIVE}")
    return missing


def _is_shown(run: Any, name: str, objective: float) -> bool:
    """Return whether a run has an objective. An earlier version did not round it."""
    shown = run.data.metrics.get(name)
    return shown is not None and rounded(shown) == rounded(objective)


def _missing_steps(client: Any, run: Any, record: TrialRecord) -> list[str]:
    logged = logged_steps(client, run.info.run_id, record)
    missing = dict.fromkeys(m.name for m in metrics_of(record) if m.step not in logged.get(m.name, ()))
    return [f"values of {name}" for name in missing]
