"""Optuna's distributions: what they hold, and the values of a configuration as Optuna stores them.

Optuna compares choices with `==`, which takes True, 1 and 1.0 for one choice, and knows no lists and mappings. So the
choices that Optuna draws from are texts (`values.to_text`), and `encode` and `decode` convert. Numbers of a range stay
numbers, as samplers model them.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from overnight.config.values import same, to_text


class NotInSpaceError(LookupError):
    """A value is outside the space, so that no parameter can represent it."""


def choices(options: Sequence[Any]) -> CategoricalDistribution:
    """The distribution of a choice among `options`."""
    return CategoricalDistribution(tuple(map(to_text, options)))


def encode(dist: BaseDistribution, options: Sequence[Any], value: Any) -> Any:
    """What Optuna stores of a value. Raises NotInSpaceError for a value that can't be drawn.

    Args:
        options: The values of a choice; empty for a range.
    """
    if isinstance(dist, CategoricalDistribution):
        text = to_text(value)
        if text in dist.choices:
            return text
        for choice, option in zip(dist.choices, options, strict=True):
            if values_equal(option, value):
                return choice
        raise NotInSpaceError(text)
    if not contains(dist, value):
        raise NotInSpaceError(str(value))
    return float(value) if isinstance(dist, FloatDistribution) else int(value)


def decode(dist: BaseDistribution, options: Sequence[Any], stored: Any) -> Any:
    """The value that Optuna stores as `stored`. Raises KeyError where there is none."""
    if isinstance(dist, CategoricalDistribution):
        if stored not in dist.choices:
            raise KeyError(stored)
        return options[dist.choices.index(stored)]
    if isinstance(dist, FloatDistribution) and dist.step is not None:  # Optuna computes 0.8999999999999999 for 0.9
        low, step = exact(dist.low), exact(dist.step)
        return float(low + round((exact(stored) - low) / step) * step)
    return stored


def exact(number: float) -> Fraction:
    """A number as it is written: 0.1 is one tenth, and not the nearest number in base 2."""
    return Fraction(repr(number))


def values_equal(one: Any, other: Any) -> bool:
    """Whether two values are equal, up to rounding of floats. True and 1 are not; 1 and 1.0 are."""
    if isinstance(one, bool) or isinstance(other, bool):
        return one is other
    if isinstance(one, int | float) and isinstance(other, int | float):
        return one == other or (isinstance(one, float) and math.isclose(one, other, rel_tol=1e-9)) or same(one, other)
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(map(values_equal, one, other))
    return same(one, other)


def contains(dist: FloatDistribution | IntDistribution | BaseDistribution, value: Any) -> bool:
    """Whether a range contains a value."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return False
    return not (isinstance(dist, IntDistribution) and value != int(value)) and dist._contains(float(value))


def describe_distribution(dist: BaseDistribution) -> str:
    if isinstance(dist, CategoricalDistribution):
        return f"choice({', '.join(map(str, dist.choices))})"
    assert isinstance(dist, FloatDistribution | IntDistribution)
    text = f"{dist.low} to {dist.high}"
    if dist.step is not None and (isinstance(dist, FloatDistribution) or dist.step != 1):
        text += f" in steps of {dist.step}"
    return text + (", log" if dist.log else "")


def read_text(dist: BaseDistribution, options: Sequence[Any], text: str) -> Any:
    """The value whose text is `text`. Raises NotInSpaceError or KeyError where the distribution holds none."""
    if isinstance(dist, CategoricalDistribution):
        return decode(dist, options, text)
    try:
        value = int(text) if isinstance(dist, IntDistribution) else float(text)
    except ValueError:
        raise NotInSpaceError(text) from None
    return encode(dist, options, value)


def size(dist: BaseDistribution) -> float:
    """The number of values; inf for a float."""
    if isinstance(dist, CategoricalDistribution):
        return len(dist.choices)
    assert isinstance(dist, FloatDistribution | IntDistribution)
    if dist.single():
        return 1
    return math.inf if dist.step is None else round((dist.high - dist.low) / dist.step) + 1


def single_value(dist: BaseDistribution) -> Any:
    """What Optuna stores of the only value of a distribution that has one."""
    assert dist.single()
    if isinstance(dist, CategoricalDistribution):
        return dist.choices[0]
    assert isinstance(dist, FloatDistribution | IntDistribution)
    return dist.low


def covers(now: BaseDistribution, before: BaseDistribution | None) -> bool:
    """Whether every value of `before` is a value of `now`."""
    if isinstance(now, CategoricalDistribution) and isinstance(before, CategoricalDistribution):
        return set(before.choices) <= set(now.choices)
    if type(now) is not type(before):
        return False
    assert isinstance(now, FloatDistribution | IntDistribution)
    assert isinstance(before, FloatDistribution | IntDistribution)
    steps_fit = now.step == before.step or now.step is None or (isinstance(now, IntDistribution) and now.step == 1)
    return steps_fit and contains(now, before.low) and contains(now, before.high)


def random_value(dist: BaseDistribution, rng: random.Random) -> Any:
    """A random value as Optuna stores it, uniform on the scale of the distribution."""
    if isinstance(dist, CategoricalDistribution):
        return rng.choice(dist.choices)
    assert isinstance(dist, FloatDistribution | IntDistribution)
    if dist.log:
        value = math.exp(rng.uniform(math.log(dist.low), math.log(dist.high)))
        return value if isinstance(dist, FloatDistribution) else min(dist.high, max(dist.low, round(value)))
    if dist.step is None:
        return rng.uniform(dist.low, dist.high)
    value = dist.low + dist.step * rng.randint(0, round((dist.high - dist.low) / dist.step))
    return value if isinstance(dist, FloatDistribution) else int(value)
