"""Folders of the checkout that tests use."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

ROOT = Path(__file__).parents[2]
SUPPORT = ROOT / "tests" / "support"
USER_CODE = SUPPORT / "user_code"  # networks and data as users write them; on the import path of every test


def python_path(*folders: Path) -> str:
    """Return a PYTHONPATH with these folders, or the user code, before what is there."""
    return os.pathsep.join(filter(None, [*map(str, folders or (USER_CODE,)), os.environ.get("PYTHONPATH")]))


def copied_home(home: Path, to: Path) -> Path:
    """Copy a home that other tests read meanwhile. Files beside its databases come and go with their connections."""
    return Path(shutil.copytree(home, to, ignore=shutil.ignore_patterns("*-wal", "*-shm")))
