"""Kill child processes, and release what Python keeps of them."""

from __future__ import annotations

import contextlib
import multiprocessing.process
import os
import signal
from multiprocessing.process import BaseProcess

_EXIT_TIMEOUT_S = 5.0


def kill(process: BaseProcess) -> None:
    """Kill a process and the process group that it leads, and wait for its exit for a few seconds."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        assert process.pid is not None
        os.killpg(process.pid, signal.SIGKILL)
    process.kill()  # a process that has just started leads no group yet
    process.join(_EXIT_TIMEOUT_S)


def describe_exit(process: BaseProcess) -> str:
    """Say how a process ended that is about to, or has."""
    process.join(1)
    code = process.exitcode
    return f"signal {-code}" if code is not None and code < 0 else f"exit code {code}"


def forget(process: BaseProcess) -> None:
    """Release a killed process without waiting. Inside a driver's call it exits only when that returns."""
    try:
        process.close()
    except ValueError:  # it still exists, and the exit of this process would wait for it
        multiprocessing.process._children.discard(process)  # type: ignore[attr-defined]


def discard(process: BaseProcess) -> None:
    """Kill a process and release it."""
    kill(process)
    forget(process)
