"""What the run of a trial lacks: the trial's record compared with what the run already holds. Calls nothing."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import NamedTuple

from optuna.distributions import FloatDistribution

from overnight.config.trees import to_yaml
from overnight.config.values import escaped, to_text
from overnight.protocol import Progress
from overnight.search.history import steps_of
from overnight.search.plan import Plan
from overnight.search.record import TrialRecord, config_of
from overnight.search.space import display_name
from overnight.tracking import names, tags
from overnight.tracking.dataset import DatasetFacts, dataset_of
from overnight.tracking.duration import end_of_trial

STATUS = {"running": "RUNNING", "paused": "KILLED", "complete": "FINISHED", "pruned": "FINISHED", "failed": "FAILED"}
_PARAM_CHARS = 6000  # MLflow's limit for one param
# MLflow's limit for one tag is 8000. It cuts off the end, where a traceback names the error.
_TAG_CHARS = 7900


class LoggedMetric(NamedTuple):
    """One value of a metric. name is MLflow's; time_ms counts from 1970; step is the epoch, or that of Lightning."""

    name: str
    value: float
    time_ms: int
    step: int


@dataclass
class TrialRun:
    """What MLflow holds of one trial.

    Attributes:
        steps: Metric name in MLflow -> logged steps; None if they are not known yet.
        has_reason: Whether it has a reason, which a trial loses when its exclusion is withdrawn.
        has_config: Whether it is known to hold its config.yaml.
        logged: How much of the trial's log it holds, as the tag LOGGED says.
    """

    run_id: str
    status: str
    steps: dict[str, set[int]] | None = None
    params: set[str] = field(default_factory=set)
    has_reason: bool = False
    has_config: bool = False
    logged: str = ""


@dataclass(frozen=True)
class RunUpdate:
    """The writes that bring a run up to date, in the order in which they are made. The run ends last.

    Attributes:
        config: The text of config.yaml; None if the run has it.
        dataset: Its data, which is written before config.yaml; None if the run has that.
        delete_reason: Whether the reason and the notes of the run are outdated.
        resume: Whether an ended run gets the status RUNNING again.
        error: The text of error.txt.
        end_status: The status to end the run with; None if it has that status already.
        ended_at: Seconds since 1970.
    """

    config: str | None
    dataset: DatasetFacts | None
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
        tags.UNTIL: None if record.until is None else str(record.until),
        tags.NOTES: _shortened("; ".join(record.notes)),
        tags.PARENT: parent_run_id,
        **_long_names(record),
    }
    error = record.detail if record.state == "failed" and record.detail else None
    status = "RUNNING" if record.state == "running" else run.status
    config = None if run.has_config else config_of(record, plan)
    return RunUpdate(
        config=to_yaml(escaped(config)) if config is not None else None,
        dataset=dataset_of(config, record.params.get("data", plan.choices.get("data"))) if config else None,
        delete_reason=run.has_reason and record.reason is None,
        resume=status != run.status,
        metrics=tuple(m for m in metrics_of(record) if m.step not in run.steps.get(m.name, ())),
        params={name: text for name, text in params.items() if name not in run.params},
        tags={name: text for name, text in texts.items() if text},
        error=error,
        note=f"{record.reason}\n```\n{_shortened(error)}\n```" if error else None,
        end_status=STATUS[record.state] if STATUS[record.state] != status else None,
        ended_at=end_of_trial(record),
    )


def metrics_of(record: TrialRecord) -> list[LoggedMetric]:
    """Return every value that the trial's run has, the latest one of a metric last."""
    metrics = [
        LoggedMetric(names.metric_name(names.of_fold(name, e.fold)), value, round(e.at * 1000), step)
        for e, step in zip(record.history, steps_of(record.history), strict=True)
        for name, value in e.metrics.items()
        if math.isfinite(value)  # MLflow's charts can't show others
    ]
    if record.state in ("complete", "pruned") and record.objective is not None:  # it does not change any more
        last, value = record.history[-1], rounded(record.objective)
        metrics.append(LoggedMetric(names.OBJECTIVE, value, round((record.ended_at or last.at) * 1000), _step_of(last)))
    return metrics


def _step_of(progress: Progress) -> int:
    return progress.index if progress.step is None else progress.step


def _long_names(record: TrialRecord) -> dict[str, str]:
    """Return tag -> whole name of each metric and parameter of which MLflow has only the beginning."""
    logged = {names.of_fold(name, e.fold) for e in record.history for name in e.metrics}
    shown = {names.metric_name(name): name for name in logged}
    shown |= {names.param_name(name): name for name in record.params}
    return {f"{tags.NAME}.{names.cut_id(mapped)}": name for mapped, name in shown.items() if names.is_cut(mapped)}


def rounded(value: float) -> float:
    """Round to the seven digits that a 32-bit number has. MLflow's tables show every digit."""
    return float(f"{value:.7g}")


def params_of(record: TrialRecord, plan: Plan) -> dict[str, str]:
    """Return name -> text of the params of the trial's run.

    A number that is drawn from a range of several magnitudes, such as a learning rate, has its decimal logarithm
    beside it, because MLflow's parallel coordinates have no logarithmic axis.
    """
    texts = {names.param_name(name): to_text(value)[:_PARAM_CHARS] for name, value in record.params.items()}
    distributions = {display_name(name): dist for name, dist in plan.space.names().items()}
    for name, dist in distributions.items():
        value = record.params.get(name)
        if isinstance(dist, FloatDistribution) and dist.log and isinstance(value, int | float) and value > 0:
            texts[names.log10_name(name)] = f"{math.log10(value):.6g}"
    return texts


def _shortened(text: str) -> str:
    """Keep the end of a text that is too long for a tag. PostgreSQL stores no NUL, which an error message may hold."""
    return text[-_TAG_CHARS:].replace("\0", "\N{REPLACEMENT CHARACTER}")
