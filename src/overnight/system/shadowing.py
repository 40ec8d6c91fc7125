"""Modules of the start folder that would take the place of a library in every process of a study.

It imports nothing that is not loaded before the start folder is on the import path.
"""

from __future__ import annotations

import os
import sys

# What overnight imports, by name of the module. A user's module of one of these names would be imported instead.
LIBRARIES = frozenset(
    (
        *("overnight", "torch", "torchvision", "torchmetrics", "pytorch_lightning", "lightning_fabric", "optuna"),
        *("mlflow", "sqlalchemy", "alembic", "hydra", "omegaconf", "antlr4", "yaml", "numpy", "scipy", "sklearn"),
        *("pandas", "matplotlib", "PIL", "click", "rich", "filelock", "psutil", "cmaes", "wakepy"),
    )
)
_UNUSED = frozenset({"test", "this", "antigravity"})  # modules of Python that no library imports


def find(folder: str) -> list[str]:
    """Return a line for each module in a folder that has the name of a library."""
    ours = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    lines = []
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError:  # the folder was deleted, or can't be read; nothing can be imported from it
        return []
    for entry in entries:
        name, dot, suffix = entry.name.partition(".")
        is_module = suffix == "py" if dot else os.path.isfile(os.path.join(entry.path, "__init__.py"))
        kind = "of Python" if name in sys.stdlib_module_names - _UNUSED else "that overnight uses"
        if is_module and (name in LIBRARIES or kind == "of Python") and os.path.abspath(entry.path) != ours:
            lines.append(
                f"{entry.name}: must not have the name of a module {kind}, which would not be found any more, got "
                f"{os.path.abspath(entry.path)}; rename it, or start overnight in another folder"
            )
    return lines


def exit_if_any() -> None:
    """Exit with code 2 and a message if the start folder has modules with names of libraries, or was deleted."""
    try:
        lines = find(os.getcwd())
    except FileNotFoundError:
        lines = ["start folder: must exist, and it was deleted; cd to another folder"]
    if lines:
        print(*lines, sep="\n", file=sys.stderr)
        sys.exit(2)
