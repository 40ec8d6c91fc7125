"""Names that may be imported and called for somebody else's config: those that our own configs hold, and what lies
under the packages that a worker's operator named.

Nothing is imported to find out. A name is followed through the sources, from import to import, to the class or
function that it stands for: `my_nets.os.system` lies under my_nets and is not of it.
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

# The environment's list of packages that this machine's operator trusts, with commas between them.
PACKAGES = "OVERNIGHT_TRUSTED_PACKAGES"
# Set in the environment of whatever runs other people's configs: nothing untrusted is built there.
GUARDED = "OVERNIGHT_GUARDED"
# What a config may set of Lightning's Trainer; the second half is a rehearsal's.
TRAINER = ("max_epochs", "precision", "gradient_clip_val")
REHEARSED = (
    "limit_train_batches",
    "limit_val_batches",
    "check_val_every_n_epoch",
    "val_check_interval",
    "accumulate_grad_batches",
)
# These hold what runs a text, a file or another name: whoever names them trusts everything.
_EVERYTHING = ("hydra", "overnight", "torch", "cloudpickle", "joblib", "numpy", "pandas", "mlflow", "optuna")
# Another key of the config, or the folder that this machine's operator keeps data in.
_HARMLESS = re.compile(r"\$\{\.*[A-Za-z_][\w.]*\}|\$\{oc\.env:OVERNIGHT_DATA(,[^${}]*)?\}")
_REMEDY = f"the operator can add its package to {PACKAGES}"


class Untrusted(ValueError):
    """A config asks for what this machine's operator does not trust; one line each."""


def guard() -> None:
    """Have this process, and whatever it starts from here on, build nothing that its operator does not trust."""
    os.environ[GUARDED] = "1"


