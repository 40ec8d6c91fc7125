"""Import the classes that a configuration names by `_target_`, with errors that say what to do."""

from __future__ import annotations

import difflib
import importlib
import sys
from collections.abc import Iterator, Mapping
from typing import Any


class TargetError(ImportError):
    """A `_target_` can't be imported. The message says all of it, unless the module itself failed: see the cause."""


def find_all(config: Mapping[str, Any], key: str) -> None:
    """Import every `_target_` below config[key]. Raise TargetError for the first that can't be imported."""
    for path, target in _targets(config[key], key):
        find(path, target)


def find(key: str, target: str) -> Any:
    """Import what a dotted name refers to: a class, or any callable that builds an object.

    Args:
        key: the node of the configuration that holds the `_target_`.
        target: the dotted name.

    Raises:
        TargetError: with the key, the name, the places that were searched, and the remedy.
    """
    parts = target.split(".")
    if parts[0] == "__main__":
        raise TargetError(
            f"{key}._target_: must be in a module, which each trial imports, got {target!r} of the script that was "
            f"started; move the class to a file such as my_network.py, and write my_network.{parts[-1]}"
        )
    found, module = None, ""
    for count in range(1, len(parts) + 1):
        name = ".".join(parts[:count])
        if found is not None and hasattr(found, parts[count - 1]):
            found = getattr(found, parts[count - 1])
            continue
        if found is not None and not hasattr(found, "__path__"):  # a class, or a module that is no package
            raise TargetError(_no_attribute(key, target, found, parts[count - 1]))
        if found is not None:
            name = f"{found.__name__}.{parts[count - 1]}"  # the package may have another name where it is defined
        try:
            found, module = importlib.import_module(name), name
        except (Exception, SystemExit) as error:
            if not (isinstance(error, ModuleNotFoundError) and error.name == name):
                # The module itself failed, or a package that it imports is missing. The traceback shows where.
                reason = f"importing {name} raised {type(error).__name__}: {error}"
                raise TargetError(f"{key}._target_: must be importable, got {target!r}: {reason}") from error
            message = _no_attribute(key, target, found, parts[count - 1]) if module else _no_module(key, target, name)
            raise TargetError(message) from None
    return found


def _targets(node: Any, path: str) -> Iterator[tuple[str, str]]:
    if isinstance(node, Mapping):
        if isinstance(node.get("_target_"), str):
            yield path, node["_target_"]
        for key, child in node.items():
            yield from _targets(child, f"{path}.{key}")
    elif isinstance(node, list | tuple):
        for index, child in enumerate(node):
            yield from _targets(child, f"{path}.{index}")


def _no_attribute(key: str, target: str, found: Any, name: str) -> str:
    location = getattr(found, "__file__", None) or getattr(found, "__module__", "")
    close = difflib.get_close_matches(name, dir(found), n=1)
    known = f"did you mean {close[0]}?" if close else "correct the name, or define it there"
    return (
        f"{key}._target_: must name something that exists, got {target!r}: "
        f"{getattr(found, '__name__', repr(found))} ({location}) has no {name}; {known}"
    )


def _no_module(key: str, target: str, name: str) -> str:
    installed = (sys.prefix, sys.base_prefix)
    folders = dict.fromkeys(p for p in sys.path if p and "site-packages" not in p and not p.startswith(installed))
    searched = f"in {', '.join(folders)} and " if folders else ""
    return (
        f"{key}._target_: must name a class that can be imported, got {target!r}: there is no module {name} {searched}"
        f"among the installed packages; start overnight in the folder that holds {name}.py, or put that folder on "
        f"PYTHONPATH, or install the package"
    )
