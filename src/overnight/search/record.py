"""A trial as a record: read from Optuna's frozen trial, and ranked."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from optuna.trial import FrozenTrial, TrialState

from overnight.config.settings import Settings
from overnight.config.trainer import counts_validations, unit_of
from overnight.config.trees import flatten
from overnight.protocol import Progress
from overnight.search.attributes import (
    CONFIG,
    CONFIRMS,
    DETAIL,
    HISTORY,
    NOTES,
    PARAMS,
    PEAK_BYTES,
    REASON,
    TRAINING,
    UNTIL,
    VALUES,
)
from overnight.search.history import objective_of, unpack_history
from overnight.search.plan import Plan
from overnight.search.space import display_name

State = Literal["waiting", "running", "paused", "complete", "pruned", "failed"]


@dataclass(frozen=True)
class Confirms:
    """What a trial of a confirmation repeats: a trial of the search, with the nth of the fresh seeds, from 1."""

    trial: int
    nth_seed: int
    seed: int


@dataclass(frozen=True)
class TrialRecord:
    """One trial as the study storage has it. Times in seconds since 1970.

    Attributes:
        params: Display name of a parameter -> value; for a trial with its own config, the config flattened.
        history: The epochs, or the validations, in order.
        reason, detail: Why it failed, in one word and in full.
        config: The config of a trial that has its own. That of other trials comes from the plan.
        values: Searched key -> value of a trial that was enqueued, inside or outside the space.
        confirms: What a trial of a confirmation repeats.
        peak_bytes: The largest memory its process was seen to hold; None for a trial of a few seconds.
        started_at: When its process started, the last one of a trial that was resumed.
        until: The epochs to which its scheduler lets it train; None without a scheduler that pauses trials.
        max_epochs: The epochs, or validations, of a whole trial, where its scheduler may pause it.
    """

    number: int
    state: State
    params: dict[str, Any]
    history: tuple[Progress, ...]
    objective: float | None
    reason: str | None
    detail: str
    started_at: float | None
    ended_at: float | None
    notes: tuple[str, ...] = ()
    config: dict[str, Any] | None = None
    values: dict[str, Any] | None = None
    confirms: Confirms | None = None
    peak_bytes: int | None = None
    until: int | None = None
    max_epochs: float = math.inf

    @property
    def first_started_at(self) -> float | None:
        """When it started first: of a trial that was resumed when its first epoch began, as that was stored."""
        begun = [self.history[0].at - self.history[0].seconds] if self.history else []
        return min((time for time in (self.started_at, *begun) if time is not None), default=None)

    @property
    def last_ended_at(self) -> float | None:
        """When it ended; of a trial that is paused, or was when the search ended, when its last epoch did."""
        is_paused = self.state == "paused" or self.waits_at_rung
        return self.history[-1].at if is_paused and self.history else self.ended_at

    @property
    def done(self) -> bool:
        return self.state in ("complete", "pruned", "failed")

    @property
    def may_resume(self) -> bool:
        """Whether it may train on, so that its saved state is needed."""
        return not self.done or self.waits_at_rung

    @property
    def waits_at_rung(self) -> bool:
        """Whether its scheduler has paused it, and may resume it. At the end of a launch it is pruned."""
        # A trial with more epochs was promoted, and one with all has ended: a kill came before that was written.
        return self.state in ("paused", "pruned") and self.until == len(self.history) < self.max_epochs


def record_of(t: FrozenTrial, plan: Plan, history: tuple[Progress, ...] | None = None) -> TrialRecord:
    """Convert Optuna's trial to a record. history: the epochs, where they are newer than the stored ones."""
    attrs, settings = t.user_attrs, plan.settings
    history = history if history is not None else unpack_history(t.number, attrs.get(HISTORY))
    states: dict[TrialState, State] = {
        TrialState.COMPLETE: "complete",
        TrialState.PRUNED: "pruned",
        TrialState.FAIL: "failed",
        TrialState.RUNNING: "running",
    }
    waiting: State = "paused" if t.params or attrs.get(HISTORY) or t.datetime_start else "waiting"
    params = {display_name(name): value for name, value in plan.space.decode(t.params).items()}
    values = values_of(t)
    if values is not None:  # values outside the space are shown as well
        params = {**_params_of_values(plan, values), **params}
    if CONFIG in attrs:
        params = {**flat_config(attrs[CONFIG]), **attrs.get(TRAINING, {})}
    if PARAMS in attrs:
        params = dict(attrs[PARAMS])
    return TrialRecord(
        number=t.number,
        state=states.get(t.state, waiting),
        params=params,
        history=history,
        objective=t.value if t.state == TrialState.COMPLETE else objective_of(history, settings),
        reason=attrs.get(REASON),
        detail=attrs.get(DETAIL, ""),
        started_at=t.datetime_start.timestamp() if t.datetime_start else None,
        ended_at=t.datetime_complete.timestamp() if t.datetime_complete else None,
        notes=tuple(attrs.get(NOTES, ())),
        config=attrs.get(CONFIG),
        values=values,
        confirms=Confirms(**attrs[CONFIRMS]) if CONFIRMS in attrs else None,
        peak_bytes=attrs.get(PEAK_BYTES),
        until=attrs.get(UNTIL),
        max_epochs=plan.units if plan.pauses else math.inf,
    )


