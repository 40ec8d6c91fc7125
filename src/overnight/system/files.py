"""Files that other processes see complete or not at all."""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import threading
from pathlib import Path


def write_atomically(path: Path, *parts: bytes | str, durable: bool = False, backup: Path | None = None) -> None:
    """Write a file under a temporary name in the same folder, then rename it to `path`.

    A failed write leaves `path` as it was and no temporary file.

    Args:
        path: the file to create or replace.
        parts: what the file holds, in order; text is encoded as UTF-8.
        durable: flush the file and its folder to the disk, so that it survives a power failure.
        backup: where to move the file that is replaced, if there is one.
    """
    temporary = path.with_name(f"{path.name}.writing")
    try:
        _write(temporary, parts, durable)
        if backup is not None and path.exists():
            os.replace(path, backup)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    if durable:
        _sync_folder(path.parent)


def create_atomically(path: Path, content: bytes) -> None:
    """Write a file durably, unless it exists by the time it is complete. Threads and processes may race."""
    temporary = path.with_name(f"{path.name}.creating-{os.getpid()}-{threading.get_ident()}")
    try:
        _write(temporary, (content,), durable=True)
        with contextlib.suppress(FileExistsError):
            os.link(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def is_inside(root: Path, path: Path) -> bool:
    """Whether a path is below a folder, given without links. A link is where it is, not where it leads."""
    place = Path(os.path.realpath(path.parent), path.name)
    return place.is_relative_to(root) and place != root and path.name != ".."


def remove_inside(root: Path, path: Path) -> bool:
    """Remove a file, a link or a folder with its content.

    Returns:
        False where the path is outside of `root`, also through a link. It is left alone then.
    """
    if not is_inside(root, path):
        return False
    with contextlib.suppress(FileNotFoundError):
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    return True


def set_aside(root: Path, path: Path, folder: Path) -> bool:
    """Move a file or a folder into `folder`, under a name that is free there.

    Returns:
        False where the path is outside of `root`, also through a link. It is left alone then.
    """
    if not is_inside(root, path):
        return False
    names = (f"{path.parent.name}-{path.name}-{n}" for n in itertools.count(1))
    folder.mkdir(parents=True, exist_ok=True)
    os.rename(path, next(folder / name for name in names if not os.path.lexists(folder / name)))
    return True


def _write(path: Path, parts: tuple[bytes | str, ...], durable: bool) -> None:
    with open(path, "wb") as file:
        file.writelines(part.encode() if isinstance(part, str) else part for part in parts)
        if durable:
            file.flush()
            os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    """Flush a folder's entries to the disk. Without this, a power failure may undo a rename."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
