"""A trial as a record: read from Optuna's frozen trial, ranked, and described in one line."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from optuna.trial import FrozenTrial, TrialState

from overnight.config.paths import trial_name
from overnight.config.settings import Settings
from overnight.config.trainer import counts_validations, unit_of
from overnight.config.trees import flatten
from overnight.config.values import short_text
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
from overnight.search.plan import Plan
from overnight.search.space import display_name

# Metrics that are shown in percent if they are between 0 and 1.
_SHARES = ("accuracy", "acc", "precision", "recall", "f1", "auroc", "auc")

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


def objective_of(history: Iterable[Progress], settings: Settings) -> float | None:
    """The metric at the last or the best epoch, by study.objective; None before the first finite value.

    With folds, it is the mean of this over the folds.
    """
    scores = fold_scores(history, settings)
    return statistics.fmean(scores.values()) if scores else None


def fold_scores(history: Iterable[Progress], settings: Settings) -> dict[int, float]:
    """Fold -> the metric at its last or its best epoch. A trial without folds has one. Folds without a value lack."""
    study = settings.study
    choose = {"maximize": max, "minimize": min}[study.direction] if study.objective == "best" else _second
    scores: dict[int, float] = {}
    for e in history:
        value, fold = e.metrics.get(study.metric, math.nan), e.fold or 0
        if math.isfinite(value):
            scores[fold] = choose(scores[fold], value) if fold in scores else value
    return scores


def _second(_: float, second: float) -> float:
    return second


def mean_curve(history: Iterable[Progress], metric: str) -> list[float]:
    """The metric at each epoch; with folds, the mean over the folds that have the epoch. nan where there is none."""
    folds: dict[int, list[float]] = {}
    for e in history:
        folds.setdefault(e.fold or 0, []).append(e.metrics.get(metric, math.nan))
    if len(folds) == 1:
        return folds[0]
    return [statistics.fmean(v for v in values if v is not None) for values in itertools.zip_longest(*folds.values())]


def steps_of(history: Iterable[Progress]) -> list[int]:
    """Where charts show each: a validation at Lightning's step, an epoch at its number. A fold begins with 0."""
    first: dict[int | None, int] = {None: 0}
    return [e.index - first.setdefault(e.fold, e.index) if e.step is None else e.step for e in history]


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


def trial_title(record: TrialRecord) -> str:
    """The name of a trial on the screen and in MLflow: trial-0007, or trial-0007-seed-2 for its confirmation."""
    c = record.confirms
    return trial_name(record.number) if c is None else f"{trial_name(c.trial)}-seed-{c.nth_seed}"


def describe(record: TrialRecord) -> str:
    """The parameters of a trial in one short line; a list as one value."""
    return _in_one_line(short_params(record))


def titled(record: TrialRecord) -> str:
    """The name of a trial, and its parameters in parentheses if it has any."""
    parameters = describe(record)
    return f"{trial_name(record.number)} ({parameters})" if parameters else trial_name(record.number)


def describe_params(params: Mapping[str, Any]) -> str:
    """Values by display name in one line."""
    return _in_one_line(_short_texts(params))


def short_params(record: TrialRecord) -> dict[str, str]:
    """Short name -> value of the parameters of a trial. A trial of `train` has no parameters; its classes name it."""
    if record.config is None or record.confirms is not None:
        return _short_texts(record.params)
    targets = {node: given.get("_target_") for node, given in record.config.items() if isinstance(given, Mapping)}
    return {node: str(target).rpartition(".")[2] for node, target in targets.items() if target}


def _in_one_line(texts: Mapping[str, str]) -> str:
    return " ".join(f"{name}={text}" for name, text in texts.items())


def _short_texts(params: Mapping[str, Any]) -> dict[str, str]:
    """Short name -> text of each key. A list has its length and its entries as parameters, and one text."""
    lists = {
        n.removesuffix(".length") for n in params if n.endswith(".length") and f"{n.removesuffix('length')}0" in params
    }
    parts: dict[str, str] = {}
    for name, value in params.items():
        key, _, last = name.rpartition(".")
        if key not in lists or not (last.isdigit() or last == "length"):
            parts[name] = short_text(value)
        elif last != "length":
            parts[key] = f"{parts[key]}-{short_text(value)}" if key in parts else short_text(value)
    return {_short_name(key, parts): text for key, text in parts.items()}


def _short_name(key: str, keys: Iterable[str]) -> str:
    """The shortest end of a dotted key that no other key has: model.encoder.width is width, or else encoder.width."""
    path, others = key.split("."), [other.split(".") for other in keys if other != key]
    for n in range(1, len(path)):
        if all(other[-n:] != path[-n:] for other in others):
            return ".".join(path[-n:])
    return key


def format_value(value: float, metric: str) -> str:
    """Format a value of a metric: 97.78%, 0.1234."""
    if _is_share(metric, value):
        return f"{value:.2%}"
    return f"{value:.4g}"


def format_interval(mean: float, half_width: float | None, metric: str) -> str:
    """Format a mean and half the width of its interval: 98.51% ± 0.06, 0.1234 ± 0.0011."""
    if half_width is None:
        return format_value(mean, metric)
    width = f"{100 * half_width:.2f}" if _is_share(metric, mean) else f"{half_width:.2g}"
    return f"{format_value(mean, metric)} ± {width}"


def _is_share(metric: str, value: float) -> bool:
    return metric.replace("_", "/").split("/")[-1].lower() in _SHARES and -1 <= value <= 1


def format_duration(seconds: float | None) -> str:
    """Format as 1:05:09, 5:09 or 9 s."""
    if seconds is None:
        return "?"
    whole = max(round(seconds), 0)
    hours, minutes, rest = whole // 3600, whole // 60 % 60, whole % 60
    if hours:
        return f"{hours}:{minutes:02}:{rest:02}"
    return f"{minutes}:{rest:02}" if minutes else f"{rest} s"


def pack_history(history: Iterable[Progress]) -> dict[str, Any]:
    """Convert a history to JSON, one list for each field."""
    epochs = sorted(history, key=lambda e: e.index)
    names = dict.fromkeys(name for e in epochs for name in e.metrics)
    is_counted = any(e.step is not None for e in epochs)  # in validations
    steps = {"step": [e.step for e in epochs], "total": [e.total for e in epochs]} if is_counted else {}
    folds = {"fold": [e.fold for e in epochs]} if any(e.fold is not None for e in epochs) else {}
    return {
        "epoch": [e.index for e in epochs],  # as earlier versions name it
        **steps,
        **folds,
        "at": [round(e.at, 3) for e in epochs],
        "seconds": [round(e.seconds, 4) for e in epochs],
        "metrics": {name: [_to_json(e.metrics.get(name)) for e in epochs] for name in names},
    }


def unpack_history(number: int, packed: Mapping[str, Any] | None) -> tuple[Progress, ...]:
    """The history of trial `number` that `pack_history` wrote."""
    if not packed:
        return ()
    columns, steps, totals = packed["metrics"], packed.get("step"), packed.get("total")
    folds = packed.get("fold")
    return tuple(
        Progress(
            number,
            index,
            {n: float(c[i]) for n, c in columns.items() if c[i] is not None},
            packed["at"][i],
            packed["seconds"][i],
            steps[i] if steps else None,
            totals[i] if totals else None,
            folds[i] if folds else None,
        )
        for i, index in enumerate(packed["epoch"])
    )


def _to_json(value: float | None) -> float | str | None:
    """A JSON value. JSON has no inf and no nan."""
    return value if value is None or math.isfinite(value) else str(value)