def values_of(t: FrozenTrial) -> dict[str, Any] | None:
    """Searched key -> value of a trial that was enqueued; None for a sampled one."""
    return dict(t.user_attrs[VALUES]) if VALUES in t.user_attrs else None


def config_of(record: TrialRecord, plan: Plan) -> dict[str, Any]:
    """The configuration of a trial."""
    return record.config if record.config is not None else plan.config(searched_values(record, plan))


def unit_of_trial(record: TrialRecord, plan: Plan) -> Literal["epoch", "validation"]:
    """What the progress of a trial is counted in. Arguments of the Trainer may be searched."""
    return unit_of(config_of(record, plan)["trainer"])


def units_of_trial(record: TrialRecord, plan: Plan) -> int | None:
    """The number of epochs that a trial trains at most in all folds, or of its validations, where that is known."""
    trainer, folds = config_of(record, plan)["trainer"], plan.settings.study.folds or 1
    if not counts_validations(trainer):
        return int(trainer["max_epochs"]) * folds
    if record.state == "complete":
        return len(record.history)
    total = record.history[-1].total if record.history else None
    return total * folds if total is not None else None


def typical_units(records: Iterable[TrialRecord], plan: Plan) -> int:
    """The number of epochs of a whole trial in all folds, or of validations, by the trials so far.

    Where neither a trial nor the plan knows how many validations there are, it is one more than the most so far.
    """
    folds = plan.settings.study.folds or 1
    if not counts_validations(vars(plan.settings.trainer)):
        return plan.settings.trainer.max_epochs * folds
    with_history = [r for r in records if r.history]
    known = [(len(r.history), 1) if r.state == "complete" else (r.history[-1].total, folds) for r in with_history]
    totals = [total * times for total, times in known if total is not None]
    if totals:
        return round(statistics.median(totals))
    expected = plan.settings.trainer.units
    return expected * folds if expected is not None else max((len(r.history) for r in with_history), default=0) + 1


def searched_values(record: TrialRecord, plan: Plan) -> dict[str, Any]:
    """Searched key -> value of a trial of a search. A list is one value."""
    return dict(record.values) if record.values is not None else plan.space.values_of(record.params, plan.baseline)


def ranked(records: Iterable[TrialRecord], settings: Settings) -> list[TrialRecord]:
    """The complete trials by objective, the best first; of equal ones the earlier first."""
    sign = 1 if settings.study.direction == "maximize" else -1
    complete = [r for r in records if r.state == "complete" and r.objective is not None]
    return sorted(complete, key=lambda r: (-sign * (r.objective or 0.0), r.number))


def best_of(records: Iterable[TrialRecord], settings: Settings) -> TrialRecord | None:
    """The complete trial with the best objective, the earliest of equal ones."""
    return next(iter(ranked(records, settings)), None)


def provisional_best(records: Iterable[TrialRecord], settings: Settings) -> TrialRecord | None:
    """The trial with the best latest value, where it is not complete and better than every complete one; else None."""
    sign, trials = (1 if settings.study.direction == "maximize" else -1), list(records)
    found = [r for r in trials if r.until is not None and r.state != "failed" and r.objective is not None]
    best = max(found, key=lambda r: (sign * (r.objective or 0.0), -r.number), default=None)
    complete = best_of(trials, settings)
    if best is None or best.state == "complete":
        return None
    is_better = complete is None or sign * (best.objective or 0.0) > sign * (complete.objective or 0.0)
    return best if is_better else None


def trials_with_weights(records: Iterable[TrialRecord], settings: Settings) -> set[int]:
    """The numbers of the trials whose weights are kept: the best study.keep_checkpoints."""
    return {r.number for r in ranked(records, settings)[: settings.study.keep_checkpoints]}


def flat_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted key -> value of a config, without class names and null."""
    return {k: v for k, v in flatten(config).items() if v is not None and not k.rpartition(".")[2].startswith("_")}


def _params_of_values(plan: Plan, values: Mapping[str, Any]) -> dict[str, Any]:
    """Convert searched key -> value to display name -> value: a list has its length and its entries."""
    params: dict[str, Any] = {}
    for p in plan.space.parameters:
        if p.key in values and p.length is not None and isinstance(values[p.key], list):
            params[f"{p.key}.length"] = len(values[p.key])
            params.update({f"{p.key}.{i}": v for i, v in enumerate(values[p.key])})
        elif p.key in values:
            params[p.key] = values[p.key]
    return params
