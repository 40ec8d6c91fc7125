"""End this process when its parent process dies."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Callable

_PR_SET_PDEATHSIG = 1  # of prctl(2)

forkserver: int | None = None  # the process that all others are forked from; set in it, and inherited


def _forkserver_lives() -> bool:
    return forkserver is None or os.getppid() == forkserver


def die_with_parent(lives: Callable[[], bool] = _forkserver_lives) -> None:
    """Have the kernel kill this process when its parent is gone, even where it hangs in C code (Linux only).

    lives: whether the parent is there still; one that died before the kernel was told would never be missed.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if not lives():
        os._exit(1)
