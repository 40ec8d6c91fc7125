"""The example project of `overnight init`: a network, data, a search space and a test."""

from __future__ import annotations

import shutil
from pathlib import Path

from overnight.config.problems import ConfigError

# These files are linted, type-checked and tested like the rest of the code.
_FILES = Path(__file__).parent / "files"


def write(folder: Path) -> list[Path]:
    """Write the example project to a folder, which is created if needed.

    Returns:
        The files that were written, relative to the folder.

    Raises:
        ConfigError: One of the files exists, and nothing was written, or the folder cannot be written.
    """
    files = [p.relative_to(_FILES) for p in sorted(_FILES.rglob("*")) if p.is_file() and p.suffix != ".pyc"]
    existing = [str(f) for f in files if (folder / f).exists()]
    if existing:
        found = ", ".join(existing)
        raise ConfigError([f"{folder}: must not contain files of the example project, got {found}; use another folder"])
    try:
        for file in files:
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(_FILES / file, folder / file)
    except OSError as error:
        raise ConfigError([f"{folder}: must be a folder that can be written, got {error}"]) from error
    return files
