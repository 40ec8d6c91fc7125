"""Axes of searched keys: the position of a value, 0 to 1 on the scale of sampling, and the values that label the axis.

A list, such as the widths of the hidden layers, is one key and has one axis. The axis has a band for each length of the
list. Within a band, a value is drawn at the mean position of its entries.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.ticker import MaxNLocator
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from overnight.config.values import to_text
from overnight.report import advice
from overnight.search.distributions import contains
from overnight.search.space import SearchSpace

_BAND = 0.8  # share of a band that its values cover
_SPREAD = 0.5  # share of the space between two choices over which trials with the same choice are spread
_MAX_TICKS = 6


@dataclass(frozen=True)
class Axis:
    """The axis of a key.

    Attributes:
        ticks: Position and label of each mark.
        position_of: Value -> its position; None where the axis does not hold it.
        borders: Positions between the bands of a list.
        slot: The distance of two choices; 0 where values lie on a scale.
    """

    label: str
    ticks: tuple[tuple[float, str], ...]
    position_of: Callable[[Any], float | None]
    borders: tuple[float, ...] = ()
    slot: float = 0.0

    def spread_position(self, value: Any, number: int) -> float | None:
        """Return the position of a trial's value, apart from those of other trials with the same choice."""
        at = self.position_of(value)
        return None if at is None else at + _SPREAD * self.slot * ((number * 0.618034) % 1 - 0.5)


def axis_of(key: str, space: SearchSpace) -> Axis:
    """Return the axis of a searched key. It spans all distributions that the key has under different conditions."""
    parameters = space.parameters_of(key)
    of_entry = _axis_of_distributions(key, [p.each for p in parameters])
    lengths = sorted({n for p in parameters if p.length for n in range(p.length.low, p.length.high + 1)})
    return _axis_of_list(of_entry, lengths) if lengths else of_entry


def tick_values(dist: FloatDistribution | IntDistribution) -> list[float]:
    """Return round values within a range: powers of two or of ten, or multiples of 1, 2 and 5."""
    low, high = float(dist.low), float(dist.high)
    if low == high:
        return [low]
    if not dist.log:
        marks = MaxNLocator(4, steps=[1, 2, 5, 10], integer=isinstance(dist, IntDistribution)).tick_values(low, high)
        return [float(v) for v in marks if low <= v <= high]
    if math.log2(low).is_integer() and math.log2(high).is_integer():
        found = [2.0**n for n in range(round(math.log2(low)), round(math.log2(high)) + 1)]
        return found[:: math.ceil(len(found) / _MAX_TICKS)]
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for factors, enough in (((1,), 3), ((1, 3), 3), ((1, 2, 5), 2)):
        found = [factor * 10.0**n for n in decades for factor in factors]
        found = [v for v in found if low * (1 - 1e-9) <= v <= high * (1 + 1e-9)]
        if len(found) >= enough:
            return found[:: math.ceil(len(found) / _MAX_TICKS)]
    return [low, high]


def _axis_of_list(of_entry: Axis, lengths: Sequence[int]) -> Axis:
    width = 1 / len(lengths)

    def position_of(value: Any) -> float | None:
        if not isinstance(value, list | tuple) or len(value) not in lengths:
            return None
        entries = [of_entry.position_of(v) for v in value]
        known = [at for at in entries if at is not None]
        if len(known) < len(entries):
            return None
        mean = statistics.fmean(known) if known else 0.5
        return (lengths.index(len(value)) + (1 - _BAND) / 2 + _BAND * mean) * width

    ticks = tuple(((i + 0.5) * width, str(length)) for i, length in enumerate(lengths))
    borders = tuple(i * width for i in range(1, len(lengths)))
    return Axis(f"{of_entry.label}\n(number of entries)", ticks, position_of, borders)


def _axis_of_distributions(key: str, dists: Sequence[BaseDistribution]) -> Axis:
    choices = list(dict.fromkeys(str(c) for d in dists if isinstance(d, CategoricalDistribution) for c in d.choices))
    if choices:
        slot = 1 / max(len(choices) - 1, 1)
        at = {choice: i * slot if len(choices) > 1 else 0.5 for i, choice in enumerate(choices)}
        ticks = tuple((position, choice) for choice, position in at.items())
        return Axis(key, ticks, lambda value: at.get(to_text(value)), slot=slot)
    hull = _hull([d for d in dists if isinstance(d, FloatDistribution | IntDistribution)])
    return Axis(
        key,
        tuple((advice.position(hull, v), f"{v:.4g}") for v in tick_values(hull)),
        lambda value: advice.position(hull, value) if contains(hull, value) else None,
    )


def _hull(dists: Sequence[FloatDistribution | IntDistribution]) -> FloatDistribution | IntDistribution:
    """Return a range that contains all of these."""
    low, high, log = min(d.low for d in dists), max(d.high for d in dists), all(d.log for d in dists)
    if all(isinstance(d, IntDistribution) for d in dists):
        return IntDistribution(int(low), int(high), log=log)
    return FloatDistribution(low, high, log=log)
