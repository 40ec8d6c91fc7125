"""What is searched: Hydra's sweep grammar read into distributions that Optuna draws from.

A space maps config keys to draws. One trial's point is drawn in order through `SearchSpace.draw`, which every use
shares: asking Optuna, reading a finished trial's parameters back, sampling for a look, finding the written point.
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


class NotInSpace(LookupError):
    """A written value lies outside the space, so that no parameter can stand for it."""


@dataclass(frozen=True)
class Condition:
    """`when: optimizer=sgd,rmsprop`: drawn only where `key` holds one of `values` (as texts)."""

    key: str
    values: tuple[str, ...]

    def holds(self, value: Any) -> bool:
        return in_grammar(value) in self.values

    def met(self, values: Mapping[str, Any], written: Callable[[str], Any]) -> bool:
        """Whether it holds, given what is drawn and else what is written; a key that is neither meets none."""
        try:
            return self.holds(values[self.key] if self.key in values else written(self.key))
        except KeyError:
            return False


@dataclass(frozen=True)
class Parameter:
    """One searched config key.

    each: what is drawn. length: for a list of variable length, how many; its entries are named KEY.0, KEY.1 and so
    on, its length KEY.length. Choices that Optuna cannot hold (lists) are drawn as texts and read back by `options`.
    """

    key: str
    each: BaseDistribution
    length: IntDistribution | None = None
    when: Condition | None = None
    options: tuple[Any, ...] = ()

    def draw(self, draw: Draw) -> Any:
        if self.length is None:
            drawn = draw(self.key, self.each)
            return self._option(drawn) if self.options else drawn
        count = draw(f"{self.key}.length", self.length)
        return [draw(f"{self.key}.{i}", self.each) for i in range(count)]

    def names(self) -> dict[str, BaseDistribution]:
        """Every parameter name that this key may bring, with its distribution."""
        if self.length is None:
            return {self.key: self.each}
        entries = {f"{self.key}.{i}": self.each for i in range(self.length.high)}
        return {f"{self.key}.length": self.length, **entries}

    def log_scaled(self) -> bool:
        return isinstance(self.each, FloatDistribution | IntDistribution) and self.each.log

    def _option(self, drawn: str) -> Any:
        """The option that is written so. Raises KeyError where there is none."""
        return {in_grammar(o): o for o in self.options}[drawn]


@dataclass(frozen=True)
class SearchSpace:
    """The searched keys, those that a condition looks at before those that have the condition."""

    parameters: tuple[Parameter, ...]

    def draw(self, draw: Draw, written: Callable[[str], Any]) -> dict[str, Any]:
        """One point, key -> value for the config. `written` gives a key's value where nothing is drawn for it."""
        values: dict[str, Any] = {}
        for parameter in self.parameters:
            if parameter.when is not None and not parameter.when.met(values, written):
                continue
            values[parameter.key] = parameter.draw(draw)
        return values

    def written_point(self, written: Callable[[str], Any]) -> dict[str, Any]:
        """Parameter name -> value of the configuration as written; keys that lie outside the space are left out."""
        point: dict[str, Any] = {}
        for parameter in self.parameters:
            if parameter.when is not None and not parameter.when.met({}, written):
                continue
            found: dict[str, Any] = {}
            try:
                parameter.draw(_finder(parameter, written(parameter.key), found))
            except (NotInSpace, KeyError):
                continue
            point.update(found)
        return point

    def names(self) -> dict[str, BaseDistribution]:
        return {name: dist for p in self.parameters for name, dist in p.names().items()}

    def group_choices(self, groups: Iterable[str]) -> dict[str, tuple[Any, ...]]:
        """The searched config groups with the options that are searched."""
        wanted = set(groups)
        return {
            p.key: p.each.choices
            for p in self.parameters
            if p.key in wanted and isinstance(p.each, CategoricalDistribution)
        }

    def size(self) -> float:
        """How many points there are, conditions disregarded; inf where a float is searched."""
        size = 1.0
        for parameter in self.parameters:
            each = _count(parameter.each)
            if parameter.length is None:
                size *= each
            else:
                size *= sum(each**n for n in range(parameter.length.low, parameter.length.high + 1))
        return size

    def to_json(self) -> list[dict[str, Any]]:
        return [
            {
                "key": p.key,
                "each": distribution_to_json(p.each),
                "length": distribution_to_json(p.length) if p.length else None,
                "when": {"key": p.when.key, "values": list(p.when.values)} if p.when else None,
                "options": list(p.options),
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
                    Condition(d["when"]["key"], tuple(d["when"]["values"])) if d["when"] else None,
                    tuple(d["options"]),
                )
                for d in data
            )
        )

    def describe(self) -> dict[str, str]:
        """Key -> its draw in words, for people."""
        return {p.key: _describe(p) for p in self.parameters}

    def grew_from(self, old: SearchSpace) -> list[str]:
        """What keeps this space from holding every point of `old`, one line each; empty where it only grew."""
        lacking = []
        mine = {p.key: p for p in self.parameters}
        for before in old.parameters:
            now = mine.get(before.key)
            if now is None:
                lacking.append(f"{before.key}: no longer searched")
            elif (now.length is None) != (before.length is None) or now.when != before.when:
                lacking.append(f"{before.key}: {_describe(before)} became {_describe(now)}")
            elif not _holds(now.each, before.each) or (now.length and not _holds(now.length, before.length)):
                lacking.append(f"{before.key}: {_describe(now)} does not hold all of {_describe(before)}")
        return lacking


