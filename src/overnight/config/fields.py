"""Dataclass fields with rules: dataclasses that are built from a mapping, with every mistake reported at once."""

from __future__ import annotations

import dataclasses
import difflib
import math
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from dataclasses import field
from typing import Any, Literal

from overnight.config import credentials
from overnight.config.problems import Problems

_TYPE_NAMES = {int: "a whole number", float: "a number", str: "a text"}


def rule(text: str, holds: Callable[[Any], bool], default: Any = dataclasses.MISSING) -> Any:
    """Declare a field with a rule. None passes where the type of the field allows it."""
    return field(default=default, metadata={"rule": text, "holds": holds})


def at_least(low: int, default: Any = dataclasses.MISSING) -> Any:
    """Declare a field of numbers, `low` included."""
    return rule(f"must be at least {low}", lambda v: v >= low, default)


def nearest(word: str, known: Iterable[str], and_add: bool = False) -> str:
    """The end of a message: the known word that is nearest to `word`, or where all keys are listed.

    A key without its section, such as `trials`, is nearest to the key that ends with it.
    """
    words = list(known)
    close = [w for w in words if w.endswith(f".{word}")] or difflib.get_close_matches(word, words, n=1, cutoff=0.6)
    hint = f"; did you mean {close[0]}?" if close else "; `overnight tune --cfg` prints every key"
    return hint + (f" (to hand a new key to the class: +{word}=...)" if and_add else "")


def build_section(section: Any, node: Any, path: str, problems: Problems) -> Any:
    """Build the dataclass `section` from a mapping. Adds every mistake to `problems` and then returns None."""
    if not isinstance(node, Mapping):
        problems.add(path, "must be a mapping", node)
        return None
    before, values, hints = len(problems), {}, typing.get_type_hints(section)
    fields = {f.name: f for f in dataclasses.fields(section)}
    for key in node:
        if key not in fields:
            problems.add(f"{path}.{key}: no such key" + nearest(f"{path}.{key}", [f"{path}.{f}" for f in fields]))
    for name, declared in fields.items():
        if name in node:
            values[name] = check_value(declared, hints[name], node[name], f"{path}.{name}", problems)
        elif declared.default is dataclasses.MISSING and declared.default_factory is dataclasses.MISSING:
            problems.add(f"{path}.{name}: missing; config.yaml must hold it")
    return section(**values) if len(problems) == before else None


def check_value(declared: dataclasses.Field[Any], kind: Any, value: Any, path: str, problems: Problems) -> Any:
    """Convert a value to what the field `declared`, of type `kind`, holds. Adds its mistakes to `problems`."""
    kinds = typing.get_args(kind) if typing.get_origin(kind) in (types.UnionType, typing.Union) else (kind,)
    if value is None and type(None) in kinds:
        return None
    section = next((k for k in kinds if dataclasses.is_dataclass(k)), None)
    if section is not None:
        return build_section(section, value, path, problems)
    if kind is Any:
        return _check_any(declared, value, path, problems)
    literal = next((k for k in kinds if typing.get_origin(k) is Literal), None)
    if literal is not None:
        return _check_choice(typing.get_args(literal), value, path, problems)
    if any(typing.get_origin(k) is dict for k in kinds):
        if not isinstance(value, Mapping):
            problems.add(path, "must be a mapping", value)
        return value
    if typing.get_origin(kind) is tuple:
        return _check_entries(value, path, problems)
    if typing.get_origin(kind) is list:
        return _check_list(kind, value, path, problems)
    return _check_scalar(declared, next(k for k in kinds if k is not type(None)), value, path, problems)


def _check_choice(options: tuple[Any, ...], value: Any, path: str, problems: Problems) -> Any:
    if value not in options:
        hint = nearest(value, map(str, options)) if isinstance(value, str) else ""
        problems.add(f"{path}: must be one of {', '.join(map(str, options))}, got {value!r}{hint}")
    return value


def _check_any(declared: dataclasses.Field[Any], value: Any, path: str, problems: Problems) -> Any:
    """Check a value whose rule alone says which types it may have. None always passes."""
    if value is not None and not declared.metadata["holds"](value):
        problems.add(path, declared.metadata["rule"], value)
    return value


def _check_entries(value: Any, path: str, problems: Problems) -> tuple[dict[str, Any], ...]:
    if isinstance(value, list | tuple) and all(isinstance(v, Mapping) for v in value):
        return tuple({str(k): v for k, v in entry.items()} for entry in value)
    problems.add(path, "must be a list of mappings from searched key to value, e.g. [{optimizer.lr: 0.01}]", value)
    return ()


def _check_list(kind: Any, value: Any, path: str, problems: Problems) -> list[Any]:
    (options,) = (typing.get_args(entry) for entry in typing.get_args(kind))
    if options:
        if not isinstance(value, list) or not set(map(str, value)) <= set(options):
            problems.add(path, f"must be a list of some of {', '.join(options)}", value)
    elif not isinstance(value, list) or not all(isinstance(v, str) and "://" in v for v in value):
        # Addresses may hold secrets, so the message does not repeat them.
        problems.add(path, "must be a list of addresses such as mailto://NAME:PASSWORD@example.com")
    return value


def _check_scalar(declared: dataclasses.Field[Any], kind: type, value: Any, path: str, problems: Problems) -> Any:
    if kind is bool:
        if not isinstance(value, bool):
            problems.add(path, "must be true or false", value)
        return value
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if not isinstance(value, kind) or isinstance(value, bool):
        # YAML reads 23:00 as a number of minutes.
        remedy = "a time in a YAML file needs quotes: '23:00'" if declared.name == "until" else ""
        problems.add(path, f"must be {_TYPE_NAMES[kind]}", value, remedy)
    elif isinstance(value, float) and not math.isfinite(value):
        problems.add(path, "must be finite", value)
    elif "holds" in declared.metadata and not declared.metadata["holds"](value):
        shown = credentials.mask_credentials(value) if isinstance(value, str) else value
        problems.add(path, declared.metadata["rule"], shown)
    return value
