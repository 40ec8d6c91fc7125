"""Reads the entries of a search space into parameters.

An entry is a config key with one of these:

- a sweep in Hydra's grammar (`interval(0, 1)`, `choice(a, b)`),
- one value, which fixes the key,
- a list of variable length (`length`, `each`),
- an Optuna distribution as a dictionary,
- a draw with conditions (`draw`, `when`),
- a choice whose options bring a space of their own (`choice: {OPTION: {KEY: ...}}`).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from overnight.config.override_parser import parse_override
from overnight.config.problems import Problems
from overnight.config.trees import is_dotted
from overnight.config.values import fingerprint, to_text
from overnight.search.grammar import FixedValue, choice, is_distribution, read_draw, unquoted
from overnight.search.space import Condition, Parameter, SearchSpace

_FORMS = (
    "takes a draw such as interval(0, 1), a value, or a mapping: draw with when, length with each, choice with a "
    "space for each option, or an Optuna distribution with its name (or type)"
)


@dataclass(frozen=True)
class _Entry:
    """A key with its draw and the conditions of the draw. label: the beginning of messages."""

    key: str
    draw: Any
    when: tuple[Condition, ...]
    label: str


def parse_space(
    entries: Mapping[str, Any],
    problems: Problems,
    fixed: Collection[str] = (),
    sweeps: Mapping[str, str] | None = None,
) -> tuple[SearchSpace, dict[str, Any]]:
    """Read search entries, key -> draw. Adds mistakes to `problems`.

    Args:
        fixed: Keys with one value for this run. Their entries are left out.
        sweeps: Key -> draw that replaces the entry of the key. The conditions of the entry stay.

    Returns:
        The space; and key -> value of the entries with one value.
    """
    flat = [e for key, raw in entries.items() for e in _flatten(_Entry(key, raw, (), f"search.{key}"), problems)]
    flat = _apply_sweeps([e for e in flat if e.key not in fixed], sweeps or {})
    parameters: list[Parameter] = []
    values: dict[str, Any] = {}
    for entry in flat:
        found = _read_entry(entry, problems)
        if isinstance(found, Parameter):
            parameters.append(found)
        elif found is not None:
            values[entry.key] = found.value
    return SearchSpace(tuple(in_order(_with_suffixes(parameters, problems), problems))), values


def options_of(text: str) -> list[Any]:
    """The options of a choice in Hydra's grammar; empty where it is not a choice, or has a mistake."""
    found = read_draw("x", text, "x", Problems())
    return list(found.options) if isinstance(found, Parameter) else []


# From mappings to flat entries --------------------------------------------------------------------------------------


def _flatten(entry: _Entry, problems: Problems) -> list[_Entry]:
    """The entry with its conditions; for a choice with spaces, the entries of all spaces as well."""
    raw, label = entry.draw, entry.label
    if not isinstance(raw, Mapping):
        return [entry]
    raw = dict(raw)
    before = len(problems)
    if "when" in raw:
        entry = replace(entry, when=(*entry.when, *_conditions(raw.pop("when"), label, problems)))
    if "choice" in raw:
        return _flatten_choice(entry, raw, problems)
    if set(raw) == {"draw"}:
        return _flatten(replace(entry, draw=raw["draw"]), problems)
    if set(raw) == {"length", "each"} or is_distribution(raw):
        return [replace(entry, draw=raw)]
    if len(problems) == before:
        problems.add(f"{label}: {_FORMS}; got {entry.draw}")
    return []


def _flatten_choice(entry: _Entry, raw: Mapping[str, Any], problems: Problems) -> list[_Entry]:
    """The choice, and the entries of each option's space under the condition that the option is drawn.

    An entry that all options share has no condition. An entry that some options share is one draw.
    """
    spaces = raw["choice"]
    is_mapping = isinstance(spaces, Mapping) and all(isinstance(space, Mapping | None) for space in spaces.values())
    if not is_mapping or not spaces or len(raw) > 1:
        problems.add(
            f"{entry.label}: choice takes a mapping from option to the space that it brings (nothing for none), "
            f"e.g. choice: {{adam: , sgd: {{optimizer.momentum: 'interval(0, 0.99)'}}}}; got {entry.draw}"
        )
        return []
    options_with: dict[tuple[str, str], list[Any]] = {}
    draws: dict[tuple[str, str], Any] = {}
    for option, space in spaces.items():
        for key, draw in (space or {}).items():
            options_with.setdefault((key, to_text(draw)), []).append(option)
            draws[key, to_text(draw)] = draw
    flat = [replace(entry, draw={"type": "categorical", "choices": [*spaces]})]
    for (key, text), options in options_with.items():
        when = (Condition(entry.key, tuple(options)),) if len(options) < len(spaces) else ()
        label = f"{entry.label}.{options[0]}.{key}" if when else f"search.{key}"
        flat += _flatten(_Entry(key, draws[key, text], (*entry.when, *when), label), problems)
    return flat