# Reading ------------------------------------------------------------------------------------------------------------


def parse(entries: Mapping[str, Any], problems: list[str]) -> tuple[SearchSpace, dict[str, Any]]:
    """Read search entries, key -> draw.

    Returns:
        The space, and the keys that were given one fixed value instead of a draw. Mistakes go to `problems`, each
        with key, value, rule and remedy.
    """
    parameters: dict[str, Parameter] = {}
    fixed: dict[str, Any] = {}
    for key, entry in entries.items():
        found = _parse_entry(key, entry, problems)
        if isinstance(found, Parameter):
            parameters[key] = found
        elif found is not None:
            fixed[key] = found.value
    return SearchSpace(tuple(_in_order(parameters, problems))), fixed


@dataclass(frozen=True)
class _Fixed:
    value: Any


def _parse_entry(key: str, entry: Any, problems: list[str]) -> Parameter | _Fixed | None:
    where = f"search.{key}"
    if isinstance(entry, str):
        return _parse_text(key, entry, where, problems)
    if not isinstance(entry, Mapping):
        return _Fixed(entry)
    unknown = set(entry) - {"length", "each", "when", "draw"}
    has_list, has_draw = {"length", "each"} <= set(entry), "draw" in entry
    if unknown or has_list == has_draw:
        problems.append(f"{where}: takes a draw, or `draw` with `when`, or `length` with `each`, got {dict(entry)}")
        return None
    found = _parse_text(key, str(entry["draw" if has_draw else "each"]), where, problems)
    length: IntDistribution | None = None
    if not isinstance(found, Parameter):
        if found is not None:
            problems.append(f"{where}: must be a draw such as interval(0, 1) or choice(a, b), got {dict(entry)}")
        return None
    if has_list:
        counted = _parse_text(key, str(entry["length"]), f"{where}.length", problems)
        if isinstance(counted, Parameter) and isinstance(counted.each, IntDistribution):
            length = counted.each
        if length is None or length.low < 1 or found.options:
            problems.append(
                f"{where}: length must be whole numbers from 1 up, e.g. int(interval(1, 3)), and each one "
                f"number or text, got {dict(entry)}"
            )
            return None
    when = _parse_condition(entry["when"], where, problems) if "when" in entry else None
    return Parameter(key, found.each, length, when, found.options)


