"""The classes and functions that a worker imports for a config from another user.

These are the targets of the configs that come with overnight, and what the packages define that the operator of the
worker trusts. Nothing is imported for the check. A name is followed through the sources, from import to import, to the
class or function that it refers to: `my_nets.os.system` is below my_nets, and my_nets does not define it.
"""

from __future__ import annotations

import ast
import functools
import importlib.util
import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.machinery import ModuleSpec, PathFinder
from typing import Any

from overnight.config.paths import conf_dir
from overnight.config.trainer import ACCEPTED

# The environment variable with the packages that the operator of this machine trusts, separated by commas.
PACKAGES = "OVERNIGHT_TRUSTED_PACKAGES"
# Set in the environment of processes that run configs of other users. They build nothing untrusted.
GUARDED = "OVERNIGHT_GUARDED"
# Packages that can run any code, from a text, a file or a name. To trust one of them is to trust everything.
_UNSAFE = ("hydra", "overnight", "torch", "cloudpickle", "joblib", "numpy", "pandas", "mlflow", "optuna")
# Interpolations of another key of the config, or of the data folder of this machine.
_ALLOWED_INTERPOLATION = re.compile(r"\$\{\.*[A-Za-z_][\w.]*\}|\$\{oc\.env:OVERNIGHT_DATA(,[^${}]*)?\}")
# Samplers, pruners and what they take.
_OPTUNA_CLASS = re.compile(r"optuna\.(samplers|samplers\.nsgaii|pruners)\.[A-Z]\w+(Sampler|Pruner|Crossover|Mutation)")
_REMEDY = f"the operator can add its package to {PACKAGES}"


class UntrustedError(ValueError):
    """A config uses what the operator of this machine does not trust. The message has one line for each."""


def enable_guard() -> None:
    """Let this process, and those that it starts, build nothing that the operator does not trust."""
    os.environ[GUARDED] = "1"


