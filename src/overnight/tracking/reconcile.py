"""What MLflow holds of a study, set against the ledger: what it lacks, and what it has too much of.

The mirror asks at every start and writes what is lacking; the doctor asks and says.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from overnight.config.paths import trial_name
from overnight.search.plan import Plan
from overnight.search.record import TrialRecord
from overnight.search.space import shown

STATUS = {"running": "RUNNING", "paused": "KILLED", "complete": "FINISHED", "pruned": "FINISHED", "failed": "FAILED"}
_ALL = "the whole run"
_PARAM_CHARS = 6000  # that MLflow takes of one param
# What the parent run keeps beside its params and metrics.
STUDY_FILES = ("config.yaml", "search_space.yaml", "environment.json")


@dataclass
class Run:
    """What MLflow holds of one trial. steps: metric name -> logged steps; None where that was not asked yet."""

    run_id: str
    status: str
    steps: dict[str, set[int]] | None = None
    params: set[str] = field(default_factory=set)
    configured: bool = False  # its config.yaml is known to be there
    reason: str | None = None  # why it failed, as far as it says so


@dataclass(frozen=True)
class Reconciliation:
    """runs: by trial number, the ones to go on with. strays: run id -> why it should not be there.

    lacking: trial number -> what its run has not got, in words; a trial that lacks nothing is not in it.
    """

    parent: Any | None
    runs: dict[int, Run]
    strays: dict[str, str]
    lacking: dict[int, list[str]]


def reconcile(
    client: Any,
    experiment_id: str | None,
    uid: str,
    plan: Plan,
    records: Sequence[TrialRecord],
    *,
    deep: bool = False,
    below: str | None = None,
) -> Reconciliation:
    """Set the study's runs against `records`, all that the ledger holds.

    A start looks at the last value of every metric, which costs nothing: a run is ended last, so what is ended is
    whole. deep: look at every step. below: the parent run, where it is another study's, as a confirmation's is.
    """
    parent: Any = None
    runs: dict[int, Run] = {}
    found: dict[int, Any] = {}
    strays: dict[str, str] = {}
    for run in study_runs(client, experiment_id, uid) if experiment_id is not None else ():
        number = int(run.data.tags.get("overnight.trial", run.data.tags.get("overnight.confirmation", -1)))
        if number < 0 and parent is None:
            parent = run
        elif number < 0:
            strays[run.info.run_id] = "a second run of the study"
        elif number in found:
            strays[run.info.run_id] = f"a second run of {trial_name(number)}"
        elif number >= len(records):
            strays[run.info.run_id] = f"a run of {trial_name(number)}, and the ledger has no such trial"
        else:
            found[number] = run
            runs[number] = Run(
                run.info.run_id,
                run.info.status,
                params=set(run.data.params),
                reason=run.data.tags.get("overnight.reason"),
            )
    lacking = {}
    below = below if below is not None or parent is None else parent.info.run_id
    for record in records:
        if record.state != "waiting":
            run = found.get(record.number)
            lacks = [_ALL] if run is None else _lacks(run, record, plan, below)
            if run is not None and deep:
                lacks = lacks or _steps_lacking(client, run, record)
            if lacks:
                lacking[record.number] = lacks
    return Reconciliation(parent, runs, strays, lacking)


def logged_steps(client: Any, run_id: str, record: TrialRecord) -> dict[str, set[int]]:
    """Metric name -> steps that a run holds, so that no step is logged twice; a request a metric."""
    names = {name for e in record.history for name in e.metrics} | {"objective"}
    held = {name: {m.step for m in client.get_metric_history(run_id, name)} for name in names}
    return {name: steps for name, steps in held.items() if steps}


def final_objective(record: TrialRecord) -> float | None:
    """What a trial's run shows as its objective; None until it has one for good."""
    return record.objective if record.state in ("complete", "pruned") else None


def params_of(record: TrialRecord, plan: Plan) -> dict[str, str]:
    """Name -> text of the params of a trial's run: the trial's own, and the decimal logarithm of what is drawn on a log
    scale, since MLflow's parallel coordinates have no such axis."""
    texts = {name: str(value)[:_PARAM_CHARS] for name, value in record.params.items()}
    for name in {shown(n) for n, dist in plan.space.names().items() if getattr(dist, "log", False)}:
        value = record.params.get(name)
        if isinstance(value, int | float) and value > 0:
            texts[f"log10_{name}"] = f"{math.log10(value):.6g}"
    return texts


def summary_lacking(client: Any, parent: Any | None, best: TrialRecord | None, done: bool) -> list[str]:
    """What the parent run of a study that nobody works on has not got. done: the study's budget is spent."""
    if parent is None:
        return [_ALL]
    lacks = []
    if parent.info.status == "RUNNING" or (done and parent.info.status == "KILLED"):
        lacks.append(f"an end: it says {parent.info.status}")
    if best is not None:
        if parent.data.metrics.get("objective") != best.objective:
            lacks.append("the best objective")
        if parent.data.tags.get("overnight.best") != trial_name(best.number):
            lacks.append(f"the tag overnight.best={trial_name(best.number)}")
    held = {file.path for file in client.list_artifacts(parent.info.run_id)}
    return lacks + [name for name in STUDY_FILES if name not in held]


def _lacks(run: Any, record: TrialRecord, plan: Plan, below: str | None) -> list[str]:
    lacks = []
    if run.data.tags.get("mlflow.parentRunId") != below:
        lacks.append("its place below the study's run")
    if run.info.status != STATUS[record.state]:
        lacks.append(f"the status {STATUS[record.state]}: it says {run.info.status}")
    if run.data.tags.get("overnight.state") != record.state:
        lacks.append(f"the tag overnight.state={record.state}")
    lacks.extend(f"the param {name}" for name in params_of(record, plan) if name not in run.data.params)
    last = {n: v for e in record.history for n, v in e.metrics.items() if math.isfinite(v)}
    objective = final_objective(record)
    if objective is not None:
        last["objective"] = objective
    lacks.extend(f"values of {name}" for name, value in last.items() if run.data.metrics.get(name) != value)
    return lacks


def _steps_lacking(client: Any, run: Any, record: TrialRecord) -> list[str]:
    held = logged_steps(client, run.info.run_id, record)
    wanted: dict[str, set[int]] = {}
    for e in record.history:
        for name, value in e.metrics.items():
            if math.isfinite(value):
                wanted.setdefault(name, set()).add(e.epoch)
    return [f"values of {name}" for name, steps in wanted.items() if not steps <= held.get(name, set())]


def study_runs(client: Any, experiment_id: str, uid: str) -> Iterable[Any]:
    """Every run of a study, oldest first."""
    token = None
    while True:
        page = client.search_runs(
            [experiment_id],
            f"tags.`overnight.uid` = '{uid}'",
            max_results=1000,
            order_by=["attributes.start_time ASC"],
            page_token=token,
        )
        yield from page
        token = page.token
        if not token:
            return