def _parse_condition(text: Any, where: str, problems: list[str]) -> Condition | None:
    key, equals, values = str(text).partition("=")
    if not equals or not key.strip() or not values.strip():
        problems.append(f"{where}.when: must be KEY=VALUE or KEY=VALUE,VALUE, got {text!r}")
        return None
    return Condition(key.strip(), tuple(v.strip() for v in values.split(",")))


def _parse_text(key: str, text: str, where: str, problems: list[str]) -> Parameter | _Fixed | None:
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.core.override_parser.types import ChoiceSweep, IntervalSweep, RangeSweep
    from hydra.errors import HydraException

    try:
        override = OverridesParser.create().parse_override(f"{key}={text}")
    except HydraException as error:
        reason = str(error).splitlines()[0]
        problems.append(
            f"{where}: must be in Hydra's sweep grammar, e.g. interval(0, 1), int(interval(1, 8)), "
            f"range(32, 257, 32) or choice(a, b), got {text!r}: {reason}"
        )
        return None
    if not override.is_sweep_override():
        return _Fixed(override.value())
    sweep: Any = override._value  # the only way to a sweep's ends
    tags: set[str] = getattr(sweep, "tags", set())  # a glob has none
    log, unknown = "log" in tags, sorted(tags - {"log"})
    if unknown:
        problems.append(f"{where}: the only tag is log, got {', '.join(unknown)} in {text!r}")
        return None
    try:
        if isinstance(sweep, ChoiceSweep):
            return _choice(key, override, log)
        if isinstance(sweep, IntervalSweep):
            return Parameter(key, _interval(sweep.start, sweep.end, log))
        if isinstance(sweep, RangeSweep):
            return Parameter(key, _range(sweep, log))
        raise ValueError("must be an interval, a range or a choice")
    except ValueError as error:
        problems.append(f"{where}: {error}, got {text!r}")
        return None


def _choice(key: str, override: Any, log: bool) -> Parameter:
    if log:
        raise ValueError("log has no meaning for a choice; take tag(log, interval(LOW, HIGH))")
    if override._value.shuffle:
        raise ValueError("shuffle has no meaning here, the sampler decides on the order; leave it out")
    values = tuple(override.sweep_iterator(transformer=_plain_value))
    if len({in_grammar(v) for v in values}) < len(values):
        raise ValueError("choices must differ from one another")
    if all(v is None or isinstance(v, str | int | float | bool) for v in values):
        return Parameter(key, CategoricalDistribution(values))
    return Parameter(key, CategoricalDistribution(tuple(in_grammar(v) for v in values)), options=values)


def _interval(low: Any, high: Any, log: bool) -> BaseDistribution:
    if not (math.isfinite(low) and math.isfinite(high)):
        raise ValueError("interval needs two finite ends")
    if not low < high:
        raise ValueError("interval needs low < high")
    if log and low <= 0:
        raise ValueError("a logarithmic interval needs low > 0")
    if isinstance(low, int) and isinstance(high, int):
        return IntDistribution(low, high, log=log)
    return FloatDistribution(float(low), float(high), log=log)


def _range(sweep: Any, log: bool) -> BaseDistribution:
    if log:
        raise ValueError("a range has steps and can't be logarithmic; take tag(log, int(interval(LOW, HIGH)))")
    if sweep.shuffle:
        raise ValueError("shuffle has no meaning here, the sampler decides on the order; leave it out")
    if sweep.step <= 0:
        raise ValueError("range needs a step above 0")
    values = list(sweep.range())
    if len(values) < 2:
        raise ValueError("range(START, STOP, STEP) needs two values or more, its stop is excluded")
    if all(isinstance(v, int) for v in values):
        return IntDistribution(values[0], values[-1], step=sweep.step)
    return FloatDistribution(float(values[0]), float(values[-1]), step=float(sweep.step))


