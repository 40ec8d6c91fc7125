"""What the run of a trial lacks: the trial's record compared with what the run already holds. Calls nothing."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import NamedTuple

from overnight.config.trees import to_yaml
from overnight.search.plan import Plan
from overnight.search.record import TrialRecord, config_of
from overnight.search.space import display_name
from overnight.tracking import tags

STATUS = {"running": "RUNNING", "paused": "KILLED", "complete": "FINISHED", "pruned": "FINISHED", "failed": "FAILED"}
OBJECTIVE = "objective"
_PARAM_CHARS = 6000  # MLflow's limit for one param
# MLflow's limit for one tag is 8000. It cuts off the end, where a traceback names the error.
_TAG_CHARS = 7900


class LoggedMetric(NamedTuple):
    """One value of a metric. time_ms counts from 1970; step is the epoch."""

    name: str
    value: float
    time_ms: int
    step: int


@dataclass
class TrialRun:
    """What MLflow holds of one trial.

    Attributes:
        steps: Metric name -> logged steps; None if they are not known yet.
        has_reason: Whether it has a reason, which a trial loses when its exclusion is withdrawn.
        has_config: Whether it is known to hold its config.yaml.
    """

    run_id: str
    status: str
    steps: dict[str, set[int]] | None = None
    params: set[str] = field(default_factory=set)
    has_reason: bool = False
    has_config: bool = False


@dataclass(frozen=True)
class RunUpdate:
    """The writes that bring a run up to date, in the order in which they are made. The run ends last.

    Attributes:
        config: The text of config.yaml; None if the run has it.
        delete_reason: Whether the reason and the notes of the run are outdated.
        resume: Whether an ended run gets the status RUNNING again.
        error: The text of error.txt.
        end_status: The status to end the run with; None if it has that status already.
        ended_at: Seconds since 1970.
    """

    config: str | None
    delete_reason: bool
    resume: bool
    metrics: tuple[LoggedMetric, ...]
    params: dict[str, str]
    tags: dict[str, str]
    error: str | None
    note: str | None
    end_status: str | None
    ended_at: float | None


def missing(run: TrialRun, record: TrialRecord, plan: Plan, parent_run_id: str | None) -> RunUpdate:
    """Return what `run` lacks of `record`. The steps of `run` must be known."""
    assert run.steps is not None
    params = params_of(record, plan)
    texts = {
        tags.STATE: record.state,
        tags.REASON: record.reason,
        tags.NOTES: _shortened("; ".join(record.notes)),
        tags.PARENT: parent_run_id,
    }
    error = record.detail if record.state == "failed" and record.detail else None
    status = "RUNNING" if record.state == "running" else run.status
    return RunUpdate(
        config=None if run.has_config else to_yaml(config_of(record, plan)),
        delete_reason=run.has_reason and record.reason is None,
        resume=status != run.status,
        metrics=tuple(_missing_metrics(run.steps, record)),
        params={name: text for name, text in params.items() if name not in run.params},
        tags={name: text for name, text in texts.items() if text},
        error=error,
        note=f"{record.reason}\n```\n{_shortened(error)}\n```" if error else None,
        end_status=STATUS[record.state] if STATUS[record.state] != status else None,
        ended_at=record.ended_at,
    )


def _missing_metrics(logged: dict[str, set[int]], record: TrialRecord) -> list[LoggedMetric]:
    metrics = [
        LoggedMetric(name, value, round(e.at * 1000), e.epoch)
        for e in record.history
        for name, value in e.metrics.items()
        if math.isfinite(value) and e.epoch not in logged.get(name, ())
    ]
    objective = final_objective(record)
    if objective is not None and OBJECTIVE not in logged:
        last = record.history[-1]
        metrics.append(LoggedMetric(OBJECTIVE, objective, round((record.ended_at or last.at) * 1000), last.epoch))
    return metrics


def final_objective(record: TrialRecord) -> float | None:
    """Return the objective that the trial's run shows; None while it may still change."""
    return record.objective if record.state in ("complete", "pruned") else None


def params_of(record: TrialRecord, plan: Plan) -> dict[str, str]:
    """Return name -> text of the params of the trial's run.

    A parameter that is drawn on a log scale has its decimal logarithm beside it, because MLflow's parallel coordinates
    have no logarithmic axis.
    """
    texts = {name: str(value)[:_PARAM_CHARS] for name, value in record.params.items()}
    for name in {display_name(n) for n, dist in plan.space.names().items() if getattr(dist, "log", False)}:
        value = record.params.get(name)
        if isinstance(value, int | float) and value > 0:
            texts[f"log10_{name}"] = f"{math.log10(value):.6g}"
    return texts


def _shortened(text: str) -> str:
    """Keep the end of a text that is too long for a tag. PostgreSQL stores no NUL, which an error message may hold."""
    return text[-_TAG_CHARS:].replace("\0", "\N{REPLACEMENT CHARACTER}")
