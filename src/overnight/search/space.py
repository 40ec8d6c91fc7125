"""What is searched: config keys, each with the distribution that Optuna draws it from, and when it is drawn at all.

One trial's point is drawn in order through `SearchSpace.draw`, which every use shares: asking Optuna, reading a
finished trial's parameters back, sampling for a look. `grammar` reads a space from what a person writes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
    distribution_to_json,
    json_to_distribution,
)

# How one parameter gets its value: (parameter name, distribution) -> value.
Draw = Callable[[str, BaseDistribution], Any]
# A key's value where nothing is drawn for it: (key, the values drawn so far) -> value; KeyError where there is none.
Written = Callable[[str, Mapping[str, Any]], Any]


class NotInSpace(LookupError):
    """A value lies outside the space, so that no parameter can stand for it."""


@dataclass(frozen=True)
class Condition:
    """`when: optimizer=sgd,rmsprop`: drawn only where `key` holds one of `values`."""

    key: str
    values: tuple[Any, ...]

    def holds(self, value: Any) -> bool:
        return any(same(value, v) for v in self.values)

    def met(self, values: Mapping[str, Any], written: Written) -> bool:
        """Whether it holds, given what is drawn and else what is written; a key that is neither meets none."""
        try:
            return self.holds(values[self.key] if self.key in values else written(self.key, values))
        except KeyError:
            return False

    def __str__(self) -> str:
        return f"{self.key}={','.join(in_grammar(v) for v in self.values)}"


@dataclass(frozen=True)
class Parameter:
    """One draw for a config key.

    each: what is drawn. length: for a list of variable length, how many; its entries are named KEY.0, KEY.1 and so
    on, its length KEY.length. when: drawn only where all of these hold. Choices that Optuna cannot hold (lists) are
    drawn as texts and read back by `options`. suffix: of the names in Optuna, where a key has several draws of which
    a trial takes one (`optimizer.lr@sgd`); people see the key (`shown`).
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
        """Every parameter name that this key may bring, with its distribution."""
        if self.length is None:
            return {self.name(): self.each}
        return {self.name("length"): self.length, **{self.name(i): self.each for i in range(self.length.high)}}

    def always(self) -> list[str]:
        """The names that every trial has which draws this key: of a list, no more than its least length."""
        if self.length is None:
            return [self.name()]
        return [self.name("length"), *(self.name(i) for i in range(self.length.low))]

    def find(self, value: Any) -> dict[str, Any]:
        """Name -> value of the parameters that stand for a key's value. Raises NotInSpace where there are none."""
        if self.length is None:
            parts = {self.name(): in_grammar(value) if self.options else value}
        elif isinstance(value, list | tuple):
            parts = {self.name("length"): len(value), **{self.name(i): v for i, v in enumerate(value)}}
        else:
            raise NotInSpace(self.key)
        dists = self.names()
        if not all(name in dists and contains(dists[name], v) for name, v in parts.items()):
            raise NotInSpace(self.key)
        return {n: float(v) if isinstance(dists[n], FloatDistribution) else v for n, v in parts.items()}

    def active(self, values: Mapping[str, Any], written: Written) -> bool:
        return all(condition.met(values, written) for condition in self.when)

    def size(self) -> float:
        """How many values there are; inf where a float is drawn."""
        each = _count(self.each)
        if self.length is None:
            return each
        return sum(each**n for n in range(self.length.low, self.length.high + 1))

    def holds(self, value: Any) -> bool:
        try:
            self.find(value)
        except NotInSpace:
            return False
        return True

    def describe(self) -> str:
        """The draw in words."""
        text = describe_draw(self.each)
        if self.length is not None:
            text = f"{self.length.low} to {self.length.high} of {text}"
        return " ".join([text, "when", " and ".join(map(str, self.when))] if self.when else [text])

    def _option(self, drawn: str) -> Any:
        """The option that is written so. Raises KeyError where there is none."""
        return {in_grammar(o): o for o in self.options}[drawn]


