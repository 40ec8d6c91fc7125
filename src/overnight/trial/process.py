"""The first and the last lines of a trial process: a group of its own, its output caught, its end reported."""

from __future__ import annotations

import contextlib
import ctypes
import multiprocessing
import os
import sys
import traceback
from multiprocessing.connection import Connection
from typing import Literal

from overnight.protocol import Decision, EpochEnd, Finished, TrialSpec, Up
from overnight.system import child_process

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of mallopt(3)
_MMAP_BYTES, _TRIM_BYTES = 32 << 20, 256 << 20  # 32 MiB is the most that it takes


def main(connection: Connection, output: Connection, on_cpu: bool = False) -> None:
    """Train the trial that `connection` brings, and report over it; what is printed goes to `output`. Does not return.

    It may have been forked ahead, and wait long for its trial, or for none. on_cpu: that trial will be for the CPU.
    """
    child_process.begin(output.fileno())
    output.close()
    keep_freed_memory()
    if on_cpu:
        from overnight.trial.fit import touch

        child_process.disable_gpus()
        touch()
    try:
        spec: TrialSpec = connection.recv()
    except (EOFError, OSError):  # there is none to come
        os._exit(0)
    if spec.device == "cpu":
        child_process.disable_gpus()
    # The forkserver's way would start DataLoader workers slowly, and leave them behind at a kill.
    multiprocessing.set_start_method("fork", force=True)
    link = PipeLink(connection)
    code = 0
    try:
        from overnight.trial.evaluate import evaluate
        from overnight.trial.fit import fit

        finished = evaluate(spec, link) if spec.test else fit(spec, link)
    except BaseException as error:
        finished = Finished(spec.number, "failed", _reason(error), traceback.format_exc())
        code = 1
    with contextlib.suppress(OSError):  # the supervisor is gone; there is nobody to tell
        link.send(finished)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # tearing the stack down would take longer than many an epoch


def keep_freed_memory() -> None:
    """Have the C library keep what a batch has let go of for the next one (glibc alone).

    It would hand it back to the system, and touch every page anew: 5,000 page faults in one validation of 5,000
    pictures, a third of its time.
    """
    with contextlib.suppress(AttributeError, OSError):
        library = ctypes.CDLL(None)
        library.mallopt(_M_MMAP_THRESHOLD, _MMAP_BYTES)
        library.mallopt(_M_TRIM_THRESHOLD, _TRIM_BYTES)


class PipeLink:
    """The trial's end of the pipe."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def send(self, message: Up) -> None:
        self._connection.send(message)

    def ask(self, message: EpochEnd) -> Decision:
        """Report an epoch and wait for what to do next."""
        self._connection.send(message)
        decision: Decision = self._connection.recv()
        if decision is not Decision.SAVE_AND_STOP and self.stop_wanted():
            return Decision.SAVE_AND_STOP if decision is Decision.GO_ON else decision
        return decision

    def stop_wanted(self) -> bool:
        """Whether the supervisor has said, unasked, to save and stop."""
        return self._connection.poll() and self._connection.recv() is Decision.SAVE_AND_STOP


def _reason(error: BaseException) -> Literal["error", "out_of_memory"]:
    out_of_memory = isinstance(error, MemoryError) or "out of memory" in str(error).lower()
    return "out_of_memory" if out_of_memory else "error"
