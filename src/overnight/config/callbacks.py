"""The node `callbacks`: a mapping, or a list as some projects have it, of Lightning callbacks by `_target_`."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

NODE = "callbacks"


def normalised(tree: dict[str, Any]) -> dict[str, Any]:
    """Return a config with `callbacks` as a mapping, and without the node where it is empty.

    Studies of earlier versions have no such node, and must find their config unchanged. The callbacks of a list are
    named by their classes: EarlyStopping is early_stopping.
    """
    node = tree.get(NODE)
    if isinstance(node, list):
        node = _named(node)
    without = {key: value for key, value in tree.items() if key != NODE}
    return {**without, NODE: node} if node else without


def problems(node: Any) -> Iterator[str]:
    """Yield what is wrong with the node, one line each. node: normalised; None where there is none."""
    rule = "must be a mapping with a _target_, the class of a callback, or null for none"
    if node is not None and not isinstance(node, Mapping):
        yield f"{NODE}: must be a mapping from name to callback, or a list of callbacks, got {node!r}"
        return
    for name, entry in (node or {}).items():
        if entry is not None and not (isinstance(entry, Mapping) and isinstance(entry.get("_target_"), str)):
            yield f"{NODE}.{name}: {rule}, got {entry!r}"


def _named(entries: list[Any]) -> dict[str, Any]:
    named: dict[str, Any] = {}
    for number, entry in enumerate(entries):
        target = entry.get("_target_") if isinstance(entry, Mapping) else None
        words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", str(target or number).rpartition(".")[2]).lower()
        name = words if words not in named else f"{words}_{number}"
        named[name] = entry
    return named
