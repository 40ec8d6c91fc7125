"""What a person writes as a search space, read into parameters.

An entry is a config key and one of: Hydra's sweep grammar (`interval(0, 1)`, `choice(a, b)`); one value, which fixes
the key; a list of variable length (`length`, `each`); an Optuna distribution as a dictionary; a draw with its
condition (`draw`, `when`); or a choice whose options bring a space of their own (`choice: {OPTION: {KEY: ...}}`).
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

from overnight.config.problems import Problems
from overnight.search.space import Condition, Parameter, SearchSpace, to_hydra

# How a distribution is called in a dictionary, and what it takes: Optuna's classes, and their short names.
_DISTRIBUTIONS = {
    "FloatDistribution": ("low", "high", "log", "step"),
    "IntDistribution": ("low", "high", "log", "step"),
    "CategoricalDistribution": ("choices",),
}
_SHORT = {"float": "FloatDistribution", "int": "IntDistribution", "categorical": "CategoricalDistribution"}
_FORMS = (
    "takes a draw such as interval(0, 1), a value, or a mapping: draw with when, length with each, choice with a "
    "space for each option, or an Optuna distribution with its name (or type)"
)


@dataclass(frozen=True)
class Entry:
    """A key and what is written for it, with the conditions under which it counts. where: for messages."""

    key: str
    draw: Any
    when: tuple[Condition, ...]
    where: str


def parse(
    entries: Mapping[str, Any],
    problems: Problems,
    fixed: Collection[str] = (),
    sweeps: Mapping[str, str] | None = None,
) -> tuple[SearchSpace, dict[str, Any]]:
    """Read search entries, key -> draw.

    Args:
        fixed: keys that have one value for this once, whatever is written for them.
        sweeps: key -> draw that takes the place of what is written for the key, under the conditions written there.

    Returns:
        The space, and the keys that were given one fixed value instead of a draw. Mistakes go to `problems`, each
        with key, value, rule and remedy.
    """
    flat = [e for key, raw in entries.items() for e in _flatten(Entry(key, raw, (), f"search.{key}"), problems)]
    flat = _swept([e for e in flat if e.key not in fixed], sweeps or {})
    parameters: list[Parameter] = []
    values: dict[str, Any] = {}
    for entry in flat:
        found = _read(entry, problems)
        if isinstance(found, Parameter):
            parameters.append(found)
        elif found is not None:
            values[entry.key] = found.value
    return SearchSpace(tuple(in_order(_named(parameters, problems), problems))), values


def options_of(text: str) -> list[Any]:
    """The options of a choice in Hydra's grammar; empty where it is none, or has a mistake."""
    found = _read_text(Entry("x", text, (), "x"), Problems())
    if not isinstance(found, Parameter) or not isinstance(found.each, CategoricalDistribution):
        return []
    return list(found.options or found.each.choices)


@dataclass(frozen=True)
class _Fixed:
    value: Any


# From mappings to entries ---------------------------------------------------------------------------------------------


def _flatten(entry: Entry, problems: Problems) -> list[Entry]:
    """An entry with its condition read off; of a choice with spaces, those of every option too."""
    raw, where = entry.draw, entry.where
    if not isinstance(raw, Mapping):
        return [entry]
    raw = dict(raw)
    told = len(problems)
    if "when" in raw:
        entry = replace(entry, when=(*entry.when, *_conditions(raw.pop("when"), where, problems)))
    if "choice" in raw:
        return _options(entry, raw, problems)
    form = set(raw)
    if form == {"draw"}:
        return _flatten(replace(entry, draw=raw["draw"]), problems)
    if form == {"length", "each"} or _is_distribution(raw):
        return [replace(entry, draw=raw)]
    if len(problems) == told:
        problems.add(f"{where}: {_FORMS}; got {entry.draw}")
    return []