def apply_guard(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Check a trial's config and set the data folder of this machine in it, where the guard is enabled.

    Raises:
        UntrustedError: The config uses what the operator does not trust.
    """
    if not os.environ.get(GUARDED):
        return config
    found = [*config_problems(config), *trainer_problems(config.get("trainer") or {})]
    # The config is resolved. Hydra would resolve an interpolation in it a second time, when it instantiates.
    texts = [(key, text) for key, text in _texts(config) if "${" in text and _text_problem(key, text) is None]
    found += [f"{key}: must be resolved already, got {text!r}; write the value itself" for key, text in texts]
    if found:
        raise UntrustedError("\n".join(found))
    return {**config, "data": _with_local_data(config["data"])}


def _with_local_data(data: Mapping[str, Any]) -> dict[str, Any]:
    """The config of overnight's data modules with the data folder of this machine. Other classes are left alone."""
    local = dict(data)
    if str(data.get("_target_")).startswith("overnight."):
        local.pop("cache_dir", None)
        if "root" in local:
            local["root"] = os.environ.get("OVERNIGHT_DATA", "./data")
    return local


# Configs ------------------------------------------------------------------------------------------------------------


def config_problems(node: Any, key: str = "") -> list[str]:
    """What a tree, composed or resolved, uses that is not trusted, one line each. key: the path to the tree."""
    targets = ((path, child) for path, child in _walk(node, key) if path.rpartition(".")[2] == "_target_")
    found = [p for path, target in targets if (p := target_problem(path, target))]
    return [*found, *(p for path, text in _texts(node, key) if (p := _text_problem(path, text)))]


def optuna_object_problems(node: Any, key: str) -> list[str]:
    """What the node of a sampler or scheduler uses that is not trusted, one line each. Optuna's own classes are."""
    found = config_problems(_without_optuna(node), key)
    for path, value in _walk(node, key):
        if isinstance(value, Mapping) and value.get("package") is not None and "optunahub" not in trusted_packages():
            found.append(
                f"{path}.package: must not be loaded from OptunaHub by a worker, got {value['package']!r}; the "
                f"operator can add optunahub to {PACKAGES}"
            )
    return found


def _without_optuna(node: Any) -> Any:
    """A node without the names of Optuna's samplers, pruners and crossovers."""
    if isinstance(node, Mapping):
        return {
            k: _without_optuna(v)
            for k, v in node.items()
            if not (k == "_target_" and isinstance(v, str) and _OPTUNA_CLASS.fullmatch(v) and "package" not in node)
            and not (k == "_target_" and node.get("package") is not None)
        }
    return [*map(_without_optuna, node)] if isinstance(node, list | tuple) else node


def target_problem(key: str, target: Any) -> str | None:
    """Why `key`, which ends in _target_, must not be `target`; None where it may."""
    if not isinstance(target, str) or not re.fullmatch(r"[^\W\d]\w*(\.[^\W\d]\w*)*", target):
        return f"{key}: must be the name of a class, written out, such as package.module.Class, got {target!r}"
    packages = trusted_packages()
    refused = _refused(target, packages, frozenset())
    if refused is None:
        return None
    trusted = ", ".join(["overnight's own configs", *packages])
    if refused.rule:
        return f"{key}: must be a class or function that a trusted package defines, got {target}, {refused.rule}"
    which = f", which is {refused.name}" if refused.name != target else ""
    return (
        f"{key}: must be under a package that this worker's operator trusts ({trusted}), got {target}{which}; {_REMEDY}"
    )


def trainer_problems(trainer: Mapping[str, Any]) -> list[str]:
    """What a config sets of Lightning's Trainer that it may not, one line each."""
    return [
        f"trainer.{name}: must be one of {', '.join(ACCEPTED)} for a worker, got {value!r}; take it out"
        for name, value in trainer.items()
        if name not in ACCEPTED or not _is_plain(value)
    ]


def _is_plain(value: Any) -> bool:
    if isinstance(value, Mapping):  # a time
        return all(isinstance(v, int | float) for v in value.values())
    return value is None or isinstance(value, bool | int | float | str)


def _walk(node: Any, path: str) -> Iterator[tuple[str, Any]]:
    """Every node of a tree with its path, which ends in the node's key."""
    yield path, node
    if isinstance(node, Mapping):
        for key, child in node.items():
            yield from _walk(child, f"{path}.{key}" if path else str(key))
    elif isinstance(node, list | tuple):
        for index, child in enumerate(node):
            yield from _walk(child, f"{path}.{index}")


def _texts(node: Any, path: str = "") -> Iterator[tuple[str, str]]:
    return ((below, text) for below, text in _walk(node, path) if isinstance(text, str))


def _text_problem(key: str, text: str) -> str | None:
    """Why a text must not be resolved here, or None. An interpolation could read secrets of this machine into logs."""
    if "${" not in _ALLOWED_INTERPOLATION.sub("", text):
        return None
    return (
        f"{key}: must not make a worker read more than another key or OVERNIGHT_DATA, got {text!r}; "
        f"write the value itself"
    )


# Names ----------------------------------------------------------------------------------------------------------------


def trusted_packages() -> tuple[str, ...]:
    """The packages that the operator trusts, without the entries that `package_list_problems` reports."""
    return tuple(p for p in _listed_packages() if _entry_problem(p) is None)


def package_list_problems() -> list[str]:
    """What is wrong with the operator's list of packages, one line each."""
    return [f"{PACKAGES}: {problem}" for entry in _listed_packages() if (problem := _entry_problem(entry))]


def _listed_packages() -> list[str]:
    return [p.strip() for p in os.environ.get(PACKAGES, "").split(",") if p.strip()]


def _entry_problem(entry: str) -> str | None:
    if not re.fullmatch(r"[^\W\d]\w*(\.[^\W\d]\w*)*", entry):
        return f"must list packages such as my_nets,torchvision.models, got {entry!r}"
    if entry in _UNSAFE or entry.split(".")[0] in (*sys.stdlib_module_names, "hydra", "overnight"):
        return f"must not list a package that can run any code, got {entry}; name the one class that is meant"
    return None


@functools.cache
def shipped_names() -> frozenset[str]:
    """Every class and function that the configs of overnight name."""
    texts = (path.read_text("utf-8") for path in conf_dir().glob("*/*.yaml"))
    names = [name for text in texts for name in re.findall(r"^ *_target_: *([\w.]+)", text, re.M)]
    # A callback is built from the Lightning package of the model.
    return frozenset([*names, *(re.sub(r"^pytorch_lightning\.", "lightning.pytorch.", name) for name in names)])


@dataclass(frozen=True)
class _Refused:
    """A name that is not trusted.

    Attributes:
        name: What the name refers to.
        rule: Why it is refused, where its package is trusted.
    """

    name: str
    rule: str = ""


def _refused(name: str, packages: Sequence[str], seen: frozenset[str]) -> _Refused | None:
    """Why a name is not trusted; None for overnight's, for a listed name, and for a definition of a trusted package."""
    if name in shipped_names() or name in packages:
        return None
    if not any(name.startswith(f"{p}.") for p in packages):
        return _Refused(name)
    if name in seen:
        return _Refused(name, f"and {name} is imported in a circle")
    parts = name.split(".")
    try:
        spec = importlib.util.find_spec(parts[0])
    except ValueError:  # __main__ has no spec
        spec = None
    if spec is None:
        return _Refused(name, f"and there is no module {parts[0]}; install it where this worker runs")
    return _refused_in(spec, parts[0], parts[1:], packages, seen | {name})


def _refused_in(
    spec: ModuleSpec, module: str, rest: list[str], packages: Sequence[str], seen: frozenset[str]
) -> _Refused | None:
    """Why the name `rest` in a module is not trusted, or None."""
    if not rest:
        return _Refused(module, "which is a module")
    first, *more = rest
    sub = _submodule(spec, f"{module}.{first}")
    bound = [b for b in _bindings(spec, module, first) if sub is None or b != f"{module}.{first}"]
    if not bound and sub is None:
        return _Refused(module, f"and the source of {module} does not define {first}; name where it is defined")
    for binding in bound:
        if isinstance(binding, str):  # an import
            refused = _refused(".".join([binding, *more]), packages, seen)
        else:
            refused = _refused_definition(binding, f"{module}.{first}", more)
        if refused is not None:
            return refused
    # The name of a submodule may refer to the submodule as well, once that is imported.
    return (
        _refused_in(sub, f"{module}.{first}", more, packages, seen) if sub is not None and (more or not bound) else None
    )


def _refused_definition(found: ast.stmt, name: str, rest: list[str]) -> _Refused | None:
    """Why a definition, or the name `rest` in a class, is not trusted, or None."""
    for part in rest:
        body = found.body if isinstance(found, ast.ClassDef) else []
        own = [s for s in body if getattr(s, "name", None) == part]
        if len(own) != 1:
            return _Refused(name, f"and {name} does not itself define {part}")
        found, name = own[0], f"{name}.{part}"
    if isinstance(found, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        return None
    return _Refused(name, f"which {name.rpartition('.')[0]} assigns in line {found.lineno}; define it there")


def _submodule(package: ModuleSpec, name: str) -> ModuleSpec | None:
    """Find a module of a package without importing it."""
    folders = package.submodule_search_locations
    return PathFinder.find_spec(name, list(folders)) if folders is not None else None


def _bindings(spec: ModuleSpec, module: str, name: str) -> list[str | ast.stmt]:
    """Everything that a module's source binds a name to: the full name of an import, or a statement."""
    bound: list[str | ast.stmt] = []
    stars: list[str] = []
    for statement in _statements(_parsed(spec)):
        if isinstance(statement, ast.Import):
            for alias in statement.names:
                top = alias.name.partition(".")[0]
                bound += [alias.name if alias.asname else top] if (alias.asname or top) == name else []
        elif isinstance(statement, ast.ImportFrom):
            origin = _origin(statement, spec, module)
            stars += [origin for alias in statement.names if alias.name == "*"]
            bound += [f"{origin}.{a.name}" for a in statement.names if (a.asname or a.name) == name]
        elif name in _names_of(statement):
            bound.append(statement)
    if not bound and not name.startswith("_"):
        bound += [f"{origin}.{name}" for origin in stars if _binds(origin, name, frozenset())]
    return bound


def _binds(module: str, name: str, seen: frozenset[str]) -> bool:
    """Whether the source of a module binds a name. The module is not imported."""
    parts = module.split(".")
    spec = importlib.util.find_spec(parts[0])
    for count in range(2, len(parts) + 1):
        spec = _submodule(spec, ".".join(parts[:count])) if spec is not None else None
    if spec is None or module in seen:
        return False
    for statement in _statements(_parsed(spec)):
        if isinstance(statement, ast.Import | ast.ImportFrom):
            if any((a.asname or a.name) == name for a in statement.names):
                return True
            is_star = isinstance(statement, ast.ImportFrom) and any(a.name == "*" for a in statement.names)
            if is_star and _binds(_origin(statement, spec, module), name, seen | {module}):
                return True
        elif name in _names_of(statement):
            return True
    return False


@functools.lru_cache(maxsize=64)
def _source_tree(path: str, _modified_ns: int) -> ast.Module:
    with open(path, "rb") as file:
        return ast.parse(file.read())


def _parsed(spec: ModuleSpec) -> ast.Module:
    """The syntax tree of a module; empty for one without a source."""
    if not spec.has_location or not str(spec.origin).endswith(".py"):
        return ast.Module([], [])
    try:
        return _source_tree(str(spec.origin), os.stat(str(spec.origin)).st_mtime_ns)
    except (OSError, SyntaxError, ValueError):
        return ast.Module([], [])


def _statements(node: Any) -> Iterator[ast.stmt]:
    """The statements of a module, with those in conditions and loops, but without those in functions and classes."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.stmt):
            yield child
        if not isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            yield from _statements(child)


def _names_of(statement: ast.stmt) -> set[str]:
    """The names that a statement binds, which is not an import."""
    if isinstance(statement, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        return {statement.name}
    if isinstance(statement, ast.If | ast.Try | ast.While):  # `_statements` yields their statements
        return set()
    return {n.id for n in ast.walk(statement) if isinstance(n, ast.Name) and not isinstance(n.ctx, ast.Load)}


def _origin(statement: ast.stmt, spec: ModuleSpec, module: str) -> str:
    """The full name of the module in `from MODULE import`."""
    assert isinstance(statement, ast.ImportFrom)
    if not statement.level:
        return statement.module or ""
    inside = module.split(".") if spec.submodule_search_locations is not None else module.split(".")[:-1]
    base = inside[: len(inside) - (statement.level - 1)]
    return ".".join([*base, *([statement.module] if statement.module else [])])
