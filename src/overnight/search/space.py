"""The search space: config keys, the distribution that Optuna draws each one from, and the conditions of each draw.

`SearchSpace.draw` visits the parameters of one point in order. Asking Optuna, reading the parameters of a finished
trial and random sampling all use it. `space_reader` reads a space from a configuration.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
    distribution_to_json,
    json_to_distribution,
)

# Draws one parameter: (parameter name, distribution) -> value.
Draw = Callable[[str, BaseDistribution], Any]
# The value of a key that is not drawn: (key, values drawn so far) -> value. Raises KeyError for an unknown key.
ValueOf = Callable[[str, Mapping[str, Any]], Any]


class NotInSpaceError(LookupError):
    """A value is outside the space, so that no parameter can represent it."""


@dataclass(frozen=True)
class Condition:
    """`when: optimizer=sgd,rmsprop`: a parameter is drawn only where `key` has one of `values`."""

    key: str
    values: tuple[Any, ...]

    def holds(self, value: Any) -> bool:
        return any(values_equal(value, v) for v in self.values)

    def met(self, values: Mapping[str, Any], baseline: ValueOf) -> bool:
        """Whether it holds for the values drawn so far, or else for the baseline. An unknown key meets nothing."""
        try:
            return self.holds(values[self.key] if self.key in values else baseline(self.key, values))
        except KeyError:
            return False

    def __str__(self) -> str:
        return f"{self.key}={','.join(to_hydra(v) for v in self.values)}"


@dataclass(frozen=True)
class Parameter:
    """One way to draw a value for a config key.

    Attributes:
        each: The distribution of the value; of a list, of each entry.
        length: The distribution of a list's length. The parameters of a list are named KEY.length, KEY.0, KEY.1, ...
        when: The parameter is drawn only where all conditions hold.
        options: Choices that Optuna can't represent, such as lists. They are drawn as texts and mapped back.
        suffix: Ends the parameter names where a key has several distributions of which a trial draws one
            (`optimizer.lr@sgd`). Users see the key without it (`display_name`).
    """

    key: str
    each: BaseDistribution
    length: IntDistribution | None = None
    when: tuple[Condition, ...] = ()
    options: tuple[Any, ...] = ()
    suffix: str = ""

    def draw(self, draw: Draw) -> Any:
        if self.length is None:
            drawn = draw(self.name(), self.each)
            return self._option(drawn) if self.options else drawn
        count = draw(self.name("length"), self.length)
        return [draw(self.name(i), self.each) for i in range(count)]

    def name(self, part: str | int | None = None) -> str:
        return (self.key if part is None else f"{self.key}.{part}") + self.suffix

    def names(self) -> dict[str, BaseDistribution]:
        """Every parameter name that the key can have, with its distribution."""
        if self.length is None:
            return {self.name(): self.each}
        return {self.name("length"): self.length, **{self.name(i): self.each for i in range(self.length.high)}}

    def unconditional_names(self) -> list[str]:
        """The names that every trial with this key has; of a list, those within its minimum length."""
        if self.length is None:
            return [self.name()]
        return [self.name("length"), *(self.name(i) for i in range(self.length.low))]

    def find(self, value: Any) -> dict[str, Any]:
        """The parameters that represent a value of the key, name -> value.

        Raises:
            NotInSpaceError: The value can't be drawn.
        """
        if self.length is None:
            parts = {self.name(): to_hydra(value) if self.options else value}
        elif isinstance(value, list | tuple):
            parts = {self.name("length"): len(value), **{self.name(i): v for i, v in enumerate(value)}}
        else:
            raise NotInSpaceError(self.key)
        dists = self.names()
        if not all(name in dists and contains(dists[name], v) for name, v in parts.items()):
            raise NotInSpaceError(self.key)
        return {n: float(v) if isinstance(dists[n], FloatDistribution) else v for n, v in parts.items()}

    def active(self, values: Mapping[str, Any], baseline: ValueOf) -> bool:
        """Whether it is drawn, given the values drawn so far."""
        return all(condition.met(values, baseline) for condition in self.when)

    def size(self) -> float:
        """The number of values; inf for a float."""
        each = _size(self.each)
        if self.length is None:
            return each
        return sum(each**n for n in range(self.length.low, self.length.high + 1))

    def holds(self, value: Any) -> bool:
        """Whether the value can be drawn."""
        try:
            self.find(value)
        except NotInSpaceError:
            return False
        return True

    def describe(self) -> str:
        """The distribution and the conditions in words."""
        text = describe_distribution(self.each)
        if self.length is not None:
            text = f"{self.length.low} to {self.length.high} of {text}"
        return " ".join([text, "when", " and ".join(map(str, self.when))] if self.when else [text])

    def _option(self, drawn: str) -> Any:
        """The option with this text. Raises KeyError where there is none."""
        return {to_hydra(o): o for o in self.options}[drawn]


@dataclass(frozen=True)
class SearchSpace:
    """The parameters. A key that a condition names comes before the parameters with that condition."""

    parameters: tuple[Parameter, ...]

    def draw(self, draw: Draw, baseline: ValueOf) -> dict[str, Any]:
        """Draw one point, config key -> value."""
        values: dict[str, Any] = {}
        for parameter in self.parameters:
            if parameter.active(values, baseline):
                values[parameter.key] = parameter.draw(draw)
        return values

    def find(self, value_of: ValueOf) -> tuple[dict[str, Any], dict[str, Any], tuple[str, ...]]:
        """Find the point with the values that `value_of` gives.

        Returns:
            Key -> value of every key that is drawn there; parameter name -> value of those inside the space; and the
            keys of those outside it. A key for which `value_of` raises KeyError is in none of them.
        """
        values: dict[str, Any] = {}
        point: dict[str, Any] = {}
        outside: list[str] = []
        for parameter in self.parameters:
            if not parameter.active(values, value_of):
                continue
            try:
                values[parameter.key] = value_of(parameter.key, values)
                point.update(parameter.find(values[parameter.key]))
            except NotInSpaceError:
                outside.append(parameter.key)
            except KeyError:
                continue
        return values, point, tuple(outside)

    def read(self, texts: Mapping[str, str]) -> dict[str, Any]:
        """Convert parameters as MLflow stores them, display name -> text, to values. Unknown names are left out.

        Parameters with the same display name differ in their distributions only. The first one that can hold the text
        converts it.
        """
        found: dict[str, Any] = {}
        for name, dist in self.names().items():
            key = display_name(name)
            text = texts.get(key)
            if text is not None and key not in found:
                value = _from_text(dist, text)
                if value:
                    found[key] = value[0]
        return found

    def names(self) -> dict[str, BaseDistribution]:
        return {name: dist for p in self.parameters for name, dist in p.names().items()}

    def unconditional(self) -> dict[str, BaseDistribution]:
        """The parameters that every trial has, without those that have a single value."""
        names = self.names()
        return {
            n: names[n] for p in self.parameters if not p.when for n in p.unconditional_names() if not names[n].single()
        }

    def keys(self) -> list[str]:
        return list(dict.fromkeys(p.key for p in self.parameters))

    def parameters_of(self, key: str) -> list[Parameter]:
        return [p for p in self.parameters if p.key == key]

    def searched_options(self, groups: Iterable[str]) -> dict[str, tuple[Any, ...]]:
        """The config groups that are searched, with the options that are searched."""
        found: dict[str, tuple[Any, ...]] = {}
        for p in self.parameters:
            if p.key in groups and isinstance(p.each, CategoricalDistribution):
                found[p.key] = tuple(dict.fromkeys((*found.get(p.key, ()), *p.each.choices)))
        return found

    def restricted(self, chosen: Mapping[str, str]) -> SearchSpace:
        """The space where config groups that are not searched have the options in `chosen`.

        Conditions on these groups are decided: they are dropped where they hold, with their parameter where not.
        """
        searched = self.keys()
        parameters = []
        for p in self.parameters:
            decided = [c for c in p.when if c.key in chosen and c.key not in searched]
            if all(c.holds(chosen[c.key]) for c in decided):
                parameters.append(replace(p, when=tuple(c for c in p.when if c not in decided)))
        return SearchSpace(tuple(parameters))

    def size(self, baseline: ValueOf) -> float:
        """The number of points; inf where a float is searched."""
        conditions = [c for p in self.parameters for c in p.when]

        def count(rest: tuple[Parameter, ...], values: dict[str, Any]) -> float:
            if not rest:
                return 1
            first, *others = rest
            if not first.active(values, baseline):
                return count(tuple(others), values)
            # A value that a condition names is a branch of its own. All other values are alike.
            named = {to_hydra(v): v for c in conditions if c.key == first.key for v in c.values}
            drawn = [v for v in named.values() if first.holds(v)]
            branches = sum(count(tuple(others), {**values, first.key: v}) for v in drawn)
            unnamed = first.size() - len(drawn)
            return branches + (unnamed * count(tuple(others), {**values, first.key: _UnnamedValue}) if unnamed else 0)

        return count(self.parameters, {})

    def to_json(self) -> list[dict[str, Any]]:
        return [
            {
                "key": p.key,
                "each": distribution_to_json(p.each),
                "length": distribution_to_json(p.length) if p.length else None,
                "when": [{"key": c.key, "values": list(c.values)} for c in p.when],
                "options": list(p.options),
                "suffix": p.suffix,
            }
            for p in self.parameters
        ]

    @staticmethod
    def from_json(data: Iterable[Mapping[str, Any]]) -> SearchSpace:
        def length_of(text: str | None) -> IntDistribution | None:
            dist = json_to_distribution(text) if text else None
            assert dist is None or isinstance(dist, IntDistribution)
            return dist

        return SearchSpace(
            tuple(
                Parameter(
                    d["key"],
                    json_to_distribution(d["each"]),
                    length_of(d["length"]),
                    tuple(Condition(c["key"], tuple(c["values"])) for c in d["when"]),
                    tuple(d["options"]),
                    d["suffix"],
                )
                for d in data
            )
        )

    def describe(self) -> dict[str, str]:
        """Parameter name -> its distribution in words."""
        texts: dict[str, list[str]] = {}
        for p in self.parameters:
            texts.setdefault(p.name(), []).append(p.describe())
        return {name: "; ".join(described) for name, described in texts.items()}

    def not_covered(self, old: SearchSpace) -> list[str]:
        """Why this space does not contain every point of `old`, one line each; empty where it does."""
        reasons = []
        for before in old.parameters:
            same_name = [p for p in self.parameters if p.name() == before.name()]
            now = next((p for p in same_name if p.when == before.when), same_name[0] if same_name else None)
            if now is None:
                reasons.append(f"{before.name()}: no longer searched")
            elif (now.length is None) != (before.length is None) or now.when != before.when:
                reasons.append(f"{before.name()}: {before.describe()} became {now.describe()}")
            elif not _covers(now.each, before.each) or (now.length and not _covers(now.length, before.length)):
                reasons.append(f"{before.name()}: {now.describe()} does not contain all of {before.describe()}")
        return reasons


class _UnnamedValue:
    """Represents any value that no condition names."""


# Values and distributions -------------------------------------------------------------------------------------------


def display_name(name: str) -> str:
    """The name of a parameter in MLflow and in tables: without the suffix that tells its distributions apart."""
    return name.partition("@")[0]


def values_equal(one: Any, other: Any) -> bool:
    """Whether two values are equal, up to rounding of floats. True and 1 are not."""
    if isinstance(one, float) and isinstance(other, float):
        return math.isclose(one, other, rel_tol=1e-9)
    return bool(one == other) and isinstance(one, bool) == isinstance(other, bool)


def to_hydra(value: Any) -> str:
    """Write a value in Hydra's grammar: [32,32], true, null, 0.1."""
    if isinstance(value, bool):
        return str(value).lower()
    if value is None:
        return "null"
    if isinstance(value, list | tuple):
        return f"[{','.join(to_hydra(v) for v in value)}]"
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{k}:{to_hydra(v)}" for k, v in value.items()) + "}"
    return str(value)


