"""Trial processes, as the supervisor sees them: the pipe, the printed output and its log, and how they start."""

from __future__ import annotations

import contextlib
import math
import multiprocessing
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, Protocol

from overnight.protocol import (
    Decision,
    Exported,
    ExportSpec,
    Failure,
    Finished,
    FoldEnded,
    Predictions,
    PredictSpec,
    Progress,
    Reason,
    TrialMessage,
    TrialSpec,
)
from overnight.runner.watchdog import Violation
from overnight.system import forkserver
from overnight.system.kill import discard, forget, kill

LOG_CAP_BYTES = 1_000_000
# Of 64 KiB each. The limit lets the supervisor serve the other trials while one prints without end.
READS_AT_ONCE = 32


@dataclass
class TrialProcess:
    """A running trial: its process, the pipe to it, and what it prints.

    Attributes:
        finished: its last message, or the supervisor's decision that it failed.
        violation: the limit that it exceeded, if the watchdog ended it.
        asked_to_stop: the supervisor has asked it to save and stop.
        pruned: the pruner ended it, possibly after it was asked to stop.
        until: the epochs after which its scheduler decides whether it goes on; None for none.
        printing: False once it has closed its output.
        index: the last epoch or validation that is done, counted from 0; -1 before the first.
        fold, fold_start: the fold of a cross-validation that it is in, and the index with which that began.
    """

    spec: TrialSpec
    process: BaseProcess
    pipe: Connection
    output: Connection
    log: Path
    started_at: float = field(default_factory=time.time)
    finished: Finished | None = None
    violation: Violation | None = None
    asked_to_stop: bool = False
    pruned: bool = False
    until: int | None = None
    printing: bool = True
    index: int = -1
    fold: int | None = None
    fold_start: int = 0

    def note(self, done: Progress) -> None:
        """Note how far the trial is."""
        if done.fold != self.fold:
            self.fold, self.fold_start = done.fold, done.index
        self.index = done.index

    def send(self, decision: Decision) -> None:
        with contextlib.suppress(OSError):  # it has died, which its sentinel reports
            self.pipe.send(decision)

    def messages(self) -> Iterator[TrialMessage]:
        """Yield the messages that have arrived, without waiting."""
        try:
            while self.pipe.poll():
                yield self.pipe.recv()
        except (EOFError, OSError):
            return

    def drain_output(self) -> bool:
        """Move what the trial printed into its log. Returns whether there was anything."""
        printed = False
        for _ in range(READS_AT_ONCE):
            try:
                if not self.output.poll():
                    return printed
                data = os.read(self.output.fileno(), 1 << 16)
            except OSError:
                data = b""
            if not data:
                self.printing = False
                return printed
            printed = True
            with contextlib.suppress(OSError):  # a study goes on without the log
                self._append_to_log(data)
        return printed

    def _append_to_log(self, data: bytes) -> None:
        """Append to the log. Drop its first half if it exceeds the cap."""
        with open(self.log, "ab") as file:
            file.write(data)
            size = file.tell()
        if size > LOG_CAP_BYTES:
            tail = self.log.read_bytes()[-LOG_CAP_BYTES // 2 :]
            self.log.write_bytes(b"[earlier output was too long to keep]\n" + tail)

    def kill(self) -> None:
        """Kill the process and its children."""
        kill(self.process)

    def close(self) -> None:
        """Kill the process, keep its last output, and free all its resources."""
        self.kill()
        self.drain_output()
        self.pipe.close()
        self.output.close()
        forget(self.process)


class ProcessFactory(Protocol):
    """Starts trial processes."""

    def is_ready(self, within_s: float = 0.0) -> bool:
        """Wait up to `within_s` seconds; return whether a trial can start now."""
        ...

    def start(self, spec: TrialSpec, log: Path) -> TrialProcess: ...

    def fork_ahead(self) -> None:
        """Prepare a process for the next trial, so that a freed slot does not wait for a fork."""
        ...

    def close(self) -> None:
        """End the process that was prepared."""
        ...


class ForkedProcesses:
    """Starts trial processes by forking them from the warm forkserver.

    Args:
        on_cpu: all trials run on the CPU, so a process can run a trial's first lines before it gets one.
    """

    def __init__(self, on_cpu: bool = False) -> None:
        self._on_cpu = on_cpu
        self._prepared: tuple[BaseProcess, Connection, Connection] | None = None

    def is_ready(self, within_s: float = 0.0) -> bool:
        """Return whether the forkserver has imported the stack. Before that, a fork blocks and delays signals."""
        return forkserver.is_warm(within_s)

    def start(self, spec: TrialSpec, log: Path) -> TrialProcess:
        log.parent.mkdir(parents=True, exist_ok=True)
        if self._prepared is not None and not self._prepared[0].is_alive():
            self.close()
        self.fork_ahead()
        assert self._prepared is not None
        trial = TrialProcess(spec, *self._prepared, log)
        self._prepared = None
        with contextlib.suppress(OSError):  # it has just died, which its sentinel reports
            trial.pipe.send(spec)
        return trial

    def fork_ahead(self) -> None:
        if self._prepared is not None:
            return
        from overnight.trial import process as trial

        ours, theirs = multiprocessing.Pipe()
        output, printed = multiprocessing.Pipe(duplex=False)
        process = forkserver.fork(trial.main, theirs, printed, self._on_cpu)
        theirs.close()
        printed.close()
        self._prepared = process, ours, output

    def close(self) -> None:
        if self._prepared is not None:
            process, *ends = self._prepared
            self._prepared = None
            discard(process)
            for end in ends:
                end.close()


def run_alone(
    spec: TrialSpec,
    log: Path,
    silence_s: float | None = None,
    until: float | None = None,
    answer: Callable[[Progress], Decision] = lambda _: Decision.CONTINUE,
) -> tuple[TrialProcess, list[TrialMessage]]:
    """Run a trial outside any study.

    Args:
        silence_s: the trial fails if no message or output arrives for so long.
        until: the trial is ended at this time, in seconds since 1970.
        answer: decides what the trial does after an epoch or a validation.

    Returns:
        The ended trial and all its messages.
    """
    received: list[TrialMessage] = []
    ends_at = math.inf if until is None else time.monotonic() + until - time.time()
    silence_limit_s = math.inf if silence_s is None else silence_s
    trial = ForkedProcesses().start(spec, log)
    try:
        while trial.finished is None:
            handles: list[Any] = [trial.pipe, trial.process.sentinel, *([trial.output] if trial.printing else [])]
            timeout_s = min(silence_limit_s, max(ends_at - time.monotonic(), 0.0))
            ready = wait(handles, timeout=timeout_s if timeout_s < math.inf else None)
            is_dead = not trial.process.is_alive()  # asked before the messages are read, so that none is missed
            trial.drain_output()
            for message in trial.messages():
                received.append(message)
                if isinstance(message, Progress):
                    trial.send(answer(message))
                elif isinstance(message, FoldEnded):
                    trial.send(Decision.CONTINUE)
                elif isinstance(message, Finished):
                    trial.finished = message
            if trial.finished is not None:
                break
            if time.monotonic() >= ends_at:
                trial.finished = _failed(spec, "timed_out", "no time was left")
            elif not ready and timeout_s == silence_s:
                trial.finished = _failed(spec, "stalled", f"no message or output came for {silence_s:g} s")
            elif is_dead:
                trial.finished = _failed(spec, "crashed", _cause_of_death(trial))
    finally:
        trial.close()
    return trial, received


def _failed(spec: TrialSpec, reason: Reason, detail: str) -> Finished:
    return Finished(spec.number, "failed", reason, detail)


def _cause_of_death(trial: TrialProcess) -> str:
    code = trial.process.exitcode or 0
    printed = trial.log.read_text(errors="replace").strip() if trial.log.exists() else ""
    return printed or (f"its process was ended by signal {-code}" if code < 0 else f"its process ended with {code}")


def run_one_shot(spec: ExportSpec | PredictSpec, log: Path, timeout_s: float) -> Exported | Predictions | Failure:
    """Run a job with a trained network in a process and return its answer. What it prints goes to `log`."""
    from overnight.trial import one_shot

    ours, theirs = multiprocessing.Pipe(duplex=False)
    log.parent.mkdir(parents=True, exist_ok=True)
    process = forkserver.fork(one_shot.main, spec, theirs, log)
    theirs.close()
    try:
        if not ours.poll(timeout_s):
            return Failure((f"the process did not answer within {timeout_s:g} s; {log} holds what it printed",))
        answer: Exported | Predictions | Failure = ours.recv()
        return answer
    except EOFError:
        return Failure((f"the process ended without an answer; {log} holds what it printed",))
    finally:
        ours.close()
        discard(process)
