"""Optuna's objects that a configuration names by `_target_`: samplers, pruners, and what these take as arguments."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import inspect
from collections.abc import Callable, Mapping
from typing import Any

from overnight.config.fields import nearest
from overnight.config.problems import Problems
from overnight.trial import targets

# Keys of a node that are no arguments of its class. The last three name a package of OptunaHub that holds the class.
_OWN_KEYS = ("_target_", "_partial_", "package", "registry_root", "ref")
# Warnings about what the start of a study and the documentation say once.
_QUIET = ("warn_independent_sampling", "warn_asynchronous_seeding")

# Section -> what its `_target_` must be.
_EXPECTED = {
    "sampler": "must be an Optuna BaseSampler, such as optuna.samplers.NSGAIISampler",
    "scheduler": (
        "must be an Optuna BasePruner, such as optuna.pruners.PatientPruner, or a class with methods next and report"
    ),
}

# The seed of an object: (its class, the seed that the configuration gives or None) -> seed.
SeedFor = Callable[[Any, int | None], int]


def is_of_optuna(node: Any) -> bool:
    """Whether every `_target_` in a node is Optuna's own, so that importing it imports neither torch nor user code."""
    if isinstance(node, Mapping):
        is_own = "_target_" not in node or ("package" not in node and str(node["_target_"]).startswith("optuna."))
        return is_own and all(map(is_of_optuna, node.values()))
    return all(map(is_of_optuna, node)) if isinstance(node, list | tuple) else True


def hub_problem(node: Mapping[str, Any], key: str) -> str | None:
    """Why a package of OptunaHub can't be loaded, or None."""
    if node.get("package") is None or importlib.util.find_spec("optunahub") is not None:
        return None
    return (
        f"{key}.package: must be a package of OptunaHub, which needs the Python package optunahub, got "
        f"{node['package']!r}; pip install optunahub"
    )


def check(node: Any, key: str, problems: Problems) -> None:
    """Import the classes of a node and check their arguments. Nothing is built."""
    _walk(node, key, problems, None, build=False)


def build(
    node: Mapping[str, Any],
    key: str,
    base: type | tuple[type, ...],
    problems: Problems,
    seed_for: SeedFor | None = None,
) -> Any:
    """Build what a node describes, an object of a class in `base`; None where `problems` has grown.

    Args:
        key: The key of the node in the configuration, for messages.
        seed_for: Returns the seed of each object whose class takes one.
    """
    before = len(problems)
    built = _walk(node, key, problems, seed_for, build=True)
    if len(problems) > before:
        return None
    if not isinstance(built, base):
        problems.add(f"{key}._target_", _EXPECTED[key], node["_target_"])
        return None
    return built


def _walk(node: Any, key: str, problems: Problems, seed_for: SeedFor | None, *, build: bool) -> Any:
    """Build a node and the nodes in it, innermost first."""
    if isinstance(node, list | tuple):
        return [_walk(child, f"{key}.{i}", problems, seed_for, build=build) for i, child in enumerate(node)]
    if not isinstance(node, Mapping):
        return node
    given = {k: _walk(v, f"{key}.{k}", problems, seed_for, build=build) for k, v in node.items() if k not in _OWN_KEYS}
    if "_target_" not in node:
        return given
    before = len(problems)
    made = _find(node, key, problems)
    if made is None:
        return None
    arguments = _check_arguments(made, node, given, key, problems)
    if len(problems) > before or not build:
        return None
    if node.get("_partial_"):
        return functools.partial(made, **given)
    if seed_for is not None and "seed" in arguments:
        given["seed"] = seed_for(made, given.get("seed"))
    given |= {n: False for n in _QUIET if n in arguments and arguments[n].default is True and n not in given}
    try:
        return made(**given)
    except Exception as error:
        reason = " ".join(str(error).split())
        problems.add(f"{key}: {node['_target_']} refuses its arguments: {type(error).__name__}: {reason}")
        return None


def _find(node: Mapping[str, Any], key: str, problems: Problems) -> Any:
    """The class that a node names; None where a problem was added."""
    target, package = node["_target_"], node.get("package")
    if not isinstance(target, str) or not all(map(str.isidentifier, target.split("."))):
        problems.add(f"{key}._target_", "must be the name of a class, such as package.module.Class", target)
        return None
    if package is None:
        try:
            found = targets.find(key, target)
        except targets.TargetError as error:
            problems.add(str(error))
            return None
    else:
        if problem := hub_problem(node, key):
            problems.add(problem)
            return None
        try:
            optunahub = importlib.import_module("optunahub")
            if node.get("registry_root") is not None:
                module = optunahub.load_local_module(package, registry_root=node["registry_root"])
            else:
                module = optunahub.load_module(package, **({"ref": node["ref"]} if "ref" in node else {}))
            found = getattr(module, target)
        except Exception as error:
            reason = " ".join(str(error).split())
            problems.add(f"{key}.package", f"must be loadable ({type(error).__name__}: {reason})", package)
            return None
    if not callable(found):
        problems.add(f"{key}._target_", "must be a class or a function that builds an object", target)
        return None
    return found


def _check_arguments(
    made: Any, node: Mapping[str, Any], given: Mapping[str, Any], key: str, problems: Problems
) -> Mapping[str, Any]:
    """The parameters of a class by name. Adds arguments that it does not take, and those that it lacks."""
    try:
        parameters = inspect.signature(made).parameters
    except (TypeError, ValueError):  # a class in C
        return {}
    if any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values()):
        return parameters
    known = [f"{key}.{name}" for name in parameters]
    for name in given:
        if name not in parameters:
            takes = f"; it takes {', '.join(parameters)}" if parameters else "; it takes none"
            close = nearest(f"{key}.{name}", known) if parameters else ""
            hint = close if "did you mean" in close else takes
            problems.add(f"{key}.{name}: {node['_target_']} has no such argument, got {given[name]!r}{hint}")
    missing = [n for n, p in parameters.items() if p.default is p.empty and p.kind is not p.VAR_POSITIONAL]
    for name in missing if not node.get("_partial_") else ():
        if name not in given:
            problems.add(f"{key}.{name}: must be given, because {node['_target_']} needs it; add +{key}.{name}=VALUE")
    return parameters