def _options(entry: Entry, raw: Mapping[str, Any], problems: Problems) -> list[Entry]:
    """A choice whose options bring spaces: the choice, and each space under the condition that its option is drawn.

    What all options have alike is drawn in any case, and what some have alike is one draw.
    """
    spaces = raw["choice"]
    wrong = [o for o, space in spaces.items() if not isinstance(space, Mapping | None)] if _is_map(spaces) else []
    if not _is_map(spaces) or len(raw) > 1 or not spaces or wrong:
        problems.add(
            f"{entry.where}: choice takes a mapping from option to the space that it brings (nothing for none), "
            f"e.g. choice: {{adam: , sgd: {{optimizer.momentum: 'interval(0, 0.99)'}}}}; got {entry.draw}"
        )
        return []
    alike: dict[tuple[str, str], list[Any]] = {}
    draws: dict[tuple[str, str], Any] = {}
    for option, space in spaces.items():
        for key, draw in (space or {}).items():
            alike.setdefault((key, to_hydra(draw)), []).append(option)
            draws[key, to_hydra(draw)] = draw
    flat = [replace(entry, draw={"type": "categorical", "choices": [*spaces]})]
    for (key, text), options in alike.items():
        when = (Condition(entry.key, tuple(options)),) if len(options) < len(spaces) else ()
        where = f"{entry.where}.{options[0]}.{key}" if when else f"search.{key}"
        flat += _flatten(Entry(key, draws[key, text], (*entry.when, *when), where), problems)
    return flat


def _swept(entries: list[Entry], sweeps: Mapping[str, str]) -> list[Entry]:
    swept = [replace(e, draw=sweeps[e.key], where=f"search.{e.key}") if e.key in sweeps else e for e in entries]
    known = {e.key for e in entries}
    swept += [Entry(key, text, (), f"search.{key}") for key, text in sweeps.items() if key not in known]
    return list({(e.key, str(e.draw), e.when): e for e in swept}.values())


def _conditions(given: Any, where: str, problems: Problems) -> Iterable[Condition]:
    for text in given if isinstance(given, list) else [given]:
        try:
            override = _hydra(str(text))
            if override.is_sweep_override():
                values = tuple(override.sweep_iterator(transformer=_plain_value))
            else:
                values = (override.value(),)
            if not override.input_line or override.is_add() or override.is_delete() or values == ("",):
                raise ValueError
        except ValueError:
            problems.add(f"{where}.when: must be KEY=VALUE or KEY=VALUE,VALUE, or a list of such, got {text!r}")
        else:
            yield Condition(override.key_or_group, values)


# From entries to parameters -------------------------------------------------------------------------------------------


def _read(entry: Entry, problems: Problems) -> Parameter | _Fixed | None:
    found = _read_draw(entry, problems)
    if isinstance(found, _Fixed) and entry.when:
        try:
            return replace(_chosen(entry.key, (found.value,)), when=entry.when)
        except ValueError as error:
            problems.add(f"{entry.where}: {error}, got {found.value!r}")
            return None
    return replace(found, when=entry.when) if isinstance(found, Parameter) else found


def _read_draw(entry: Entry, problems: Problems) -> Parameter | _Fixed | None:
    draw = entry.draw
    if isinstance(draw, Mapping):
        return _read_distribution(entry, draw, problems) if _is_distribution(draw) else _read_list(entry, problems)
    return _read_text(entry, problems) if isinstance(draw, str) else _Fixed(draw)


def _read_list(entry: Entry, problems: Problems) -> Parameter | None:
    found, counted = (
        _read_draw(replace(entry, draw=entry.draw[part], where=f"{entry.where}.{part}"), problems)
        for part in ("each", "length")
    )
    if found is None or counted is None:
        return None
    length = counted.each if isinstance(counted, Parameter) else None
    if isinstance(counted, _Fixed) and isinstance(counted.value, int) and counted.value > 0:
        length = IntDistribution(counted.value, counted.value)
    if not isinstance(length, IntDistribution) or length.low < 1 or length.step != 1:
        problems.add(
            f"{entry.where}: length must be whole numbers from 1 up, e.g. int(interval(1, 3)), got {entry.draw}"
        )
        return None
    if not isinstance(found, Parameter) or found.options:
        problems.add(
            f"{entry.where}: each must be a draw of numbers or texts, e.g. int(interval(16, 256)), got {entry.draw}"
        )
        return None
    return Parameter(entry.key, found.each, length)


