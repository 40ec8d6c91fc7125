"""The history of a trial: its values over the epochs, its score, and how it is stored."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Iterable, Mapping
from typing import Any

from overnight.config.settings import Settings
from overnight.protocol import Progress


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
