"""What each child process does before its work: its own session, its parent, its output, its GPUs."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Callable

_PR_SET_PDEATHSIG = 1  # prctl(2)

forkserver_pid: int | None = None  # set in the forkserver and inherited by its forks; None outside of it


def begin(output: int | None = None, *, new_session: bool = True, hide_gpus: bool = False) -> None:
    """Prepare a process that was forked from the forkserver.

    Args:
        output: descriptor of the open file or pipe that receives stdout and stderr; None leaves both as they are.
        new_session: lead a session and process group of its own. One signal then reaches the process with everything
            that it starts, and Ctrl-C in the terminal reaches the supervisor alone.
        hide_gpus: hide all GPUs from torch.
    """
    if new_session:
        os.setsid()
    die_with_parent()
    if output is not None:
        redirect_output(output)
    if hide_gpus:
        disable_gpus()


def die_with_parent(parent_is_alive: Callable[[], bool] | None = None) -> None:
    """Have the kernel kill this process when its parent dies, even while it hangs in C code (Linux only).

    Args:
        parent_is_alive: called after the kernel is told, because a parent that died earlier sends no signal. By
            default, whether the parent is still the forkserver.
    """
    signal_when_parent_dies(signal.SIGKILL)
    if not (parent_is_alive or _forkserver_is_parent)():
        os._exit(1)


def signal_when_parent_dies(number: int) -> None:
    """Have the kernel send this process a signal when its parent dies (Linux only). The setting survives exec."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, number)


def redirect_output(descriptor: int) -> None:
    """Send stdout and stderr of this process, of C code and of its children to a descriptor, line by line."""
    sys.stdout.flush()
    sys.stderr.flush()
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    sys.stdout = os.fdopen(1, "w", buffering=1, encoding="utf-8", errors="replace", closefd=False)
    sys.stderr = os.fdopen(2, "w", buffering=1, encoding="utf-8", errors="replace", closefd=False)


def disable_gpus() -> None:
    """Hide all GPUs. Torch otherwise asks at each optimizer step whether one exists, a tenth of a small step."""
    os.environ["CUDA_VISIBLE_DEVICES"] = ""


def _forkserver_is_parent() -> bool:
    return forkserver_pid is None or os.getppid() == forkserver_pid
