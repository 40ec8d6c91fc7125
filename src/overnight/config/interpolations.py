"""Interpolations of a user's tree: which of them follow the search, and the values of all others."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from typing import Any

from overnight.config.trees import look_up
from overnight.config.values import escaped

# ${a.b}, ${.b} and ${..b}, and the name of a resolver in ${name:...}
_REFERENCE = re.compile(r"\$\{\s*(\.*\w[\w.-]*)\s*([:}])")


def settle(
    config: Any, part: Mapping[str, Any], raw: Mapping[str, Any], live: Collection[str], dead: Collection[str]
) -> dict[str, Any]:
    """Resolve the interpolations of a tree, except for those that depend on a node whose keys may be searched.

    A trial resolves what is left with its own values. So no trial needs the user's environment variables and
    resolvers, nor the keys that are not part of its configuration.

    Args:
        config: OmegaConf's tree.
        part: The keys of it to settle, as dicts and lists, unresolved.
        raw: The whole tree in this form.
        live: The top-level keys of nodes that may be searched.
        dead: Dotted keys below these nodes that no trial has.

    Raises:
        OmegaConfBaseException: An interpolation can't be resolved.
    """

    def walk(node: Any, plain: Any, path: tuple[str, ...]) -> Any:
        if isinstance(plain, Mapping):
            return {key: at(node, key, child, path) for key, child in plain.items()}
        if isinstance(plain, list):
            return [at(node, i, child, path) for i, child in enumerate(plain)]
        return plain

    def at(node: Any, key: Any, plain: Any, path: tuple[str, ...]) -> Any:
        here = (*path, str(key))
        if not isinstance(plain, str):
            return walk(node[key] if plain is not None else None, plain, here)
        if "${" not in plain or follows_search(plain, here, raw, live, dead):
            return plain
        return escaped(_plain(node[key]))

    return {str(key): at(config, key, child, ()) for key, child in part.items()}


def follows_search(
    text: str, path: tuple[str, ...], raw: Mapping[str, Any], live: Collection[str], dead: Collection[str]
) -> bool:
    """Whether a text interpolates a node whose keys may be searched, directly or through other keys.

    Args:
        path: Where the text is, as the keys from the root.
    """
    return _follows(text, path, raw, live, dead, set())


def open_texts(node: Any) -> list[str]:
    """The texts of a settled tree that interpolate."""
    return [text for text, _ in _texts(node, ()) if re.search(r"(?<!\\)(\\\\)*\$\{", text)]


def rewrite(node: Any, new_key: Callable[[str], str]) -> Any:
    """A tree with the keys in its interpolations replaced. Relative interpolations stay as they are."""
    if isinstance(node, Mapping):
        return {key: rewrite(child, new_key) for key, child in node.items()}
    if isinstance(node, list):
        return [rewrite(child, new_key) for child in node]
    if not isinstance(node, str) or "${" not in node:
        return node
    return _REFERENCE.sub(
        lambda m: m[0] if m[2] == ":" or m[1].startswith(".") else m[0].replace(m[1], new_key(m[1])), node
    )


def _follows(
    text: str,
    path: tuple[str, ...],
    raw: Mapping[str, Any],
    live: Collection[str],
    dead: Collection[str],
    seen: set[str],
) -> bool:
    found = [(m[1], m[2]) for m in _REFERENCE.finditer(text)]
    if any(end == ":" and not name.startswith("oc.") for name, end in found):
        return False  # only this process has the resolver
    for name, end in found:
        key = _absolute(name, path)
        if end == ":" or key in seen or any(key == d or key.startswith(f"{d}.") for d in dead):
            continue
        seen.add(key)
        if key.split(".")[0] in live:
            return True
        try:
            target = look_up(raw, key)
        except KeyError:
            continue
        texts = _texts(target, tuple(key.split(".")))
        if any(_follows(t, p, raw, live, dead, seen) for t, p in texts):
            return True
    return False


def _absolute(name: str, path: tuple[str, ...]) -> str:
    dots = len(name) - len(name.lstrip("."))
    return name if not dots else ".".join((*path[: len(path) - dots], name[dots:]))


def _texts(node: Any, path: tuple[str, ...]) -> list[tuple[str, tuple[str, ...]]]:
    if isinstance(node, Mapping):
        return [found for key, child in node.items() for found in _texts(child, (*path, str(key)))]
    if isinstance(node, list):
        return [found for i, child in enumerate(node) for found in _texts(child, (*path, str(i)))]
    return [(node, path)] if isinstance(node, str) and "${" in node else []


def _plain(value: Any) -> Any:
    from omegaconf import OmegaConf

    return OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value
