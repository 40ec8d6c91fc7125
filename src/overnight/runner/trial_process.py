"""Trial processes, from the supervisor's side: the process forked ahead, the end of the pipe, the log."""

from __future__ import annotations

import contextlib
import math
import multiprocessing
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from overnight.protocol import (
    Decision,
    EpochEnd,
    Exported,
    ExportSpec,
    Finished,
    Predicted,
    PredictSpec,
    Refused,
    TrialSpec,
    Up,
)
from overnight.runner.watchdog import Ruling
from overnight.system import forkserver
from overnight.system.kill import discard, forget, kill

LOG_CAP_BYTES = 1_000_000
DRAIN_READS = 32  # of 64 KiB at a time: a trial that never stops printing must not keep the supervisor from the others


@dataclass
class TrialProcess:
    """One running trial: its process, the pipe to it, and what it prints."""

    spec: TrialSpec
    process: BaseProcess
    pipe: Connection
    output: Connection
    log: Path
    started_at: float = field(default_factory=time.time)
    finished: Finished | None = None
    ruling: Ruling | None = None  # the watchdog's
    asked_to_stop: bool = False
    pruned: bool = False  # the pruner ends it, though it may have heard before that it is to stop
    printing: bool = True  # until it closes its output
    epoch: int = -1

    def send(self, decision: Decision) -> None:
        with contextlib.suppress(OSError):  # it died; its sentinel says so
            self.pipe.send(decision)

    def messages(self) -> Iterator[Up]:
        """What has arrived, without waiting."""
        try:
            while self.pipe.poll():
                yield self.pipe.recv()
        except (EOFError, OSError):
            return

    def drain_output(self) -> bool:
        """Move what the trial printed into its log, whose first half goes where it grows past the cap.

        Returns whether there was anything.
        """
        printed = False
        for _ in range(DRAIN_READS):
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
            with contextlib.suppress(OSError):  # a log that can't be kept is no reason to lose a night
                self._keep(data)
        return printed

    def _keep(self, data: bytes) -> None:
        with open(self.log, "ab") as file:
            file.write(data)
            size = file.tell()
        if size > LOG_CAP_BYTES:
            tail = self.log.read_bytes()[-LOG_CAP_BYTES // 2 :]
            self.log.write_bytes(b"[what came before was too long to keep]\n" + tail)

    def kill(self) -> None:
        """End the process, and whatever it started."""
        kill(self.process)

    def end(self) -> None:
        """Leave nothing of it behind."""
        self.kill()
        self.drain_output()
        self.pipe.close()
        self.output.close()
        forget(self.process)


class Starter:
    """Starts trials, in a process that was forked ahead where there is one: a freed slot need not wait for a fork.

    on_cpu: all of them are for the CPU, so that a process can go through a trial's first lines before it has one.
    """

    def __init__(self, on_cpu: bool = False) -> None:
        self._on_cpu = on_cpu
        self._ahead: tuple[BaseProcess, Connection, Connection] | None = None

    def start(self, spec: TrialSpec, log: Path) -> TrialProcess:
        log.parent.mkdir(parents=True, exist_ok=True)
        if self._ahead is not None and not self._ahead[0].is_alive():
            self.close()
        self.fork_ahead()
        assert self._ahead is not None
        trial = TrialProcess(spec, *self._ahead, log)
        self._ahead = None
        with contextlib.suppress(OSError):  # it died this very moment; its sentinel says so
            trial.pipe.send(spec)
        return trial

    def fork_ahead(self) -> None:
        """Have a process ready for the next trial."""
        if self._ahead is not None:
            return
        from overnight.trial import process as trial

        ours, theirs = multiprocessing.Pipe()
        output, printed = multiprocessing.Pipe(duplex=False)
        process = forkserver.fork(trial.main, theirs, printed, self._on_cpu)
        theirs.close()
        printed.close()
        self._ahead = process, ours, output

    def close(self) -> None:
        """End the process that was forked ahead: nobody else would."""
        if self._ahead is not None:
            process, *ends = self._ahead
            self._ahead = None
            discard(process)
            for end in ends:
                end.close()


def run_alone(
    spec: TrialSpec, log: Path, silence_s: float | None = None, until: float | None = None
) -> tuple[TrialProcess, list[Up]]:
    """Run a trial outside any study, every epoch answered with "go on".

    silence_s: nothing heard for so long counts as failed. until: when it is ended, whatever it says, in seconds since
    1970. Returns the ended trial, and all that it said.
    """
    said: list[Up] = []
    ends = math.inf if until is None else time.monotonic() + until - time.time()
    trial = Starter().start(spec, log)
    try:
        while trial.finished is None:
            handles: list[Any] = [trial.pipe, trial.process.sentinel, *([trial.output] if trial.printing else [])]
            limit_s = min(math.inf if silence_s is None else silence_s, max(ends - time.monotonic(), 0.0))
            ready = wait(handles, timeout=limit_s if limit_s < math.inf else None)
            died = not trial.process.is_alive()  # and so will say nothing after what is read here
            trial.drain_output()
            for message in trial.messages():
                said.append(message)
                if isinstance(message, EpochEnd):
                    trial.send(Decision.GO_ON)
                elif isinstance(message, Finished):
                    trial.finished = message
            if trial.finished is not None:
                break
            if time.monotonic() >= ends:
                trial.finished = Finished(spec.number, "failed", "timed_out", "there was no time left")
            elif not ready and limit_s == silence_s:
                trial.finished = Finished(spec.number, "failed", "stalled", f"nothing was heard for {silence_s:g} s")
            elif died:
                trial.finished = Finished(spec.number, "failed", "crashed", _last_words(trial))
    finally:
        trial.end()
    return trial, said


def _last_words(trial: TrialProcess) -> str:
    """What a process that died printed, or else how it died."""
    code = trial.process.exitcode or 0
    printed = trial.log.read_text(errors="replace").strip() if trial.log.exists() else ""
    return printed or (f"its process was ended by signal {-code}" if code < 0 else f"its process left with {code}")


def run_one_shot(spec: ExportSpec | PredictSpec, log: Path, within_s: float) -> Exported | Predicted | Refused:
    """Have a process do what `spec` says and report, which it must within so many seconds; what it prints goes to
    `log`."""
    from overnight.trial import one_shot

    ours, theirs = multiprocessing.Pipe(duplex=False)
    log.parent.mkdir(parents=True, exist_ok=True)
    process = forkserver.fork(one_shot.main, spec, theirs, log)
    theirs.close()
    try:
        if not ours.poll(within_s):
            return Refused((f"nothing was heard for {within_s:g} s; {log} holds what it printed",))
        answer: Exported | Predicted | Refused = ours.recv()
        return answer
    except EOFError:
        return Refused((f"the process ended without a word; {log} holds what it printed",))
    finally:
        ours.close()
        discard(process)
