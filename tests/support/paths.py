"""Folders of the checkout that tests use."""

from __future__ import annotations

import os
from pathlib import Path

ROOT = Path(__file__).parents[2]
SUPPORT = ROOT / "tests" / "support"
USER_CODE = SUPPORT / "user_code"  # networks and data as users write them; on the import path of every test


def python_path(*folders: Path) -> str:
    """Return a PYTHONPATH with these folders, or the user code, before what is there."""
    return os.pathsep.join(filter(None, [*map(str, folders or (USER_CODE,)), os.environ.get("PYTHONPATH")]))