def _read_distribution(entry: Entry, given: Mapping[str, Any], problems: Problems) -> Parameter | None:
    name = given.get("name", given.get("type"))
    kind = _SHORT.get(str(name), str(name))
    rest = {k: v for k, v in given.items() if k not in ("name", "type", "attributes")}
    attributes = given.get("attributes", rest)
    try:
        if kind not in _DISTRIBUTIONS:
            raise ValueError(f"there are {', '.join([*_DISTRIBUTIONS, *_SHORT])}")
        takes = _DISTRIBUTIONS[kind]
        if not _is_map(attributes) or ("attributes" in given and rest) or not set(attributes) <= {*takes}:
            raise ValueError(f"{kind} takes {', '.join(takes)}")
        lacking = [part for part in takes if part in ("low", "high", "choices") and part not in attributes]
        if lacking:
            raise ValueError(f"{kind} needs {', '.join(lacking)}")
        if kind == "CategoricalDistribution":
            if not isinstance(attributes["choices"], list | tuple) or not attributes["choices"]:
                raise ValueError("choices must be a list")
            return _chosen(entry.key, attributes["choices"])
        return Parameter(entry.key, _numeric(kind, attributes))
    except (ValueError, TypeError) as error:
        reason = str(error).removesuffix(".")
        problems.add(f"{entry.where}: must be a distribution as Optuna writes it: {reason}; got {dict(given)}")
        return None


def _numeric(kind: str, attributes: Mapping[str, Any]) -> BaseDistribution:
    low, high, log, step = (attributes.get(k) for k in ("low", "high", "log", "step"))
    whole = kind == "IntDistribution"
    numbers = [n for n in (low, high, step) if n is not None]
    for number in numbers:
        if isinstance(number, bool) or not isinstance(number, int if whole else int | float):
            raise ValueError(f"{kind} needs {'whole ' if whole else ''}numbers, not {number!r}")
        if not math.isfinite(number):
            raise ValueError("both ends must be finite")
    if log is not None and not isinstance(log, bool):
        raise ValueError(f"log must be true or false, not {log!r}")
    if whole:
        return IntDistribution(low, high, log=bool(log), step=1 if step is None else step)  # type: ignore[arg-type]
    return FloatDistribution(low, high, log=bool(log), step=step)  # type: ignore[arg-type]


def _read_text(entry: Entry, problems: Problems) -> Parameter | _Fixed | None:
    from hydra.core.override_parser.types import ChoiceSweep, IntervalSweep, RangeSweep

    key, text, where = entry.key, entry.draw, entry.where
    pasted = _pasted(text)
    if pasted is not None:
        return _read_distribution(entry, pasted, problems)
    try:
        override = _hydra(f"{key}={text}")
    except ValueError as error:
        problems.add(
            f"{where}: must be in Hydra's sweep grammar, e.g. interval(0, 1), int(interval(1, 8)), "
            f"range(32, 257, 32) or choice(a, b), got {text!r}: {error}"
        )
        return None
    if not override.is_sweep_override():
        return _Fixed(override.value())
    sweep: Any = override._value  # the only way to a sweep's ends
    tags: set[str] = getattr(sweep, "tags", set())  # a glob has none
    log, unknown = "log" in tags, sorted(tags - {"log"})
    if unknown:
        problems.add(f"{where}: the only tag is log, got {', '.join(unknown)} in {text!r}")
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
        problems.add(f"{where}: {error}, got {text!r}")
        return None


