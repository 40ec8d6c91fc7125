"""Data decoded, or counted, once, and mapped into the memory of every trial that wants it.

An entry is a folder of .npy files and a list of them with size, time and sha256. It is written under another name and
renamed, so that it is there whole or not at all. A file with the size and time that it was written with is taken at its
word; where either differs its sum decides, and what fails is refused by name and made again.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock
from torch import Tensor

_LIST = "files.json"


def load(folder: Path | None, name: str, make: Callable[[], Mapping[str, np.ndarray]]) -> dict[str, Tensor]:
    """The arrays that `make` returns, as tensors: mapped from `folder`/`name`, where `make` put them the first time.

    Several processes may ask at once: one makes, the others wait for it. None as folder: made anew, in memory.
    What a tensor is changed to stays in the process that changes it.
    """
    if folder is None:
        return {key: torch.from_numpy(array) for key, array in make().items()}
    entry = folder / name
    if _problem(entry) is not None:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / f"{name}.lock"):
            problem = _problem(entry)  # another process may have made it meanwhile
            if problem is not None:
                if entry.exists():
                    warnings.warn(f"{problem}; it is made again", stacklevel=2)
                _write(entry, make())
    return {path.stem: torch.from_numpy(np.load(path, mmap_mode="c")) for path in entry.glob("*.npy")}


def _problem(entry: Path) -> str | None:
    """Why an entry can't be used, or None."""
    try:
        listed = json.loads((entry / _LIST).read_text())
    except (OSError, ValueError):
        return f"{entry}: has no readable {_LIST}"
    for name, (size, written_ns, digest) in listed.items():
        path = entry / name
        if not path.exists():
            return f"{path}: is missing"
        now = path.stat()
        if now.st_size != size:
            return f"{path}: has {now.st_size} bytes where {size} were written"
        if now.st_mtime_ns != written_ns and _digest(path) != digest:
            return f"{path}: its bytes are not the ones that were written"
    return None


def _write(entry: Path, arrays: Mapping[str, np.ndarray]) -> None:
    fresh = entry.with_name(f"{entry.name}.writing")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir()
    listed = {}
    for key, array in arrays.items():
        path = fresh / f"{key}.npy"
        with open(path, "wb") as file:
            np.save(file, array)
            file.flush()
            os.fsync(file.fileno())
        found = path.stat()
        listed[path.name] = [found.st_size, found.st_mtime_ns, _digest(path)]
    (fresh / _LIST).write_text(json.dumps(listed))
    shutil.rmtree(entry, ignore_errors=True)
    os.replace(fresh, entry)


def _digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