def contains(dist: BaseDistribution, value: Any) -> bool:
    if isinstance(dist, CategoricalDistribution):
        return any(values_equal(value, c) for c in dist.choices)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return False
    return not (isinstance(dist, IntDistribution) and value != int(value)) and dist._contains(float(value))


def describe_distribution(dist: BaseDistribution) -> str:
    if isinstance(dist, CategoricalDistribution):
        return f"choice({', '.join(to_hydra(c) for c in dist.choices)})"
    assert isinstance(dist, FloatDistribution | IntDistribution)
    text = f"{dist.low} to {dist.high}"
    if dist.step is not None and (isinstance(dist, FloatDistribution) or dist.step != 1):
        text += f" in steps of {dist.step}"
    return text + (", log" if dist.log else "")


def _from_text(dist: BaseDistribution, text: str) -> tuple[Any] | None:
    """The value whose `str` is `text`, in a tuple of one; None where the distribution contains no such value."""
    if isinstance(dist, CategoricalDistribution):
        return next(((c,) for c in dist.choices if str(c) == text), None)
    try:
        value = int(text) if isinstance(dist, IntDistribution) else float(text)
    except ValueError:
        return None
    return (value,) if contains(dist, value) else None


def _size(dist: BaseDistribution) -> float:
    if isinstance(dist, CategoricalDistribution):
        return len(dist.choices)
    assert isinstance(dist, FloatDistribution | IntDistribution)
    if dist.single():
        return 1
    return math.inf if dist.step is None else round((dist.high - dist.low) / dist.step) + 1


def _covers(now: BaseDistribution, before: BaseDistribution | None) -> bool:
    """Whether every value of `before` is a value of `now`."""
    if isinstance(now, CategoricalDistribution) and isinstance(before, CategoricalDistribution):
        return all(contains(now, c) for c in before.choices)
    if type(now) is not type(before):
        return False
    assert isinstance(now, FloatDistribution | IntDistribution)
    assert isinstance(before, FloatDistribution | IntDistribution)
    steps_fit = now.step == before.step or now.step is None or (isinstance(now, IntDistribution) and now.step == 1)
    return steps_fit and contains(now, before.low) and contains(now, before.high)
