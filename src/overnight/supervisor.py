"""The loop: ask, start, record, tell. One supervisor a machine; the only writer of the stores on it."""

from __future__ import annotations

import contextlib
import math
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
import types
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from multiprocessing import forkserver, resource_tracker
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, Literal

from overnight.messages import EpochEnd, Finished, Resumed, StateSaved, TrialSpec, Up, Verdict
from overnight.plan import Plan
from overnight.records import TrialRecord, best_of
from overnight.study import Ledger, Ticket
from overnight.tracking import Tracker

TICK_S = 0.2
GRACE_S = 6.0  # for running trials to save, once asked to stop; then they are killed
STOPPED_WITHIN_S = 9.0  # of the first word to stop everything is marked; what MLflow lacks then, the next start writes
FLUSH_EVERY_S = 1.0
LOG_CAP_BYTES = 1_000_000
DRAIN_READS = 32  # of 64 KiB at a time: a trial that never stops printing must not keep the supervisor from the others
_PRELOAD = ["overnight.trial.preload", "overnight.data.digits", "overnight.models.mlp"]


@dataclass(frozen=True)
class Ending:
    """How a supervisor's work ended. why: done, stopped (by a signal or `overnight stop`), or failures in a row."""

    why: Literal["done", "stopped", "failures"]
    trouble: str | None = None


