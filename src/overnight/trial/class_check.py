"""Find mistakes in the classes that a configuration names, and in their arguments, without building anything."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Iterator, Mapping
from typing import Any

from overnight.config.settings import COMPONENTS
from overnight.trial import targets
from overnight.trial.components import DATA_FACTS

# Arguments that constructors get from a trial, if they name them.
_OFFERED = {"data": ("cache_dir",), "model": ("optimizer", "schedule", *DATA_FACTS)}
# Keys that a constructor gets only if it names them.
_OPTIONAL = {"data": ("task",)}
# Nodes that become functions, which a model calls with further arguments.
_FUNCTIONS = ("optimizer", "schedule")
_NAMED = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


def import_problems(config: Mapping[str, Any]) -> list[str]:
    """Return a line for each `_target_` that can't be imported."""
    problems = []
    for path, node in _nodes(config):
        try:
            targets.find(path, node["_target_"])
        except targets.TargetError as error:
            problems.append(str(error))
    return problems


def argument_problems(config: Mapping[str, Any]) -> dict[str, str]:
    """Return key -> line for each argument that a class does not take, or lacks, by its signature.

    A decorated constructor may take others than its signature says.
    """
    problems: dict[str, str] = {}
    for path, node in _nodes(config):
        try:
            signature = inspect.signature(targets.find(path, node["_target_"]))
        except (targets.TargetError, TypeError, ValueError):  # a class of C may have no signature
            continue
        problems |= _compared(path, node, signature)
    return problems


def _compared(path: str, node: Mapping[str, Any], signature: inspect.Signature) -> dict[str, str]:
    parameters, target = signature.parameters.values(), node["_target_"]
    names = [p.name for p in parameters if p.kind in _NAMED]
    given = [str(key) for key in node if not (str(key).startswith("_") and str(key).endswith("_"))]
    problems = {}
    if all(p.kind != inspect.Parameter.VAR_KEYWORD for p in parameters):
        for name in given:
            if name not in (*names, *_OPTIONAL.get(path, ())):
                close = difflib.get_close_matches(name, names, n=1)
                remedy = f"did you mean {close[0]}?" if close else f"it takes {', '.join(names) or 'none'}"
                problems[f"{path}.{name}"] = (
                    f"{path}.{name}: must be an argument of {target}, got {node[name]!r}; {remedy}"
                )
    if path not in _FUNCTIONS and not node.get("_partial_") and "_args_" not in node:
        for p in parameters:
            is_required = p.kind in _NAMED and p.default is inspect.Parameter.empty
            if is_required and p.name not in (*given, *_OFFERED.get(path, ())):
                rule = f"must be given, because {target} has no default for it"
                problems[f"{path}.{p.name}"] = f"{path}.{p.name}: {rule}; add +{path}.{p.name}=VALUE"
    return problems


def _nodes(config: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield key and node of everything that a trial builds from a configuration."""
    for name in COMPONENTS:
        yield from _below(config.get(name), name)


def _below(node: Any, path: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    if isinstance(node, Mapping):
        if isinstance(node.get("_target_"), str):
            yield path, node
        if node.get("_recursive_", True):  # otherwise the class builds its parts, with arguments of its own
            for key, child in node.items():
                yield from _below(child, f"{path}.{key}")
    elif isinstance(node, list | tuple):
        for index, child in enumerate(node):
            yield from _below(child, f"{path}.{index}")
