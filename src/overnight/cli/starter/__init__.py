"""`overnight init`: a network, data, a search space and a test of one's own to begin with."""

from __future__ import annotations

import shutil
from pathlib import Path

from overnight.config.problems import ConfigError

# Real files: linted, typed as far as Lightning is, and tested like the rest.
_FILES = Path(__file__).parent / "files"


def write(folder: Path) -> list[Path]:
    """Write the starter into a folder, made where there is none; the files written, below it.

    Raises:
        ConfigError: where one of its files is there already, or the folder can't be written; nothing is written then.
    """
    files = [p.relative_to(_FILES) for p in sorted(_FILES.rglob("*")) if p.is_file() and p.suffix != ".pyc"]
    there = [str(f) for f in files if (folder / f).exists()]
    if there:
        raise ConfigError([f"{folder}: must hold none of the starter's files, and holds {', '.join(there)}"])
    try:
        for file in files:
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(_FILES / file, folder / file)
    except OSError as error:
        raise ConfigError([f"{folder}: must be a folder that can be written: {error}"]) from error
    return files