def _apply_sweeps(entries: list[_Entry], sweeps: Mapping[str, str]) -> list[_Entry]:
    swept = [replace(e, draw=sweeps[e.key], label=f"search.{e.key}") if e.key in sweeps else e for e in entries]
    known = {e.key for e in entries}
    swept += [_Entry(key, text, (), f"search.{key}") for key, text in sweeps.items() if key not in known]
    return list({(e.key, fingerprint(e.draw), tuple(map(str, e.when))): e for e in swept}.values())


def _conditions(given: Any, label: str, problems: Problems) -> Iterable[Condition]:
    from hydra.core.override_parser.types import ChoiceSweep

    for text in given if isinstance(given, list) else [given]:
        try:
            override = parse_override(str(text))
            if not override.is_sweep_override():
                values = (override.value(),)
            elif isinstance(override.value(), ChoiceSweep):
                values = tuple(override.sweep_iterator(transformer=unquoted))
            else:  # an interval or a range, which may have no end
                raise ValueError
            if not override.input_line or override.is_add() or override.is_delete() or str(text).rstrip().endswith("="):
                raise ValueError
        except ValueError:
            problems.add(f"{label}.when", "must be KEY=VALUE or KEY=VALUE,VALUE, or a list of such", text)
        else:
            yield Condition(override.key_or_group, values)


# From entries to parameters -----------------------------------------------------------------------------------------


def _read_entry(entry: _Entry, problems: Problems) -> Parameter | FixedValue | None:
    """Read an entry. A fixed value with conditions is a choice with one option."""
    if not is_dotted(entry.key):
        problems.add(f"{entry.label}: must be a key that a command can name: letters, digits, _ and -, joined by dots")
        return None
    found = read_draw(entry.key, entry.draw, entry.label, problems)
    if found is None or not entry.when:
        return found
    if isinstance(found, Parameter):
        return replace(found, when=entry.when)
    try:
        return replace(choice(entry.key, (found.value,)), when=entry.when)
    except ValueError as error:
        problems.add(entry.label, str(error), found.value)
        return None


def _with_suffixes(parameters: list[Parameter], problems: Problems) -> list[Parameter]:
    """Add suffixes to the names where options of a choice draw the same key from different distributions."""
    result: list[Parameter] = []
    for parameter in parameters:
        others = [p for p in parameters if p.key == parameter.key and p is not parameter]
        for other in others:
            if not _exclude_each_other(parameter, other):
                problems.add(
                    f"search.{parameter.key}: must be given once, or in options that exclude one another, got "
                    f"{' and '.join(sorted((parameter.describe(), other.describe())))}; leave one out"
                )
        if any((p.each, p.length, p.options) != (parameter.each, parameter.length, parameter.options) for p in others):
            values = [to_text(v) for c in parameter.when for v in c.values]
            parameter = replace(parameter, suffix=f"@{','.join(values)}")
        result.append(parameter)
    return result


def _exclude_each_other(one: Parameter, other: Parameter) -> bool:
    """Whether no trial draws both."""
    return any(a.key == b.key and not any(b.holds(v) for v in a.values) for a in one.when for b in other.when)


def in_order(parameters: list[Parameter], problems: Problems) -> list[Parameter]:
    """The parameters in their order, but with the key of a condition before the parameter that has the condition."""
    ordered: list[Parameter] = []
    visiting: list[str] = []

    def visit(parameter: Parameter) -> None:
        if parameter in ordered:
            return
        if parameter.key in visiting:
            problems.add(
                f"search.{parameter.key}.when: conditions must not form a circle, "
                f"got {' -> '.join([*visiting, parameter.key])}; drop one of them"
            )
            return
        visiting.append(parameter.key)
        for condition in parameter.when:
            for required in parameters:
                if required.key == condition.key:
                    visit(required)
        visiting.pop()
        if parameter not in ordered:
            ordered.append(parameter)

    for parameter in parameters:
        visit(parameter)
    return ordered
