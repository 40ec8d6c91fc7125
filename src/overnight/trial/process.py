"""The trial process: it waits for a trial, runs it, and reports its end."""

from __future__ import annotations

import contextlib
import ctypes
import multiprocessing
import os
import sys
import traceback
from multiprocessing.connection import Connection
from typing import Literal

from overnight.protocol import Decision, Finished, FoldEnded, Progress, TrialMessage, TrialSpec
from overnight.system import child_process
from overnight.trial.targets import TargetError

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of mallopt(3)
_MMAP_BYTES, _TRIM_BYTES = 32 << 20, 256 << 20  # 32 MiB is the maximum for the first


def main(connection: Connection, output: Connection, on_cpu: bool = False) -> None:
    """Run one trial and exit.

    The process may be forked ahead: it then waits for its trial, or exits when the pipe closes.

    Args:
        connection: brings the TrialSpec; messages and decisions travel on it.
        output: receives what the trial prints.
        on_cpu: the trial will use the CPU, so that the process can prepare for it while it waits.
    """
    child_process.begin(output.fileno())
    output.close()
    keep_freed_memory()
    if on_cpu:
        from overnight.trial.fit import warm_up_process

        child_process.disable_gpus()
        warm_up_process()
    try:
        spec: TrialSpec = connection.recv()
    except (EOFError, OSError):  # the supervisor has no further trial
        os._exit(0)
    if spec.device == "cpu":
        child_process.disable_gpus()
    # Workers of DataLoaders that are started through the forkserver start slowly, and survive a kill of this process.
    multiprocessing.set_start_method("fork", force=True)
    link = PipeLink(connection)
    code = 0
    try:
        from overnight.trial.evaluate import evaluate
        from overnight.trial.fit import fit

        if spec.test_only:
            finished = evaluate(spec.of_fold(0), link)
        elif spec.fold_seeds:
            from overnight.trial.folds import fit_folds

            finished = fit_folds(spec, link)
        else:
            finished = fit(spec, link)
    except BaseException as error:
        finished = Finished(spec.number, "failed", _reason(error), _detail(error))
        code = 1
    with contextlib.suppress(OSError):  # the supervisor is gone
        link.send(finished)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # an orderly exit takes longer than many an epoch


def keep_freed_memory() -> None:
    """Have the C library keep freed memory for the next batch (glibc only).

    By default it returns large blocks to the kernel and touches all their pages again: 5,000 page faults in the
    validation of 5,000 images, a third of its time.
    """
    with contextlib.suppress(AttributeError, OSError):
        library = ctypes.CDLL(None)
        library.mallopt(_M_MMAP_THRESHOLD, _MMAP_BYTES)
        library.mallopt(_M_TRIM_THRESHOLD, _TRIM_BYTES)


class PipeLink:
    """The trial's end of the pipe to the supervisor."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def send(self, message: TrialMessage) -> None:
        self._connection.send(message)

    def ask(self, message: Progress | FoldEnded) -> Decision:
        """Report an epoch, a validation or a fold and wait for the decision."""
        self._connection.send(message)
        decision: Decision = self._connection.recv()
        if decision is not Decision.SAVE_AND_STOP and self.stop_wanted():
            return Decision.SAVE_AND_STOP if decision is Decision.CONTINUE else decision
        return decision

    def stop_wanted(self) -> bool:
        """Return whether the supervisor has sent SAVE_AND_STOP on its own."""
        return self._connection.poll() and self._connection.recv() is Decision.SAVE_AND_STOP


def _detail(error: BaseException) -> str:
    """Return the traceback, which leads to the user's code; a mistake in the configuration has none."""
    is_mistake = isinstance(error, TargetError) and error.__cause__ is None
    return str(error) if is_mistake else traceback.format_exc()


def _reason(error: BaseException) -> Literal["error", "out_of_memory"]:
    out_of_memory = isinstance(error, MemoryError) or "out of memory" in str(error).lower()
    return "out_of_memory" if out_of_memory else "error"
