"""Fields with rules: dataclasses that are built from a mapping, with every mistake that it holds.

Mistakes are collected, never raised one at a time: a person who made three hears of three.
"""

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


def rule(text: str, holds: Callable[[Any], bool], default: Any = dataclasses.MISSING) -> Any:
    """A dataclass field with a rule; None passes where the field's type allows it."""
    return field(default=default, metadata={"rule": text, "holds": holds})


def at_least(low: int, default: Any = dataclasses.MISSING) -> Any:
    """A dataclass field of numbers from `low` on."""
    return rule(f"must be at least {low}", lambda v: v >= low, default)


def nearest(word: str, known: Iterable[str], and_add: bool = False) -> str:
    """A hint at the known word that comes nearest, to be put at the end of a message."""
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    hint = f"; did you mean {close[0]}?" if close else "; `overnight tune --cfg` prints every key"
    return hint + (f" (to hand a new key to the class: +{word}=...)" if and_add else "")


def listed(words: Iterable[str]) -> str:
    """Words as a message shows them."""
    return ", ".join(words)


def build(kind: Any, node: Any, path: str, problems: Problems) -> Any:
    """An instance of the dataclass `kind` from a mapping; notes every mistake and then returns None."""
    if not isinstance(node, Mapping):
        problems.add(f"{path}: must be a mapping, got {node!r}")
        return None
    before, values, hints = len(problems), {}, typing.get_type_hints(kind)
    fields = {f.name: f for f in dataclasses.fields(kind)}
    for key in node:
        if key not in fields:
            problems.add(f"{path}.{key}: no such key" + nearest(f"{path}.{key}", [f"{path}.{f}" for f in fields]))
    for name, declared in fields.items():
        if name in node:
            values[name] = checked(declared, hints[name], node[name], f"{path}.{name}", problems)
        elif declared.default is dataclasses.MISSING and declared.default_factory is dataclasses.MISSING:
            problems.add(f"{path}.{name}: missing; config.yaml must hold it")
    return kind(**values) if len(problems) == before else None


def checked(declared: dataclasses.Field[Any], kind: Any, value: Any, path: str, problems: Problems) -> Any:
    """A value as the field `declared`, of the type `kind`, takes it; notes what is wrong with it."""
    if dataclasses.is_dataclass(kind):
        return build(kind, value, path, problems)
    allowed = typing.get_args(kind) if isinstance(kind, types.UnionType) else (kind,)
    if value is None and type(None) in allowed:
        return None
    sections = [kind for kind in allowed if dataclasses.is_dataclass(kind)]
    if sections:
        return build(sections[0], value, path, problems)
    if typing.get_origin(kind) is Literal:
        options = typing.get_args(kind)
        if value not in options:
            hint = nearest(value, map(str, options)) if isinstance(value, str) else ""
            problems.add(f"{path}: must be one of {listed(map(str, options))}, got {value!r}{hint}")
        return value
    if typing.get_origin(kind) is tuple:
        if not isinstance(value, list | tuple) or not all(isinstance(v, Mapping) for v in value):
            problems.add(
                f"{path}: must be a list of mappings from searched key to value, e.g. [{{optimizer.lr: 0.01}}], "
                f"got {value!r}"
            )
            return ()
        return tuple({str(k): v for k, v in entry.items()} for entry in value)
    if typing.get_origin(kind) is list:
        (options,) = (typing.get_args(entry) for entry in typing.get_args(kind))
        if not options:  # of texts: addresses, which no message may repeat
            if isinstance(value, list) and all(isinstance(v, str) and "://" in v for v in value):
                return value
            problems.add(f"{path}: must be a list of addresses such as mailto://NAME:PASSWORD@example.com")
            return []
        if not isinstance(value, list) or not set(map(str, value)) <= set(options):
            problems.add(f"{path}: must be a list of some of {listed(options)}, got {value!r}")
        return value
    base: type = next(t for t in allowed if t is not type(None))
    if base is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if not isinstance(value, base) or isinstance(value, bool):
        names = {int: "a whole number", float: "a number", str: "a text"}
        # YAML reads 23:00 as so many minutes.
        quoted = "; a time in a YAML file wants quotes: '23:00'" if declared.name == "until" else ""
        problems.add(f"{path}: must be {names[base]}, got {value!r}{quoted}")
    elif isinstance(value, float) and not math.isfinite(value):
        problems.add(f"{path}: must be finite, got {value!r}")
    elif "holds" in declared.metadata and not declared.metadata["holds"](value):
        shown = credentials.mask_credentials(value) if isinstance(value, str) else value
        problems.add(f"{path}: {declared.metadata['rule']}, got {shown!r}")
    return value
