"""Which process wrote a file, and whether that process is still running: a process id alone is used again."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil

# Largest difference between two readings of one process's start time. A process id is not reused within it.
_START_TOLERANCE_S = 2.0


def own_identity() -> dict[str, Any]:
    """Return what identifies this process: id, start and host, as JSON holds them."""
    return {"pid": os.getpid(), **_start_of(os.getpid()), "host": socket.gethostname()}


def is_running(identity: Mapping[str, Any]) -> bool:
    """Return whether the process that wrote an identity still runs, on this machine."""
    try:
        start = _start_of(identity["pid"])
        same_boot = start["boot"] is not None and start["boot"] == identity.get("boot")
        comparable = ["created", *(["after_boot_s"] if same_boot else [])]
        return any(abs(start[key] - identity[key]) < _START_TOLERANCE_S for key in comparable)
    except (OSError, ValueError, KeyError, TypeError, psutil.Error):
        return False


def _start_of(pid: int) -> dict[str, Any]:
    """Return when a process started. Linux also counts from the boot, which a change of the clock does not move."""
    created, boot = psutil.Process(pid).create_time(), Path("/proc/sys/kernel/random/boot_id")
    return {
        "created": created,
        "after_boot_s": created - psutil.boot_time(),
        "boot": boot.read_text("utf-8").strip() if boot.exists() else None,
    }
