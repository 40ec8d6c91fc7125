"""Processes of ours that are to be there no more."""

from __future__ import annotations

import contextlib
import multiprocessing.process
import os
import signal
from multiprocessing.process import BaseProcess

_DIES_WITHIN_S = 5.0


def kill(process: BaseProcess) -> None:
    """End a process, and the group that it leads; a while is waited for it to die."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        assert process.pid is not None
        os.killpg(process.pid, signal.SIGKILL)
    process.kill()  # it may be so young that it leads no group yet
    process.join(_DIES_WITHIN_S)


def forget(process: BaseProcess) -> None:
    """Let go of a process that was killed. In the middle of a driver's call it dies when that returns, and nobody waits
    for it."""
    try:
        process.close()
    except ValueError:  # it is there yet, and this one's exit would wait for all that are
        multiprocessing.process._children.discard(process)  # type: ignore[attr-defined]


def discard(process: BaseProcess) -> None:
    """End a process, and let go of it."""
    kill(process)
    forget(process)
