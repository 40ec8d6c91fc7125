"""The lock of a study: one process of a machine works on it at a time, and a file beside the lock says which.

A shared study has members in place of a lock; see `leases`.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from overnight.config.paths import HomePaths, StudyLocation
from overnight.study.storage import leases
from overnight.study.storage.access import require_writable
from overnight.study.storage.database import opened
from overnight.system.files import write_atomically
from overnight.system.identity import is_running, own_identity

_HOLDER_FILE_WAIT_S = 2.0
_HOLDER_SUFFIX = ".holder.json"


class StudyInUse(RuntimeError):
    """Another process works on the study. The message names it and what to do.

    Args:
        study: name of the study.
        holder: what `holder_of` returns; empty where it is not known.
    """

    def __init__(self, study: str, holder: Mapping[str, Any]) -> None:
        since = time.strftime("%H:%M", time.localtime(holder.get("since", time.time())))
        super().__init__(
            f"{study}: process {holder.get('pid', '?')} on {holder.get('host', 'this machine')} has been running it "
            f"since {since}; stop it with `overnight stop {study}`, or watch it with `overnight status {study} --watch`"
        )


def lock_study(location: StudyLocation, study: str) -> Callable[[], None]:
    """Lock a study for this process, until it ends or calls the function that is returned.

    Raises:
        StudyInUse: another process works on the study.
        ConfigError: the home can't be written.
    """
    require_writable(location)
    path = location.paths.study(study).lock
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path)  # the system releases it when this process dies, in whatever way
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise StudyInUse(study, _await_holder(location, study)) from None
    holder = holder_file(location, study)
    write_atomically(holder, json.dumps({**own_identity(), "since": time.time()}))

    def release() -> None:
        holder.unlink(missing_ok=True)
        lock.release()

    return release


def holder_of(location: StudyLocation, study: str) -> dict[str, Any] | None:
    """Return the process that works on a study: on this machine or, if the storage is shared, on any.

    Returns:
        "pid", "host", "since" (seconds since 1970) and, if the storage is shared, "others" (the number of further
        processes); None where no process that is alive works on it.
    """
    if location.shared:
        return _first_member(location, study)
    return _alive_holder(holder_file(location, study))


def holders_in(paths: HomePaths) -> list[tuple[str, int]]:
    """Return the studies of a home that processes of this machine work on, each with the process's id."""
    files = {file.name.removesuffix(_HOLDER_SUFFIX): file for file in sorted(paths.locks.glob(f"*{_HOLDER_SUFFIX}"))}
    holders = {study: _alive_holder(file) for study, file in files.items()}
    return [(study, int(holder["pid"])) for study, holder in holders.items() if holder is not None]


def _alive_holder(file: Path) -> dict[str, Any] | None:
    """Return what a holder file says, if its process is alive."""
    try:
        holder: dict[str, Any] = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError):
        return None
    return holder if is_running(holder) else None


def holder_file(location: StudyLocation, study: str) -> Path:
    return location.paths.study(study).lock.with_suffix(_HOLDER_SUFFIX)


def _await_holder(location: StudyLocation, study: str) -> dict[str, Any]:
    """Return the holder of a lock. A process that has just acquired it may not have written its file yet."""
    deadline = time.monotonic() + _HOLDER_FILE_WAIT_S
    while (holder := holder_of(location, study)) is None and time.monotonic() < deadline:
        time.sleep(0.05)
    return holder or {}


def _first_member(location: StudyLocation, study: str) -> dict[str, Any] | None:
    with opened(location) as storage, storage.engine.connect() as connection:
        members = leases.members(connection, study)
    return {**vars(members[0]), "others": len(members) - 1} if members else None