def _plain_value(value: Any) -> Any:
    from hydra.core.override_parser.types import QuotedString

    if isinstance(value, QuotedString):
        return value.text
    if isinstance(value, list):
        return [_plain_value(v) for v in value]
    if isinstance(value, dict):
        return {str(_plain_value(k)): _plain_value(v) for k, v in value.items()}
    return value


def _in_order(parameters: dict[str, Parameter], problems: list[str]) -> list[Parameter]:
    """As they were written, but a condition's key first."""
    ordered: list[Parameter] = []
    placing: list[str] = []

    def place(parameter: Parameter) -> None:
        if parameter in ordered:
            return
        if parameter.key in placing:
            problems.append(
                f"search.{parameter.key}.when: conditions must not go round in a circle, "
                f"got {' -> '.join([*placing, parameter.key])}"
            )
            return
        placing.append(parameter.key)
        if parameter.when is not None and parameter.when.key in parameters:
            place(parameters[parameter.when.key])
        placing.pop()
        if parameter not in ordered:
            ordered.append(parameter)

    for parameter in parameters.values():
        place(parameter)
    return ordered


# Small words --------------------------------------------------------------------------------------------------------


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


def _finder(parameter: Parameter, written: Any, found: dict[str, Any]) -> Draw:
    """A draw that returns what is written, and notes it, or raises NotInSpace."""

    def find(name: str, dist: BaseDistribution) -> Any:
        if parameter.length is None:
            value = in_grammar(written) if parameter.options else written
        elif not isinstance(written, list):
            raise NotInSpace(name)
        else:
            value = len(written) if name.endswith(".length") else written[int(name.rsplit(".", 1)[1])]
        if not _contains(dist, value):
            raise NotInSpace(name)
        found[name] = float(value) if isinstance(dist, FloatDistribution) else value
        return found[name]

    return find


def _contains(dist: BaseDistribution, value: Any) -> bool:
    if isinstance(dist, CategoricalDistribution):
        return any(value == c and isinstance(value, bool) == isinstance(c, bool) for c in dist.choices)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return not (isinstance(dist, IntDistribution) and value != int(value)) and dist._contains(float(value))


def _count(dist: BaseDistribution) -> float:
    if isinstance(dist, CategoricalDistribution):
        return len(dist.choices)
    assert isinstance(dist, FloatDistribution | IntDistribution)
    return math.inf if dist.step is None else round((dist.high - dist.low) / dist.step) + 1


def _describe(parameter: Parameter) -> str:
    text = _describe_draw(parameter.each)
    if parameter.length is not None:
        text = f"{parameter.length.low} to {parameter.length.high} of {text}"
    if parameter.when is not None:
        text += f" when {parameter.when.key}={','.join(parameter.when.values)}"
    return text


def _describe_draw(dist: BaseDistribution) -> str:
    if isinstance(dist, CategoricalDistribution):
        return f"choice({', '.join(in_grammar(c) for c in dist.choices)})"
    assert isinstance(dist, FloatDistribution | IntDistribution)
    text = f"{dist.low} to {dist.high}"
    if dist.step is not None and (isinstance(dist, FloatDistribution) or dist.step != 1):
        text += f" in steps of {dist.step}"
    return text + (", log" if dist.log else "")


def _holds(now: BaseDistribution, before: BaseDistribution | None) -> bool:
    """Whether every value of `before` is one of `now`."""
    if isinstance(now, CategoricalDistribution) and isinstance(before, CategoricalDistribution):
        return all(_contains(now, c) for c in before.choices)
    if type(now) is not type(before):
        return False
    assert isinstance(now, FloatDistribution | IntDistribution)
    assert isinstance(before, FloatDistribution | IntDistribution)
    steps_fit = now.step == before.step or now.step is None or (isinstance(now, IntDistribution) and now.step == 1)
    return steps_fit and _contains(now, before.low) and _contains(now, before.high)