def guarded(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """A trial's config as this machine builds it: as it is, or, where the machine is guarded, checked and with its
    own place for data.

    Raises Untrusted for a config that asks for more than the operator trusts.
    """
    if not os.environ.get(GUARDED):
        return config
    found = [*problems_of(config), *trainer_problems(config.get("trainer") or {}, (*TRAINER, *REHEARSED))]
    # Hydra would resolve again what came together from parts.
    texts = [(key, text) for key, text in _texts(config, "") if "${" in text and _text_problem(key, text) is None]
    found += [f"{key}: must be resolved by now, got {text!r}; write the value itself" for key, text in texts]
    if found:
        raise Untrusted("\n".join(found))
    return {**config, "data": _at_home(config["data"])}


def _at_home(data: Mapping[str, Any]) -> dict[str, Any]:
    """The data's config with its files where they lie here; somebody's own class knows that best itself."""
    here = dict(data)
    if str(data.get("_target_")).startswith("overnight."):
        here.pop("cache_dir", None)
        if "root" in here:
            here["root"] = os.environ.get("OVERNIGHT_DATA", "./data")
    return here


# Configs ------------------------------------------------------------------------------------------------------------


def problems_of(node: Any, key: str = "") -> list[str]:
    """What a tree, as composed or as resolved, asks for that is not to be trusted, one line each; `key` leads to it."""
    found = [p for path, target in _targets(node, key) if (p := target_problem(path, target))]
    return [*found, *(p for path, text in _texts(node, key) if (p := _text_problem(path, text)))]


def target_problem(key: str, target: Any) -> str | None:
    """Why `key`, which ends in _target_, must not be `target`, or None where it may."""
    if not isinstance(target, str) or not re.fullmatch(r"[^\W\d]\w*(\.[^\W\d]\w*)*", target):
        return f"{key}: must be the name of a class, written out, such as package.module.Class, got {target!r}"
    packages = trusted_packages()
    refused = _refused(target, packages, frozenset())
    if refused is None:
        return None
    listed = ", ".join(["overnight's own configs", *packages])
    if refused.rule:
        return f"{key}: must be a class or function that a trusted package defines, got {target}, {refused.rule}"
    which = f", which is {refused.name}" if refused.name != target else ""
    return (
        f"{key}: must be under a package that this worker's operator trusts ({listed}), got {target}{which}; {_REMEDY}"
    )


def trainer_problems(trainer: Mapping[str, Any], known: Sequence[str] = TRAINER) -> list[str]:
    return [
        f"trainer.{name}: must be one of {', '.join(TRAINER)} for a worker, got {value!r}; take it out"
        for name, value in trainer.items()
        if name not in known or not (value is None or isinstance(value, bool | int | float | str))
    ]


def _targets(node: Any, path: str) -> Iterator[tuple[str, Any]]:
    if isinstance(node, Mapping):
        for key, child in node.items():
            below = f"{path}.{key}" if path else str(key)
            if key == "_target_":
                yield below, child
            yield from _targets(child, below)
    elif isinstance(node, list | tuple):
        for index, child in enumerate(node):
            yield from _targets(child, f"{path}.{index}")


def _texts(node: Any, path: str) -> Iterator[tuple[str, str]]:
    if isinstance(node, str):
        yield path, node
    elif isinstance(node, Mapping):
        for key, child in node.items():
            yield from _texts(child, f"{path}.{key}" if path else str(key))
    elif isinstance(node, list | tuple):
        for index, child in enumerate(node):
            yield from _texts(child, f"{path}.{index}")


def _text_problem(key: str, text: str) -> str | None:
    """An interpolation is resolved on this machine, and could read its secrets into what is logged."""
    if "${" not in _HARMLESS.sub("", text):
        return None
    return (
        f"{key}: must not have a worker look up more than another key or OVERNIGHT_DATA, got {text!r}; "
        f"write the value itself"
    )


# Names ----------------------------------------------------------------------------------------------------------------


def trusted_packages() -> tuple[str, ...]:
    """The packages that the operator trusts besides ours, less entries that can't be meant (`list_problems`)."""
    return tuple(p for p in _listed() if _entry_problem(p) is None)


def list_problems() -> list[str]:
    """What is wrong with the operator's own list, one line each."""
    return [f"{PACKAGES}: {problem}" for entry in _listed() if (problem := _entry_problem(entry))]


def _listed() -> list[str]:
    return [p.strip() for p in os.environ.get(PACKAGES, "").split(",") if p.strip()]


def _entry_problem(entry: str) -> str | None:
    if not re.fullmatch(r"[^\W\d]\w*(\.[^\W\d]\w*)*", entry):
        return f"must list packages such as my_nets,torchvision.models, got {entry!r}"
    if entry in _EVERYTHING or entry.split(".")[0] in (*sys.stdlib_module_names, "hydra", "overnight"):
        return f"must not list what can be made to run anything, got {entry}; name the one class that is meant"
    return None


@functools.cache
def shipped_names() -> frozenset[str]:
    """Every class and function that the configs name which come with overnight."""
    texts = (path.read_text() for path in conf_dir().glob("*/*.yaml"))
    return frozenset(name for text in texts for name in re.findall(r"^ *_target_: *([\w.]+)", text, re.M))


@dataclass(frozen=True)
class _Refused:
    """name: what it came to. rule: what that is, where it is not simply of no trusted package."""

    name: str
    rule: str = ""


def _refused(name: str, packages: Sequence[str], seen: frozenset[str]) -> _Refused | None:
    """Why a name is not trusted, or None: it is ours, listed itself, or of a class or function of a trusted package."""
    if name in shipped_names() or name in packages:
        return None
    if not any(name.startswith(f"{p}.") for p in packages):
        return _Refused(name)
    if name in seen:
        return _Refused(name, f"and {name} is imported in a circle")
    parts = name.split(".")
    try:
        spec = importlib.util.find_spec(parts[0])
    except ValueError:  # __main__, and what else has none
        spec = None
    if spec is None:
        return _Refused(name, f"and there is no module {parts[0]}; install it where this worker runs")
    return _refused_in(spec, parts[0], parts[1:], packages, seen | {name})


def _refused_in(
    spec: ModuleSpec, module: str, rest: list[str], packages: Sequence[str], seen: frozenset[str]
) -> _Refused | None:
    """Why what `rest` names in a module is not trusted, or None."""
    if not rest:
        return _Refused(module, "which is a module")
    first, *more = rest
    sub = _submodule(spec, f"{module}.{first}")
    bound = [b for b in _bindings(spec, module, first) if sub is None or b != f"{module}.{first}"]
    if not bound and sub is None:
        return _Refused(module, f"and the source of {module} does not define {first}; name where it is defined")
    for binding in bound:
        if isinstance(binding, str):  # imported from there
            refused = _refused(".".join([binding, *more]), packages, seen)
        else:
            refused = _refused_definition(binding, f"{module}.{first}", more)
        if refused is not None:
            return refused
    # A module's name may stand for the module, too, once that is imported.
    return (
        _refused_in(sub, f"{module}.{first}", more, packages, seen) if sub is not None and (more or not bound) else None
    )


def _refused_definition(found: ast.stmt, name: str, rest: list[str]) -> _Refused | None:
    """Why a definition, or what the class itself defines by the names in `rest`, is not trusted; None where it is."""
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
    """A package's module, found and not imported."""
    places = package.submodule_search_locations
    return PathFinder.find_spec(name, list(places)) if places is not None else None


def _bindings(spec: ModuleSpec, module: str, name: str) -> list[str | ast.stmt]:
    """All that a module's source binds a name to: the full name of what it imports, or the statement."""
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
        bound += [f"{origin}.{name}" for origin in stars if _has(origin, name, frozenset())]
    return bound


def _has(module: str, name: str, seen: frozenset[str]) -> bool:
    """Whether a module's source, found and not imported, binds a name."""
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
            further = isinstance(statement, ast.ImportFrom) and any(a.name == "*" for a in statement.names)
            if further and _has(_origin(statement, spec, module), name, seen | {module}):
                return True
        elif name in _names_of(statement):
            return True
    return False


@functools.lru_cache(maxsize=64)
def _source_tree(path: str, _written_ns: int) -> ast.Module:
    with open(path, "rb") as file:
        return ast.parse(file.read())


def _parsed(spec: ModuleSpec) -> ast.Module:
    """A module's source; of one that has none, compiled or a bare folder, nothing is known."""
    if not spec.has_location or not str(spec.origin).endswith(".py"):
        return ast.Module([], [])
    try:
        return _source_tree(str(spec.origin), os.stat(str(spec.origin)).st_mtime_ns)
    except (OSError, SyntaxError, ValueError):
        return ast.Module([], [])


def _statements(node: Any) -> Iterator[ast.stmt]:
    """A module's statements, those in its conditions and loops too, and not those of its functions and classes."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.stmt):
            yield child
        if not isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            yield from _statements(child)


def _names_of(statement: ast.stmt) -> set[str]:
    """What a statement that imports nothing binds."""
    if isinstance(statement, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        return {statement.name}
    if isinstance(statement, ast.If | ast.Try | ast.While):  # their statements are looked at one by one
        return set()
    return {n.id for n in ast.walk(statement) if isinstance(n, ast.Name) and not isinstance(n.ctx, ast.Load)}


def _origin(statement: ast.stmt, spec: ModuleSpec, module: str) -> str:
    """The full name of the module that `from ... import` imports from."""
    assert isinstance(statement, ast.ImportFrom)
    if not statement.level:
        return statement.module or ""
    inside = module.split(".") if spec.submodule_search_locations is not None else module.split(".")[:-1]
    base = inside[: len(inside) - (statement.level - 1)]
    return ".".join([*base, *([statement.module] if statement.module else [])])
