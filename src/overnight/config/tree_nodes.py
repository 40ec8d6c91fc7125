"""Finds data, model, callbacks and trainer in a user's tree, by name, by `_target_`, or as the user says."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

from overnight.config.problems import Problems
from overnight.config.trees import has_key, look_up

# Our node -> what its class is called, the usual keys of the node, and the endings of its class.
_KINDS: dict[str, tuple[str, tuple[str, ...], tuple[str, ...]]] = {
    "data": (
        "LightningDataModule",
        ("data", "datamodule", "data_module", "lit_datamodule", "dm"),
        ("datamodule", "data", "dm"),
    ),
    "model": (
        "LightningModule",
        ("model", "module", "lit_module", "lit_model", "litmodule", "pl_module", "system", "task"),
        ("litmodule", "lightningmodule", "plmodule", "module", "model"),
    ),
    "trainer": ("Trainer", ("trainer", "pl_trainer"), (".trainer",)),
    "callbacks": ("", ("callbacks",), ()),
}
KEYS = tuple(_KINDS)
_LIBRARIES = ("torch.", "torchmetrics.", "torchvision.", "lightning.", "pytorch_lightning.", "hydra.", "builtins.")
_BUILT = ("LightningDataModule", "LightningModule")  # without them there is nothing to train


def find_nodes(tree: Mapping[str, Any], named: Mapping[str, str], source: str, problems: Problems) -> dict[str, str]:
    """The keys of data, model, callbacks and trainer in a tree: our node -> the user's dotted key.

    Args:
        named: What the user says, with overnight.keys.NODE=KEY.
        source: The name of the tree, for messages.
    """
    found: dict[str, str] = {}
    for node in (n for n in named if n not in _KINDS):
        problems.add(f"overnight.keys.{node}", f"must be one of {', '.join(KEYS)}", named[node])
    for node, (kind, usual, endings) in _KINDS.items():
        if node in named:
            found[node] = named[node]
            if not has_key(tree, named[node]):
                problems.add(f"overnight.keys.{node}", f"must be a key of {source}", named[node], _known(tree))
            elif kind in _BUILT and not _has_target(look_up(tree, named[node])):
                problems.add(f"{named[node]}: must have a _target_ (or class_path), the {kind} to build; add it")
            continue
        if kind in _BUILT:
            key = _find(tree, kind, usual, endings)
        else:
            key = next((k for k in usual if isinstance(tree.get(k), Mapping | list)), None)
        if key is not None:
            found[node] = key
        elif kind in _BUILT:
            problems.add(
                f"{node}: {source} must have a {kind} with its _target_ or class_path; {_known(tree)}, as in "
                f"overnight.keys.{node}=KEY"
            )
    return found


def _find(tree: Mapping[str, Any], kind: str, usual: tuple[str, ...], endings: tuple[str, ...]) -> str | None:
    """The key of the only node that is of a kind. Classes are imported where names do not tell."""
    nodes = _with_targets(tree)
    by_key = [k for k in usual if k in nodes]
    if len(by_key) == 1:
        return by_key[0]
    by_class = [k for k in (by_key or nodes) if nodes[k].lower().endswith(endings)]
    if len(by_class) == 1:
        return by_class[0]
    return next((k for k in (by_class or by_key or nodes) if kind in _bases(nodes[k])), None)


def _has_target(node: Any) -> bool:
    """Whether a node builds an object that may be the user's."""
    target = node.get("_target_") if isinstance(node, Mapping) else None
    return isinstance(target, str) and not target.startswith(_LIBRARIES)


def _with_targets(tree: Mapping[str, Any]) -> dict[str, str]:
    """Key -> target of the nodes with one, at the root and one level below it."""
    found = {k: n["_target_"] for k, n in tree.items() if _has_target(n)}
    for key, node in tree.items():
        if key not in found and isinstance(node, Mapping):
            found |= {f"{key}.{k}": n["_target_"] for k, n in node.items() if _has_target(n)}
    return found


def _bases(target: str) -> set[str]:
    """The names of the classes that a target inherits from; empty where it can't be imported."""
    module, _, name = target.rpartition(".")
    try:
        return {base.__name__ for base in getattr(importlib.import_module(module), name).__mro__}
    except (Exception, SystemExit):  # a trial says what is wrong with it
        return set()


def _known(tree: Mapping[str, Any]) -> str:
    return f"it has {', '.join(map(str, tree)) or 'no keys'}; name one"


def move(tree: Mapping[str, Any], found: Mapping[str, str]) -> dict[str, Any]:
    """The tree with the found nodes at the root, under our names."""
    moved = {node: look_up(tree, key) for node, key in found.items()}
    rest = {key: node for key, node in tree.items() if key not in found.values()}
    return {**{k: v for k, v in rest.items() if k not in moved}, **moved}
