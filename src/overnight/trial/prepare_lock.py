"""The lock of prepare_data. Lightning promises to call it in one process; trials side by side are several.

The lock is one of the operating system, so it ends with its holder, however that ends. It belongs to the class that
defines prepare_data, whatever the arguments are: two data modules that differ in their batch size write the same files.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from overnight.trial import lightning_packages

POLL_EVERY_S, ALIVE_EVERY_S, ANNOUNCED_AFTER_S = 0.05, 1.0, 3.0
_held: set[Path] = set()  # by this process, whose prepare_data may call that of another object


def guard(module: Any, folder: Path | None, while_waiting: Callable[[str], None] = lambda _: None) -> None:
    """Let one process at a time call the prepare_data of a data module or network.

    Args:
        folder: of the locks; None for no lock.
        while_waiting: called once a second with what it waits for.
    """
    if folder is None or not lightning_packages.overrides(type(module), "prepare_data"):
        return
    owner = next(kind for kind in type(module).__mro__ if "prepare_data" in vars(kind))
    name = f"{owner.__module__}.{owner.__qualname__}"
    path = folder / (re.sub(r"[^A-Za-z0-9_.]", "_", name)[-200:] + ".lock")
    module.prepare_data = _Guarded(_call_alone, module.prepare_data, path, name, while_waiting)


class _Guarded(partial[None]):
    """A method with a lock, which Lightning sees as overridden. Its copy in another process has no lock."""

    def __reduce__(self) -> Any:
        return self.args[0].__reduce__()


def _call_alone(prepare: Callable[[], None], path: Path, name: str, while_waiting: Callable[[str], None]) -> None:
    if path in _held:
        return prepare()
    with _locked(path, name, while_waiting):
        _held.add(path)
        try:
            return prepare()
        finally:
            _held.discard(path)


@contextlib.contextmanager
def _locked(path: Path, name: str, while_waiting: Callable[[str], None]) -> Iterator[None]:
    """Hold a lock of this process. Unlike one of an open file, it is not shared with forks that outlive the process."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError:  # the home is read-only, so no trial runs in it
        yield
        return
    try:
        _acquire(handle, name, while_waiting)
        yield
    finally:
        os.close(handle)


def _acquire(handle: int, name: str, while_waiting: Callable[[str], None]) -> None:
    waits_for = f"prepare_data of {name}, which another process runs"
    began = alive_at = time.monotonic()
    is_announced = False
    while True:
        try:
            fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):  # another process holds it
            pass
        except OSError:  # a file system without locks
            return
        else:
            return
        now = time.monotonic()
        if now - alive_at >= ALIVE_EVERY_S:
            alive_at = now
            while_waiting(waits_for)
        if not is_announced and now - began >= ANNOUNCED_AFTER_S:
            is_announced = True
            print(f"waiting for {waits_for}")
        time.sleep(POLL_EVERY_S)