@dataclass
class TrialProcess:
    """One running trial: its process, the pipe to it, and what it prints."""

    spec: TrialSpec
    process: Any
    pipe: Connection
    output: Connection
    log: Path
    started_at: float = field(default_factory=time.time)
    finished: Finished | None = None
    asked_to_stop: bool = False
    printing: bool = True  # until it closes its output
    epoch: int = -1

    def send(self, verdict: Verdict) -> None:
        with contextlib.suppress(OSError):  # it died; its sentinel says so
            self.pipe.send(verdict)

    def messages(self) -> Iterator[Up]:
        """What has arrived, without waiting."""
        try:
            while self.pipe.poll():
                yield self.pipe.recv()
        except (EOFError, OSError):
            return

    def drain_output(self) -> None:
        """Move what the trial printed into its log, whose first half goes where it grows past the cap."""
        for _ in range(DRAIN_READS):
            try:
                if not self.output.poll():
                    return
                data = os.read(self.output.fileno(), 1 << 16)
            except OSError:
                data = b""
            if not data:
                self.printing = False
                return
            with contextlib.suppress(OSError):  # a log that can't be kept is no reason to lose a night
                self._keep(data)

    def _keep(self, data: bytes) -> None:
        with open(self.log, "ab") as file:
            file.write(data)
            size = file.tell()
        if size > LOG_CAP_BYTES:
            tail = self.log.read_bytes()[-LOG_CAP_BYTES // 2 :]
            self.log.write_bytes(b"[what came before was too long to keep]\n" + tail)

    def kill(self) -> None:
        """End the process, and whatever it started."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.kill()  # it may be so young that it leads no group yet
        self.process.join(5)

    def end(self) -> None:
        """Leave nothing of it behind."""
        self.kill()
        self.drain_output()
        self.pipe.close()
        self.output.close()
        self.process.close()


def warm_up() -> None:
    """Start the forkserver, which imports the stack while the caller does something else."""
    forkserver.set_forkserver_preload(_PRELOAD)
    # What the terminal or systemd sends goes to every process there is. Only the supervisor heeds it, and tells the
    # trials to save; a forkserver that died of it would take them all along. The mask is inherited, for good.
    resource_tracker.ensure_running()  # the forkserver wants one, and starting it would lift the mask
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM, signal.SIGHUP})
    try:
        with _no_main():
            forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def start_trial(spec: TrialSpec, log: Path) -> TrialProcess:
    """Fork a trial process from the warm forkserver."""
    from overnight.trial import process as trial

    context = multiprocessing.get_context("forkserver")
    ours, theirs = context.Pipe()
    output, printed = context.Pipe(duplex=False)
    log.parent.mkdir(parents=True, exist_ok=True)
    with _no_main():
        process = context.Process(target=trial.main, args=(spec, theirs, printed), daemon=False)
        process.start()
    theirs.close()
    printed.close()
    return TrialProcess(spec, process, ours, output, log)


class Supervisor:
    """Runs a plan's trials in its slots until the budget is spent or somebody says stop.

    on_change is called with the supervisor whenever there is something new to show.
    """

    def __init__(
        self, ledger: Ledger, tracker: Tracker, on_change: Callable[[Supervisor], None], only: int | None = None
    ) -> None:
        self.ledger, self.tracker, self.plan = ledger, tracker, ledger.plan
        self.devices = deque(slot_devices(self.plan.settings.slots))
        self.slots = len(self.devices)
        self.running: dict[int, TrialProcess] = {}
        self.ended: list[TrialRecord] = []  # in this session, in order
        self.records: dict[int, TrialRecord] = {}
        self.why: Literal["done", "stopped", "failures"] | None = None
        self.on_change = on_change
        self.only = only
        self._kill_at: float | None = None
        self._stop_asked_at = 0.0
        self._failures = 0
        self._attempts: dict[int, int] = {}
        self._linked = False
        self._flushed_at = time.monotonic()

    # What others may ask of it

    def stop(self) -> None:
        """Have running trials save and stop; a second time, end them as they are."""
        if self.why is None:
            self.why = "stopped"
        now = time.monotonic()
        self._stop_asked_at = self._stop_asked_at or now
        self._kill_at = now + (GRACE_S if self._kill_at is None else 0.0)

    @property
    def best(self) -> TrialRecord | None:
        return best_of(self.records.values(), self.plan.settings)

    # The loop

    def run(self) -> Ending:
        """Work until there is nothing left to do. A KeyboardInterrupt counts as `stop`."""
        self.records = {r.number: r for r in self.ledger.records()}
        self.on_change(self)
        try:
            self._loop()
        finally:
            # Whatever went wrong: no trial is left without a supervisor, nor marked as if it had one.
            for trial in list(self.running.values()):
                trial.end()
            self.running.clear()
            paused = self.ledger.pause_all()
        for number in paused:
            self._note(self.ledger.read(number))
        why = self.why or "done"
        best = self.best if self.only is None else self.records.get(self.only)
        weights = (
            self.plan.settings.place.where.checkpoints(self.plan.name, best.number) / "weights.ckpt" if best else None
        )
        failed = not any(r.state in ("complete", "pruned") for r in self.records.values())
        ending = {"done": "FAILED" if failed else "FINISHED", "stopped": "KILLED", "failures": "FAILED"}[why]
        left_s = self._stop_asked_at + STOPPED_WITHIN_S - time.monotonic() if why == "stopped" else None
        self.tracker.close(ending, best, str(weights) if weights and weights.exists() else None, left_s)
        self._keep_links()
        return Ending(why, self.tracker.trouble)

    def _loop(self) -> None:
        mirroring = False
        while True:
            try:
                self._fill_slots()
                if not mirroring:  # MLflow takes seconds to open: the first trial need not wait for it
                    self.tracker.start(list(self.records.values()))
                    mirroring = True
                if not self.running:
                    return
                self._wait()
                self._tick()
            except KeyboardInterrupt:
                self.stop()

    def _fill_slots(self) -> None:
        while self.why is None and self.devices:
            ticket = self._next_ticket()
            if ticket is None:
                return
            self._start(ticket)

    def _next_ticket(self) -> Ticket | None:
        if self.only is None:
            return self.ledger.ask()
        number, waiting = self.only, not any(r.number == self.only and r.done for r in self.ended)
        return self.ledger.ask_for(number) if waiting and number not in self.running else None

    def _start(self, ticket: Ticket) -> None:
        settings, device = self.plan.settings, self.devices.popleft()
        spec = TrialSpec(
            study=self.plan.name,
            number=ticket.number,
            seed=ticket.seed,
            config=ticket.config,
            metric=settings.study.metric,
            direction=settings.study.direction,
            objective=settings.study.objective,
            folder=settings.place.where.checkpoints(self.plan.name, ticket.number),
            every_s=settings.checkpoint.every_s,
            device=device,
            keep_weights=settings.study.keep_checkpoints > 0 or self.only is not None,
        )
        self.running[ticket.number] = start_trial(spec, settings.place.where.log(self.plan.name, ticket.number))
        self._attempts[ticket.number] = ticket.attempts
        self._note(self.ledger.read(ticket.number))

    def _wait(self) -> None:
        """Sleep until something arrives, and deal with it."""
        handles: dict[Any, TrialProcess] = {}
        for trial in self.running.values():
            handles.update({trial.pipe: trial, trial.process.sentinel: trial})
            if trial.printing:
                handles[trial.output] = trial
        ready = {id(t): t for t in (handles[h] for h in wait(list(handles), timeout=TICK_S))}
        for trial in ready.values():
            trial.drain_output()
            for message in trial.messages():
                self._hear(trial, message)
            if trial.finished is not None or not trial.process.is_alive():
                for message in trial.messages():
                    self._hear(trial, message)
                self._end(trial)

    def _hear(self, trial: TrialProcess, message: Up) -> None:
        number = message.number
        if isinstance(message, EpochEnd):
            # The answer first: the trial waits for it, and for nothing else that follows here.
            trial.epoch = message.epoch
            trial.send(self._judge(trial, message))
            self._note(self.ledger.read(number))
        elif isinstance(message, Resumed):
            for done in message.history:
                self.ledger.record(done)
                trial.epoch = done.epoch
        elif isinstance(message, StateSaved):
            self._attempts[number] = 0
            self.ledger.progressed(number)
        else:
            trial.finished = trial.finished or message  # what was ruled already stands

    def _judge(self, trial: TrialProcess, done: EpochEnd) -> Verdict:
        metric = self.plan.settings.study.metric
        value = done.metrics.get(metric)
        if value is None:
            trial.finished = Finished(
                done.number,
                "failed",
                "error",
                f"study.metric: must be a metric that the model logs by the end of an epoch, got {metric!r}; it logged "
                f"{', '.join(sorted(done.metrics)) or 'none'}",
            )
            return Verdict.END
        self.ledger.record(done)
        if not math.isfinite(value):
            trial.finished = Finished(done.number, "failed", "diverged", f"{metric} was {value}, not a finite number")
            return Verdict.END
        if self.why is not None:
            return Verdict.SAVE_AND_STOP
        if done.epoch + 1 >= trial.spec.config["trainer"]["max_epochs"]:
            return Verdict.GO_ON  # it is complete: to prune it now would save nothing and lose its value
        return Verdict.END if self.ledger.should_prune(done.number) else Verdict.GO_ON

    def _tick(self) -> None:
        now = time.monotonic()
        if now - self._flushed_at >= FLUSH_EVERY_S:
            self._flushed_at = now
            self.ledger.flush()
            self._keep_links()
            self.on_change(self)
            if self.why is None and self.ledger.stop_requested():
                self.stop()
        if self.why is not None:
            # Before its first epoch's end a trial has nothing to save, and may still be importing.
            for trial in list(self.running.values()):
                if not trial.asked_to_stop:
                    trial.asked_to_stop = True
                    trial.send(Verdict.SAVE_AND_STOP)
                elif trial.epoch < 0 or (self._kill_at is not None and now >= self._kill_at):
                    trial.kill()
                    for message in trial.messages():  # its last words, if it got that far
                        self._hear(trial, message)
                    self._end(trial)

    def _end(self, trial: TrialProcess) -> None:
        """A trial's process is through: write down how it ended, and free its slot."""
        number = trial.spec.number
        del self.running[number]
        record = self._outcome(trial)
        self.devices.append(trial.spec.device)
        self._note(record)
        if record.done:
            self.ended.append(record)
            self._keep_best_weights(record)
        self._failures = self._failures + 1 if record.reason == "error" else 0
        if self._failures >= self.plan.settings.study.max_consecutive_failures and self.why is None:
            self.stop()
            self.why = "failures"
        self._fill_slots()  # before the old process is buried: the slot should not wait for that
        trial.end()

    def _outcome(self, trial: TrialProcess) -> TrialRecord:
        """The rules by which a trial's end becomes the ledger's word on it."""
        number, finished = trial.spec.number, trial.finished
        if finished is None:
            return self._cut_off(trial)
        if finished.ending == "failed":
            return self.ledger.fail(number, finished.reason or "error", finished.detail, finished.notes)
        if finished.ending == "ended":
            return self.ledger.prune(number, finished.notes)
        if finished.ending == "saved":
            return self.ledger.pause(number)
        return self.ledger.complete(number, finished.notes)

    def _cut_off(self, trial: TrialProcess) -> TrialRecord:
        """It died without a last word: it goes on from its state, unless it keeps dying without getting further."""
        number = trial.spec.number
        if self.why is not None:
            return self.ledger.pause(number)
        trial.process.join(1)
        code = trial.process.exitcode
        attempts = self._attempts[number] + 1
        if attempts <= self.plan.settings.study.retries:
            return self.ledger.pause(number, attempts)
        how = f"signal {-code}" if code is not None and code < 0 else f"exit code {code}"
        return self.ledger.fail(
            number,
            "crashed",
            f"the trial's process ended by {how}, {attempts} times in a row "
            f"without getting further; `overnight logs` shows what it printed",
        )

    def _note(self, record: TrialRecord) -> None:
        self.records[record.number] = record
        self.tracker.mirror(record)
        self.on_change(self)

    def _keep_links(self) -> None:
        tracker = self.tracker
        if tracker.ready and not self._linked:
            self.ledger.link(tracker.experiment_id, tracker.parent_run_id)
            self._linked = True

    def _keep_best_weights(self, record: TrialRecord) -> None:
        """Remove the checkpoints of every ended trial but the best so many."""
        settings = self.plan.settings
        if self.only is not None:
            return
        sign = 1 if settings.study.direction == "maximize" else -1
        complete = sorted(
            (r for r in self.records.values() if r.state == "complete"),
            key=lambda r: (-sign * (r.objective or 0.0), r.number),
        )
        kept = {r.number for r in complete[: settings.study.keep_checkpoints]}
        for number in {record.number, *(r.number for r in complete)} - kept:
            shutil.rmtree(settings.place.where.checkpoints(self.plan.name, number), ignore_errors=True)


def measure(plan: Plan, epochs: int, folder: Path) -> tuple[float, float, int]:
    """Train the configuration as written for a few epochs, outside any study.

    Returns:
        Seconds from a trial's start to its first epoch's end less that epoch, seconds an epoch (the fastest after
        the first), and bytes of its weights. Raises RuntimeError with the trial's words where it failed.
    """
    config = plan.config({})
    config["trainer"]["max_epochs"] = epochs
    study = plan.settings.study
    spec = TrialSpec(
        plan.name,
        0,
        plan.trial_seed(0),
        config,
        study.metric,
        study.direction,
        study.objective,
        folder,
        every_s=float("inf"),
        device=slot_devices(1)[0],
    )
    warm_up()
    trial = start_trial(spec, folder / "log")
    started, seconds, first = trial.started_at, [], 0.0
    while trial.finished is None:
        wait([trial.pipe, trial.output, trial.process.sentinel])
        trial.drain_output()
        for message in trial.messages():
            if isinstance(message, EpochEnd):
                first = first or message.at - message.seconds - started
                seconds.append(message.seconds)
                trial.send(Verdict.GO_ON)
            elif isinstance(message, Finished):
                trial.finished = message
        if trial.finished is None and not trial.process.is_alive():
            trial.finished = Finished(0, "failed", "error", trial.log.read_text(errors="replace"))
    trial.end()
    if trial.finished.ending != "complete":
        raise RuntimeError(trial.finished.detail)
    return first, min(seconds[1:] or seconds), (folder / "weights.ckpt").stat().st_size


def slot_devices(slots: int | None) -> list[str]:
    """One device a slot: the machine's GPUs in turn, or the CPU, once a core unless told otherwise."""
    gpus = _gpus()
    if gpus:
        return [f"cuda:{i % gpus}" for i in range(slots or gpus)]
    return ["cpu"] * (slots or _cores())


def _cores() -> int:
    """The cores that this process may use, a container's share included."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with contextlib.suppress(OSError, ValueError):
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        if quota != "max":
            cores = min(cores, max(1, round(int(quota) / int(period))))
    return cores


def _gpus() -> int:
    """How many NVIDIA GPUs there are, asked without torch, which the supervisor never imports."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return len([d for d in visible.split(",") if d.strip() not in ("", "-1")])
    try:
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=20, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return 0
    return sum(line.startswith("GPU ") for line in listed.splitlines())


@contextlib.contextmanager
def _no_main() -> Iterator[None]:
    """Hide __main__ while a process starts: multiprocessing would run the caller's script again in every trial, and
    a script without a guard would then start a study in each."""
    main = sys.modules["__main__"]
    sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main