def _choice(key: str, override: Any, log: bool) -> Parameter:
    if log:
        raise ValueError("log has no meaning for a choice; take tag(log, interval(LOW, HIGH))")
    if override._value.shuffle:
        raise ValueError("shuffle has no meaning here, the sampler decides on the order; leave it out")
    return _chosen(key, override.sweep_iterator(transformer=_plain_value))


def _chosen(key: str, given: Iterable[Any]) -> Parameter:
    values = tuple(given)
    if len({to_hydra(v) for v in values}) < len(values) or len({str(v) for v in values}) < len(values):
        raise ValueError("choices must differ from one another, as texts too; leave one out")
    if all(v is None or isinstance(v, str | int | float | bool) for v in values):
        return Parameter(key, CategoricalDistribution(values))
    return Parameter(key, CategoricalDistribution(tuple(to_hydra(v) for v in values)), options=values)


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


# Several draws of one key, and their order ----------------------------------------------------------------------------


def _named(parameters: list[Parameter], problems: Problems) -> list[Parameter]:
    """Names told apart where options of a choice draw the same key differently."""
    named: list[Parameter] = []
    for parameter in parameters:
        others = [p for p in parameters if p.key == parameter.key and p is not parameter]
        for other in others:
            if not _exclude(parameter, other):
                problems.add(
                    f"search.{parameter.key}: must be given once, or in options that exclude one another, got "
                    f"{' and '.join(sorted((parameter.describe(), other.describe())))}; leave one out"
                )
        if any((p.each, p.length, p.options) != (parameter.each, parameter.length, parameter.options) for p in others):
            values = [to_hydra(v) for c in parameter.when for v in c.values]
            parameter = replace(parameter, suffix=f"@{','.join(values)}")
        named.append(parameter)
    return named


def _exclude(one: Parameter, other: Parameter) -> bool:
    """Whether no trial draws both."""
    return any(a.key == b.key and not any(b.holds(v) for v in a.values) for a in one.when for b in other.when)


def in_order(parameters: list[Parameter], problems: Problems) -> list[Parameter]:
    """As they were written, but a condition's key first."""
    ordered: list[Parameter] = []
    placing: list[str] = []

    def place(parameter: Parameter) -> None:
        if parameter in ordered:
            return
        if parameter.key in placing:
            problems.add(
                f"search.{parameter.key}.when: conditions must not go round in a circle, "
                f"got {' -> '.join([*placing, parameter.key])}; drop one of them"
            )
            return
        placing.append(parameter.key)
        for condition in parameter.when:
            for asked in parameters:
                if asked.key == condition.key:
                    place(asked)
        placing.pop()
        if parameter not in ordered:
            ordered.append(parameter)

    for parameter in parameters:
        place(parameter)
    return ordered


# Small parts ----------------------------------------------------------------------------------------------------------


def _hydra(text: str) -> Any:
    """Hydra's reading of KEY=VALUE. Raises ValueError with its reason where it is no such thing."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    try:
        return OverridesParser.create().parse_override(text)
    except HydraException as error:
        raise ValueError(str(error).splitlines()[0]) from error


def _plain_value(value: Any) -> Any:
    from hydra.core.override_parser.types import QuotedString

    if isinstance(value, QuotedString):
        return value.text
    if isinstance(value, list):
        return [_plain_value(v) for v in value]
    if isinstance(value, dict):
        return {str(_plain_value(k)): _plain_value(v) for k, v in value.items()}
    return value


def _is_map(value: Any) -> bool:
    return isinstance(value, Mapping)


def _is_distribution(raw: Mapping[str, Any]) -> bool:
    return isinstance(raw.get("name", raw.get("type")), str) and not {"draw", "each", "length", "choice"} & set(raw)


def _pasted(text: str) -> Mapping[str, Any] | None:
    """A distribution in the text that `optuna.distributions.distribution_to_json` makes."""
    if not text.lstrip().startswith("{"):
        return None
    try:
        found = json.loads(text)
    except ValueError:
        return None
    return found if _is_map(found) and _is_distribution(found) else None
