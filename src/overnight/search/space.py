"""The search space: config keys, the distribution that Optuna draws each one from, and the conditions of each draw.

`SearchSpace.draw` visits the parameters of one point in order. Asking Optuna, reading the parameters of a finished
trial and random sampling all use it. `space_reader` reads a space from a configuration.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from optuna.distributions import BaseDistribution, IntDistribution, distribution_to_json, json_to_distribution

from overnight.config.values import to_text
from overnight.search import distributions
from overnight.search.distributions import NotInSpaceError, describe_distribution, values_equal

# Draws one parameter: (parameter name, distribution) -> what Optuna stores of the value.
Draw = Callable[[str, BaseDistribution], Any]
# The value of a key that is not drawn: (key, values drawn so far) -> value. Raises KeyError for an unknown key.
ValueOf = Callable[[str, Mapping[str, Any]], Any]


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
        return f"{self.key}={','.join(map(to_text, self.values))}"


@dataclass(frozen=True)
class Parameter:
    """One way to draw a value for a config key.

    Attributes:
        each: The distribution of the value; of a list, of each entry.
        length: The distribution of a list's length. The parameters of a list are named KEY.length, KEY.0, KEY.1, ...
        when: The parameter is drawn only where all conditions hold.
        options: The values of a choice, in the order of the texts that Optuna draws; empty for a range.
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
        return self.assemble(lambda name: self.decode(name, draw(name, self._distribution(name))))

    def assemble(self, part: Callable[[str], Any]) -> Any:
        """The value of the key from the values of its parameters, which `part` gives by name."""
        if self.length is None:
            return part(self.name())
        return [part(self.name(i)) for i in range(part(self.name("length")))]

    def decode(self, name: str, stored: Any) -> Any:
        """The value of one parameter from what Optuna stores. Raises KeyError where it represents none."""
        return distributions.decode(self._distribution(name), self.options, stored)

    def encode(self, name: str, value: Any) -> Any:
        """What Optuna stores of the value of one parameter. Raises NotInSpaceError for a value outside the space."""
        return distributions.encode(self._distribution(name), self.options, value)

    def _distribution(self, name: str) -> BaseDistribution:
        return self.length if self.length is not None and name == self.name("length") else self.each

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
        """The parameters that represent a value of the key, name -> what Optuna stores.

        Raises:
            NotInSpaceError: The value can't be drawn.
        """
        if self.length is None:
            parts = {self.name(): value}
        elif isinstance(value, list | tuple) and self.length.low <= len(value) <= self.length.high:
            parts = {self.name("length"): len(value), **{self.name(i): v for i, v in enumerate(value)}}
        else:
            raise NotInSpaceError(self.key)
        return {name: self.encode(name, v) for name, v in parts.items()}

    def active(self, values: Mapping[str, Any], baseline: ValueOf) -> bool:
        """Whether it is drawn, given the values drawn so far."""
        return all(condition.met(values, baseline) for condition in self.when)

    def size(self) -> float:
        """The number of values; inf for a float."""
        each = distributions.size(self.each)
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

    def read(self, name: str, text: str) -> Any:
        """The value of one parameter from its text. Raises NotInSpaceError or KeyError for a text of no value."""
        return distributions.read_text(self._distribution(name), self.options, text)

    def describe(self) -> str:
        """The distribution and the conditions in words."""
        text = describe_distribution(self.each)
        if self.length is not None:
            text = f"{self.length.low} to {self.length.high} of {text}"
        return " ".join([text, "when", " and ".join(map(str, self.when))] if self.when else [text])


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
        for name, parameter in self._owners.items():
            key = display_name(name)
            if key in texts and key not in found:
                with contextlib.suppress(LookupError):
                    found[key] = parameter.read(name, texts[key])
        return found

    def values_of(self, params: Mapping[str, Any], baseline: ValueOf) -> dict[str, Any]:
        """Key -> value of a trial with these parameters, by name or display name; keys that lack one are left out."""
        values: dict[str, Any] = {}
        for p in self.parameters:
            if p.active(values, baseline):
                with contextlib.suppress(KeyError):
                    values[p.key] = p.assemble(lambda name: params[name if name in params else display_name(name)])
        return values

    def decode(self, stored: Mapping[str, Any]) -> dict[str, Any]:
        """The values of a trial's parameters, by name, from what Optuna stores."""
        return {name: self._owners[name].decode(name, v) for name, v in stored.items() if name in self._owners}

    def encode(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """What Optuna stores of values, by name. Those outside the space are left out."""
        stored: dict[str, Any] = {}
        for name, parameter in self._owners.items():
            if name in values:
                with contextlib.suppress(NotInSpaceError):
                    stored[name] = parameter.encode(name, values[name])
        return stored

    def options(self, name: str) -> tuple[Any, ...]:
        """The values of a choice, in the order of its distribution; empty for a range."""
        return self._owners[name].options

    @functools.cached_property
    def _owners(self) -> dict[str, Parameter]:
        """Parameter name -> the parameter that has it."""
        return {name: p for p in self.parameters for name in p.names()}

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
            if p.key in groups and p.options:
                found[p.key] = tuple({to_text(o): o for o in (*found.get(p.key, ()), *p.options)}.values())
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
            named = {to_text(v): v for c in conditions if c.key == first.key for v in c.values}
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
            when = list(map(str, before.when))
            same_name = [p for p in self.parameters if p.name() == before.name()]
            same = (p for p in same_name if list(map(str, p.when)) == when)
            now = next(same, same_name[0] if same_name else None)
            if now is None:
                reasons.append(f"{before.name()}: no longer searched")
            elif (now.length is None) != (before.length is None) or list(map(str, now.when)) != when:
                reasons.append(f"{before.name()}: {before.describe()} became {now.describe()}")
            elif not distributions.covers(now.each, before.each) or (
                now.length and not distributions.covers(now.length, before.length)
            ):
                reasons.append(f"{before.name()}: {now.describe()} does not contain all of {before.describe()}")
        return reasons


class _UnnamedValue:
    """Represents any value that no condition names."""


def display_name(name: str) -> str:
    """The name of a parameter in MLflow and in tables: without the suffix that tells its distributions apart."""
    return name.partition("@")[0]
