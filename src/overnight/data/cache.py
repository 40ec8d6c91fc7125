"""A disk cache for decoded data, which trials map into their memory.

An entry is a folder of .npy files and a list of them with size, modification time and SHA-256 digest. It is written
under a temporary name and renamed, so that an entry is complete or does not exist. A file with the listed size and time
is trusted. If the time differs, the digest decides. An invalid entry is reported and written again.
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
    """Return the arrays of a cache entry as tensors, and make the entry if it does not exist.

    Processes may call this at the same time: one makes the entry, the others wait. The tensors are memory-mapped; a
    change of them stays in the process that makes it.

    Args:
        folder: the cache; None keeps the arrays in memory.
        name: of the entry.
        make: computes the arrays.
    """
    if folder is None:
        return {key: torch.from_numpy(array) for key, array in make().items()}
    entry = folder / name
    if _problem(entry) is not None:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / f"{name}.lock"):
            problem = _problem(entry)  # another process may have made it by now
            if problem is not None:
                if entry.exists():
                    warnings.warn(f"{problem}; it is made again", stacklevel=2)
                _write(entry, make())
    return {path.stem: torch.from_numpy(np.load(path, mmap_mode="c")) for path in entry.glob("*.npy")}


def _problem(entry: Path) -> str | None:
    """Return why an entry can't be used, or None."""
    try:
        listed = json.loads((entry / _LIST).read_text("utf-8"))
    except (OSError, ValueError):
        return f"{entry}: has no readable {_LIST}"
    for name, (size, modified_ns, digest) in listed.items():
        path = entry / name
        if not path.exists():
            return f"{path}: is missing"
        found = path.stat()
        if found.st_size != size:
            return f"{path}: has {found.st_size} bytes where {size} were written"
        if found.st_mtime_ns != modified_ns and _digest(path) != digest:
            return f"{path}: its bytes are not the ones that were written"
    return None


def _write(entry: Path, arrays: Mapping[str, np.ndarray]) -> None:
    temporary = entry.with_name(f"{entry.name}.writing")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    listed = {}
    for key, array in arrays.items():
        path = temporary / f"{key}.npy"
        with open(path, "wb") as file:
            np.save(file, array)
            file.flush()
            os.fsync(file.fileno())
        written = path.stat()
        listed[path.name] = [written.st_size, written.st_mtime_ns, _digest(path)]
    (temporary / _LIST).write_text(json.dumps(listed), "utf-8")
    shutil.rmtree(entry, ignore_errors=True)
    os.replace(temporary, entry)


def _digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
