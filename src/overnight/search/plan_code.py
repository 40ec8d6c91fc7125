"""Whether the modules that a plan names can be found, and the folder that is missing where they cannot."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator, Mapping
from typing import Any

from overnight.search.plan import Plan


def find_missing(plan: Plan) -> list[str]:
    """Return the packages of a plan's classes that can't be found, one line each. Imports nothing."""
    packages = {target.split(".")[0]: key for key, target in _targets(plan.config({}), "")}
    lines = []
    for package, key in packages.items():
        try:
            found = importlib.util.find_spec(package)
        except (ImportError, ValueError):
            found = None
        if found is None:
            gone = [folder for folder in plan.start.import_path if not os.path.isdir(folder)]
            where = (
                f"the study was started with {', '.join(gone)}, which is missing"
                if gone
                else (f"it is not in {', '.join(plan.start.import_path) or 'the start folder'}")
            )
            lines.append(
                f"{key}._target_: must name a class that can be imported, and there is no module {package}: {where}; "
                f"put it back, or name the folder of your configs with --config-dir"
            )
    return lines


def _targets(node: Any, path: str) -> Iterator[tuple[str, str]]:
    if isinstance(node, Mapping):
        if isinstance(node.get("_target_"), str):
            yield path, node["_target_"]
        for key, child in node.items():
            yield from _targets(child, f"{path}.{key}" if path else str(key))
    elif isinstance(node, list):
        for i, child in enumerate(node):
            yield from _targets(child, f"{path}.{i}")
