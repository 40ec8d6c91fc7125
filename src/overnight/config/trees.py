"""Composed configs as plain trees: looked into, compared, filled in, written."""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any


def look_up(tree: Mapping[str, Any], key: str) -> Any:
    """The value at a dotted key. Raises KeyError where there is none."""
    node: Any = tree
    for part in key.split("."):
        if not isinstance(node, Mapping):
            raise KeyError(key)
        node = node[part]
    return node


def has_key(tree: Mapping[str, Any], key: str) -> bool:
    """Whether there is a dotted key."""
    try:
        look_up(tree, key)
    except KeyError:
        return False
    return True


def keys_of(tree: Mapping[str, Any], prefix: str = "") -> list[str]:
    """All dotted keys of a tree, nodes included; of the search space no more than its name."""
    keys: list[str] = []
    for key, value in tree.items():
        path = f"{prefix}{key}"
        keys.append(path)
        if isinstance(value, Mapping) and path != "search":
            keys.extend(keys_of(value, f"{path}."))
    return keys


def type_problem(written: Any, value: Any) -> str | None:
    """What is wrong with putting `value` where `written` stands in a config, or None.

    Numbers go for numbers, true and false for themselves, lists for lists; where null is written, or given, or an
    interpolation, anything goes.
    """
    if written is None or value is None or (isinstance(value, str) and "${" in value):
        return None
    for kind, name in (
        (bool, "true or false"),
        ((int, float), "a number"),
        (str, "a text"),
        ((list, tuple), "a list"),
        (Mapping, "a mapping"),
    ):
        if isinstance(written, kind):
            fits = isinstance(value, kind) and (kind is bool or not isinstance(value, bool))
            if fits and isinstance(value, float) and not math.isfinite(value):
                return f"must be finite, got {value!r}"
            return None if fits else f"must be {name}, got {value!r}"
    return None


def to_plain(config: Any, resolve: bool = True, only: Iterable[str] | None = None) -> dict[str, Any]:
    """What OmegaConf holds, as dicts and lists; of some of its top-level keys `only`, where they are named."""
    from omegaconf import OmegaConf

    tree: Any = OmegaConf.to_container(config, resolve=resolve)
    return {str(k): v for k, v in tree.items() if only is None or str(k) in only}


def with_values(variant: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """A variant's tree with `values` (dotted key -> value) put in and every interpolation resolved."""
    if not _interpolates(variant) and not _interpolates(values):  # and every trial is spared OmegaConf's 5 to 15 ms
        tree: dict[str, Any] = copy.deepcopy(dict(variant))
        for key, value in values.items():
            *path, last = key.split(".")
            node = tree
            for part in path:
                if not isinstance(node.get(part), dict):
                    node[part] = {}
                node = node[part]
            node[last] = copy.deepcopy(value)
        return tree
    from omegaconf import OmegaConf

    config = OmegaConf.create(copy.deepcopy(dict(variant)))
    for key, value in values.items():
        OmegaConf.update(config, key, value, merge=False)
    return to_plain(config)


def _interpolates(node: Any) -> bool:
    if isinstance(node, Mapping):
        return any(map(_interpolates, node.values()))
    if isinstance(node, list | tuple):
        return any(map(_interpolates, node))
    return isinstance(node, str) and "${" in node


def read_yaml(path: Path) -> Any:
    """What a YAML file holds, nothing composed; by libyaml where it is there, which takes a tenth of the time."""
    import yaml

    return yaml.load(path.read_text(), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))


def to_yaml(tree: Mapping[str, Any]) -> str:
    """A plain tree as YAML that Hydra reads back as it was.

    Without OmegaConf, which takes ten times as long: one is written for every trial.
    """
    import yaml

    written = yaml.dump(dict(tree), Dumper=_dumper(), default_flow_style=False, allow_unicode=True, sort_keys=False)
    return str(written)


@functools.cache
def _dumper() -> type[Any]:
    """YAML's own, which leaves no text bare that Hydra would take for a number where YAML does not, as 1e-3."""
    import yaml

    class Dumper(getattr(yaml, "CSafeDumper", yaml.SafeDumper)):  # type: ignore[misc]
        pass

    def text(dumper: Any, value: str) -> Any:
        return dumper.represent_scalar("tag:yaml.org,2002:str", value, style="'" if _is_number(value) else None)

    Dumper.add_representer(str, text)
    return Dumper


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
