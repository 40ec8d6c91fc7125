"""Composed configs as trees of dicts and lists: keys, types, values, YAML."""

from __future__ import annotations

import copy
import functools
import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

# A part of a key in an override of Hydra.
_NAME = re.compile(r"[A-Za-z_$][\w$-]*|0|[1-9][0-9]*", re.ASCII)


def look_up(tree: Mapping[str, Any], key: str) -> Any:
    """The value at a dotted key. Raises KeyError for a key that the tree lacks."""
    node: Any = tree
    for part in key.split("."):
        if not isinstance(node, Mapping):
            raise KeyError(key)
        node = node[part]
    return node


def has_key(tree: Mapping[str, Any], key: str) -> bool:
    """Whether the tree has a dotted key."""
    try:
        look_up(tree, key)
    except KeyError:
        return False
    return True


def keys_of(tree: Mapping[str, Any], prefix: str = "") -> list[str]:
    """All dotted keys of a tree, with those of inner nodes, but without those of the search space."""
    keys: list[str] = []
    for key, value in tree.items():
        path = f"{prefix}{key}"
        keys.append(path)
        if isinstance(value, Mapping) and path != "search":
            keys.extend(keys_of(value, f"{path}."))
    return keys


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Dotted key -> value of every leaf of a tree.

    A mapping with a key that is no name, such as {0: 1.0}, is a leaf: no dotted key leads into it. So is an empty one.
    """
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        is_tree = isinstance(value, Mapping) and value and all(map(_is_name, value))
        flat |= flatten(value, f"{prefix}{key}.") if is_tree else {f"{prefix}{key}": value}
    return flat


def is_dotted(key: str) -> bool:
    """Whether an override in Hydra's grammar can name a key: names and whole numbers, joined by dots."""
    return all(map(_is_name, key.split(".")))


def _is_name(key: Any) -> bool:
    return isinstance(key, str) and _NAME.fullmatch(key) is not None


def type_problem(present: Any, value: Any) -> str | None:
    """Why `value` can't take the place of the value that is present in a config, or None.

    Both must be numbers, both booleans, both texts, both lists or both mappings. None and interpolations always fit.
    """
    if present is None or value is None or (isinstance(value, str) and "${" in value):
        return None
    for kind, name in (
        (bool, "true or false"),
        ((int, float), "a number"),
        (str, "a text"),
        ((list, tuple), "a list"),
        (Mapping, "a mapping"),
    ):
        if isinstance(present, kind):
            fits = isinstance(value, kind) and (kind is bool or not isinstance(value, bool))
            if fits and isinstance(value, float) and not math.isfinite(value):
                return f"must be finite, got {value!r}"
            return None if fits else f"must be {name}, got {value!r}"
    return None


def to_plain(config: Any, resolve: bool = True, only: Iterable[str] | None = None) -> dict[str, Any]:
    """Convert an OmegaConf config to dicts and lists. only: the top-level keys to convert; None for all."""
    from omegaconf import OmegaConf

    tree: Any = OmegaConf.to_container(config, resolve=resolve)
    return {str(k): v for k, v in tree.items() if only is None or str(k) in only}


def with_values(variant: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of a variant's tree with `values` (dotted key -> value) set and all interpolations resolved."""
    if not _interpolates(variant) and not _interpolates(values):  # OmegaConf takes 5 to 15 ms
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
    """Load a YAML file without composing it. libyaml, where it is installed, takes a tenth of the time."""
    import yaml

    return yaml.load(path.read_text("utf-8"), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))


def to_yaml(tree: Mapping[str, Any]) -> str:
    """Write a tree as YAML that Hydra reads back unchanged.

    OmegaConf would take ten times as long, and every trial writes one.
    """
    import yaml

    text = yaml.dump(dict(tree), Dumper=_dumper(), default_flow_style=False, allow_unicode=True, sort_keys=False)
    return str(text)


@functools.cache
def _dumper() -> type[Any]:
    """A dumper that quotes texts such as 1e-3, which are numbers for Hydra and not for YAML."""
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
