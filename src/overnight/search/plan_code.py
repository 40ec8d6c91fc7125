"""Whether the modules that a plan names can be found, and the folder that is missing where they cannot."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from overnight.search.plan import Plan


def find_missing(plan: Plan) -> list[str]:
    """Return the packages of a plan's classes that can't be found, one line each. Imports nothing."""
    targets: dict[str, tuple[str, str]] = {}
    for key, target in _targets(plan.config({}), ""):
        targets.setdefault(target.split(".")[0], (key, target))
    lines = []
    for package, (key, target) in targets.items():
        if not _is_found(*target.split(".")[:2]):
            gone = [folder for folder in plan.start.import_path if not os.path.isdir(folder)]
            where = f"it is not in {', '.join(plan.start.import_path) or 'the start folder'}"
            if gone:
                where = f"the study was started with {', '.join(gone)}, which is missing"
            lines.append(
                f"{key}._target_: must name a class that can be imported, and there is no module {package}: {where}; "
                f"put it back, or name the folder of your configs with --config-dir"
            )
    return lines


def _is_found(package: str, name: str = "") -> bool:
    """Whether there is a package. A folder without __init__.py counts only with a module of this name."""
    try:
        spec = importlib.util.find_spec(package)
    except (ImportError, ValueError):
        return False
    if spec is None or spec.origin is not None:
        return spec is not None
    folders = [Path(folder) for folder in spec.submodule_search_locations or ()]
    return any((folder / name).is_dir() or (folder / f"{name}.py").exists() for folder in folders)


def _targets(node: Any, path: str) -> Iterator[tuple[str, str]]:
    if isinstance(node, Mapping):
        if isinstance(node.get("_target_"), str):
            yield path, node["_target_"]
        for key, child in node.items():
            yield from _targets(child, f"{path}.{key}" if path else str(key))
    elif isinstance(node, list):
        for i, child in enumerate(node):
            yield from _targets(child, f"{path}.{i}")