@dataclass(frozen=True)
class SearchSpace:
    """The draws, those of a key that a condition looks at before those that have the condition."""

    parameters: tuple[Parameter, ...]

    def draw(self, draw: Draw, written: Written) -> dict[str, Any]:
        """One point, key -> value for the config."""
        values: dict[str, Any] = {}
        for parameter in self.parameters:
            if parameter.active(values, written):
                values[parameter.key] = parameter.draw(draw)
        return values

    def find(self, value_of: Written) -> tuple[dict[str, Any], dict[str, Any], tuple[str, ...]]:
        """The point that holds the values which `value_of` gives.

        Returns:
            Key -> value of every key that is drawn there; parameter name -> value of those that lie in the space; and
            the keys of those that do not. A key that only the search adds has no value, and is in none.
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
            except NotInSpace:
                outside.append(parameter.key)
            except KeyError:
                continue
        return values, point, tuple(outside)

    def read(self, texts: Mapping[str, str]) -> dict[str, Any]:
        """Parameters as MLflow keeps them, shown name -> text, as values again; what the space does not know is left.

        Of draws that share a name the first one that holds the text counts: their values are the same.
        """
        found: dict[str, Any] = {}
        for name, dist in self.names().items():
            text = texts.get(shown(name))
            if text is not None and shown(name) not in found:
                with_value = _from_text(dist, text)
                if with_value:
                    found[shown(name)] = with_value[0]
        return found

    def names(self) -> dict[str, BaseDistribution]:
        return {name: dist for p in self.parameters for name, dist in p.names().items()}

    def always(self) -> dict[str, BaseDistribution]:
        """The parameters that every trial has, less those with one value only."""
        names = self.names()
        return {n: names[n] for p in self.parameters if not p.when for n in p.always() if not names[n].single()}

    def keys(self) -> list[str]:
        return list(dict.fromkeys(p.key for p in self.parameters))

    def of(self, key: str) -> list[Parameter]:
        return [p for p in self.parameters if p.key == key]

    def group_choices(self, groups: Iterable[str]) -> dict[str, tuple[Any, ...]]:
        """The searched config groups with the options that are searched."""
        found: dict[str, tuple[Any, ...]] = {}
        for p in self.parameters:
            if p.key in groups and isinstance(p.each, CategoricalDistribution):
                found[p.key] = tuple(dict.fromkeys((*found.get(p.key, ()), *p.each.choices)))
        return found

    def size(self, written: Written) -> float:
        """How many points there are; inf where a float is searched."""
        conditions = [c for p in self.parameters for c in p.when]

        def count(rest: tuple[Parameter, ...], values: dict[str, Any]) -> float:
            if not rest:
                return 1
            first, *others = rest
            if not first.active(values, written):
                return count(tuple(others), values)
            # Each value that some condition names is a branch of its own; those that none does are all alike.
            asked = {in_grammar(v): v for c in conditions if c.key == first.key for v in c.values}
            named = [v for v in asked.values() if first.holds(v)]
            branches = sum(count(tuple(others), {**values, first.key: v}) for v in named)
            unnamed = first.size() - len(named)
            return branches + (unnamed * count(tuple(others), {**values, first.key: _NoValue}) if unnamed else 0)

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

        def when_of(kept: Any) -> tuple[Condition, ...]:
            listed = [kept] if isinstance(kept, Mapping) else kept or []  # 0.1 kept one condition or none
            return tuple(Condition(c["key"], tuple(c["values"])) for c in listed)

        return SearchSpace(
            tuple(
                Parameter(
                    d["key"],
                    json_to_distribution(d["each"]),
                    length_of(d["length"]),
                    when_of(d["when"]),
                    tuple(d["options"]),
                    d.get("suffix", ""),
                )
                for d in data
            )
        )

    def describe(self) -> dict[str, str]:
        """Name -> its draw in words, for people."""
        said: dict[str, list[str]] = {}
        for p in self.parameters:
            said.setdefault(p.name(), []).append(p.describe())
        return {name: "; ".join(texts) for name, texts in said.items()}

    def grew_from(self, old: SearchSpace) -> list[str]:
        """What keeps this space from holding every point of `old`, one line each; empty where it only grew."""
        lacking = []
        for before in old.parameters:
            mine = [p for p in self.parameters if p.name() == before.name()]
            now = next((p for p in mine if p.when == before.when), mine[0] if mine else None)
            if now is None:
                lacking.append(f"{before.name()}: no longer searched")
            elif (now.length is None) != (before.length is None) or now.when != before.when:
                lacking.append(f"{before.name()}: {before.describe()} became {now.describe()}")
            elif not _holds(now.each, before.each) or (now.length and not _holds(now.length, before.length)):
                lacking.append(f"{before.name()}: {now.describe()} does not hold all of {before.describe()}")
        return lacking


# Small words --------------------------------------------------------------------------------------------------------


class _NoValue:
    """Stands for any value that no condition names."""


def shown(name: str) -> str:
    """A parameter's name as people see it, in MLflow and in tables: the config key, whichever draw it came from."""
    return name.partition("@")[0]


def same(one: Any, other: Any) -> bool:
    """Equal, up to the rounding of steps, and not merely because true is 1."""
    if isinstance(one, float) and isinstance(other, float):
        return math.isclose(one, other, rel_tol=1e-9)
    return bool(one == other) and isinstance(one, bool) == isinstance(other, bool)


def in_grammar(value: Any) -> str:
    """A value as Hydra's grammar writes it: [32,32], true, null, 0.1."""
    if isinstance(value, bool):
        return str(value).lower()
    if value is None:
        return "null"
    if isinstance(value, list | tuple):
        return f"[{','.join(in_grammar(v) for v in value)}]"
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{k}:{in_grammar(v)}" for k, v in value.items()) + "}"
    return str(value)


def contains(dist: BaseDistribution, value: Any) -> bool:
    if isinstance(dist, CategoricalDistribution):
        return any(same(value, c) for c in dist.choices)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return False
    return not (isinstance(dist, IntDistribution) and value != int(value)) and dist._contains(float(value))


def describe_draw(dist: BaseDistribution) -> str:
    if isinstance(dist, CategoricalDistribution):
        return f"choice({', '.join(in_grammar(c) for c in dist.choices)})"
    assert isinstance(dist, FloatDistribution | IntDistribution)
    text = f"{dist.low} to {dist.high}"
    if dist.step is not None and (isinstance(dist, FloatDistribution) or dist.step != 1):
        text += f" in steps of {dist.step}"
    return text + (", log" if dist.log else "")


def _from_text(dist: BaseDistribution, text: str) -> tuple[Any] | None:
    """The value, alone in a tuple, that `str` writes so; None where the distribution holds none."""
    if isinstance(dist, CategoricalDistribution):
        return next(((c,) for c in dist.choices if str(c) == text), None)
    try:
        value = int(text) if isinstance(dist, IntDistribution) else float(text)
    except ValueError:
        return None
    return (value,) if contains(dist, value) else None


def _count(dist: BaseDistribution) -> float:
    if isinstance(dist, CategoricalDistribution):
        return len(dist.choices)
    assert isinstance(dist, FloatDistribution | IntDistribution)
    if dist.single():
        return 1
    return math.inf if dist.step is None else round((dist.high - dist.low) / dist.step) + 1


def _holds(now: BaseDistribution, before: BaseDistribution | None) -> bool:
    """Whether every value of `before` is one of `now`."""
    if isinstance(now, CategoricalDistribution) and isinstance(before, CategoricalDistribution):
        return all(contains(now, c) for c in before.choices)
    if type(now) is not type(before):
        return False
    assert isinstance(now, FloatDistribution | IntDistribution)
    assert isinstance(before, FloatDistribution | IntDistribution)
    steps_fit = now.step == before.step or now.step is None or (isinstance(now, IntDistribution) and now.step == 1)
    return steps_fit and contains(now, before.low) and contains(now, before.high)
