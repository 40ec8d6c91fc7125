"""The loop: ask, start, record, tell. One supervisor a machine; the only writer of the stores on it."""

from __future__ import annotations

import math
import shutil
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import wait
from typing import Any

from overnight.protocol import Alive, Decision, EpochEnd, Finished, Resumed, StateSaved, Up
from overnight.runner.exit_policy import ExitPolicy
from overnight.runner.outcomes import Outcomes
from overnight.runner.plot_scheduler import PlotScheduler
from overnight.runner.stop_state import StopReason, StopState
from overnight.runner.trial_process import ForkedProcesses, TrialProcess
from overnight.runner.trial_spec import trial_spec
from overnight.runner.watchdog import Watchdog
from overnight.search.limits import Limits
from overnight.search.record import TrialRecord, best_of, trials_with_weights
from overnight.study.queue import TrialAssignment
from overnight.study.session import StudySession
from overnight.study.storage.database import DiskFull, free_mib
from overnight.study.storage.outage import Unreachable
from overnight.system import forkserver
from overnight.system.devices import machine_memory, slot_devices
from overnight.tracking.sync import MlflowSync

TICK_S = 0.2
LOOK_EVERY_S = 1.0
ADOPT_AGAIN_S = 5.0  # between two tries to adopt trials that peers have left


@dataclass(frozen=True)
class Ending:
    """How a supervisor's work ended.

    Attributes:
        did_work: False if nothing was left to do.
        mlflow_error: what kept MLflow from being complete, in one line.
    """

    stop_reason: StopReason
    records: tuple[TrialRecord, ...]
    did_work: bool
    mlflow_error: str | None


class Supervisor:
    """Runs a plan's trials in its slots until the budget is spent or somebody says stop.

    on_change is called with the supervisor whenever there is something new to show.
    """

    def __init__(
        self,
        session: StudySession,
        mlflow_sync: MlflowSync,
        on_change: Callable[[Supervisor], None] = lambda _: None,
        only: int | None = None,
        limits: Limits | None = None,
    ) -> None:
        self.session, self.mlflow_sync, self.plan = session, mlflow_sync, session.plan
        session.queue.use_helper_process(forkserver.fork)
        self.devices = deque(slot_devices(self.plan.settings.slots))
        self.slots = len(self.devices)
        self.running: dict[int, TrialProcess] = {}
        self.started = 0  # trials, in this session
        self.ended: list[TrialRecord] = []  # likewise, in order
        self.records: dict[int, TrialRecord] = {}
        self.stopping = StopState()
        self.on_change = on_change
        self.only = only
        self.limits = limits
        self.ahead: str | None = None  # what there is to come before a deadline
        self.no_room = False  # on the disk: trials save, and wait for it
        session.storage.backend.wait_for_space = self._await_room
        self._starter = ForkedProcesses(on_cpu=set(self.devices) == {"cpu"})
        self._plot_scheduler = PlotScheduler(self.plan, session.attributes.uid, mlflow_sync)
        self._watchdog = Watchdog(self.plan.settings.trial, self.slots, machine_memory())
        self._outcomes = Outcomes(session)
        self._asked_all = False  # there was nothing more to ask for
        self._unanswered = False  # the ledger was out of reach when it was asked
        self._exit_policy = ExitPolicy(session)
        self._gone: set[int] = set()  # trials whose checkpoints were removed
        self._unmirrored: dict[int, TrialRecord] = {}
        self._linked = False
        self._refused = False  # by a limit: it said that there is nothing to start
        self._ask_again_at = self._adopt_again_at = 0.0
        self._flushed_at = self._looked_at = time.monotonic()
        self._flush_every_s = session.coordinator.flush_interval_s

    # What others may ask of it

    def stop(self) -> None:
        """Have running trials save and stop; a second time, end them, and this, as they are."""
        self.stopping.request(StopReason.STOPPED)

    @property
    def silent(self) -> Sequence[int]:
        """The numbers of trials that were ended for saying nothing."""
        return self._outcomes.silent

    @property
    def best(self) -> TrialRecord | None:
        return best_of(self.records.values(), self.plan.settings)

    @property
    def warning(self) -> str | None:
        """What keeps trials from starting or MLflow from being complete, in one line."""
        if self.no_room:
            settings = self.plan.settings
            return (
                f"less than {settings.min_free_mib} MiB are free in {settings.location.paths.root}: trials are saved "
                f"and resumed when there is room"
            )
        error = self.mlflow_sync.error
        return f"MLflow cannot be written, retrying: {error}" if error else None

    # The loop

    def run(self) -> Ending:
        """Work until there is nothing left to do. A KeyboardInterrupt counts as `stop`."""
        self.records = {r.number: r for r in self.session.records()}
        self.on_change(self)
        try:
            self._loop()
        finally:
            # Whatever went wrong: no trial is left without a supervisor, nor marked as if it had one.
            self._starter.close()
            self._plot_scheduler.rest()
            for trial in list(self.running.values()):
                trial.close()
            self.running.clear()
            self.session.coordinator.take_lost()
            paused = self.session.writer.pause_all()
        for number in paused:
            self._note(self.session.read(number))
        self._mirror()
        reason = self._stop_reason()
        best = self.best if self.only is None else self.records.get(self.only)
        weights = self.plan.paths.checkpoint(best.number) / "weights.ckpt" if best else None
        try:
            self._plot_scheduler.close(
                best if reason in (StopReason.COMPLETE, StopReason.LIMIT) else None, self.slots, self._hurries
            )
        except KeyboardInterrupt:
            self.stop()
        if self.stopping.is_by_user:  # possibly since the winner is drawn
            reason = StopReason.STOPPED
        failed = not any(r.state in ("complete", "pruned") for r in self.records.values())
        ended = "FAILED" if failed or reason is StopReason.FAILURES else "FINISHED"
        ending = "KILLED" if reason is StopReason.STOPPED else ended
        left_s = self.limits.mlflow_timeout_s() if self.limits is not None else None
        if reason is StopReason.STOPPED:  # the last one to leave marks the study as stopped
            left_s = self.stopping.seconds_to_exit()
            self.session.coordinator.leave()
        kept = str(weights) if weights and weights.exists() else None
        self.mlflow_sync.close(ending, best, kept, left_s, self._still_waits)
        self.session.coordinator.release(self.mlflow_sync.take_synced())
        self._keep_links()
        records = tuple(self.records[n] for n in sorted(self.records))
        did_work = bool(self.started) or reason not in (StopReason.COMPLETE, StopReason.LIMIT)
        return Ending(reason, records, did_work, self.mlflow_sync.error)

    def _stop_reason(self) -> StopReason:
        reason = self.stopping.reason
        if reason in (None, StopReason.LIMIT):
            is_cut = self.limits is not None and self.limits.cut_short(self.records)
            return StopReason.LIMIT if is_cut else StopReason.COMPLETE
        return reason

    def _loop(self) -> None:
        mirroring = False
        while True:
            try:
                # A fork would wait for the imports, and no signal be heeded meanwhile.
                if not forkserver.is_warm(TICK_S):
                    if self.stopping.is_stopping:
                        return
                    self._tick()
                    continue
                self._fill_slots()
                self._mirror()
                if not mirroring:  # MLflow takes seconds to open: the first trial need not wait for it
                    self.mlflow_sync.start(list(self.records.values()))
                    self._plot_scheduler.open(self.records)
                    mirroring = True
                if not self.running and not (not self.stopping.is_stopping and self._is_to_go_on()):
                    return
                if not self.stopping.is_stopping and not self._asked_all and not self.no_room:
                    self._starter.fork_ahead()
                self._wait()
                self._tick()
                self._mirror()
            except KeyboardInterrupt:
                self.stop()

    def _fill_slots(self) -> None:
        while not self.stopping.is_stopping and self.devices and not self.no_room:
            if time.monotonic() < self._ask_again_at:
                return
            try:
                assignment, self._unanswered = self._next_ticket(), False
            except Unreachable:
                assignment, self._unanswered = None, True
            lost = self._drop_lost()
            if (
                assignment is not None and assignment.number in lost
            ):  # this machine slept between two words of the ledger's
                continue
            self._asked_all = assignment is None
            if assignment is None:
                self._ask_again_at = time.monotonic() + self.session.coordinator.ask_again_s
                self._hear_others()  # there may be nothing left because they have begun it
                return
            self._start(assignment)

    def _next_ticket(self) -> TrialAssignment | None:
        if self.only is None:
            which = "any" if self.limits is None else self.limits.next_trial(self.records, self.running)
            self._refused = which is None
            if which is None or which == "any":
                return self.session.queue.ask() if which else None
            return self.session.queue.ask_new() if which == "new" else self.session.queue.ask_for(which)
        number, waiting = self.only, not any(r.number == self.only and r.done for r in self.ended)
        return self.session.queue.ask_for(number) if waiting and number not in self.running else None

    def _start(self, assignment: TrialAssignment) -> None:
        settings, device = self.plan.settings, self.devices.popleft()
        self.started += 1
        self._exit_policy.began()
        spec = trial_spec(
            self.plan,
            assignment.number,
            assignment.config,
            assignment.seed,
            device,
            every_s=settings.checkpoint.every_s,
            keep_weights=settings.study.keep_checkpoints > 0 or self.only is not None,
        )
        trial = self._starter.start(spec, self.plan.paths.log(assignment.number))
        assert trial.process.pid is not None
        self.running[assignment.number] = trial
        self._outcomes.began(assignment)
        if assignment.had_other_owner:
            self.mlflow_sync.recheck(assignment.number)
        record = self.session.read(assignment.number)
        self._watchdog.watch(assignment.number, trial.process.pid, sum(e.seconds for e in record.history))
        self._note(record)

    def _wait(self) -> None:
        """Sleep until something arrives, and deal with it."""
        handles: dict[Any, TrialProcess] = {}
        for trial in self.running.values():
            handles.update({trial.pipe: trial, trial.process.sentinel: trial})
            if trial.printing:
                handles[trial.output] = trial
        ready = {id(t): t for t in (handles[h] for h in wait(list(handles), timeout=TICK_S))}
        for trial in ready.values():
            if self.running.get(trial.spec.number) is not trial:  # it was taken over while others were heard
                continue
            if trial.drain_output():
                self._watchdog.note_activity(trial.spec.number)
            for message in trial.messages():
                self._hear(trial, message)
            if trial.finished is not None or not trial.process.is_alive():
                for message in trial.messages():
                    self._hear(trial, message)
                self._end(trial)

    def _hear(self, trial: TrialProcess, message: Up) -> None:
        number = message.number
        self._watchdog.note_activity(number)
        if isinstance(message, Alive):
            return
        if isinstance(message, EpochEnd):
            # The answer first: the trial waits for it, and for nothing else that follows here.
            trial.epoch = message.epoch
            trial.send(self._judge(trial, message))
        elif isinstance(message, Resumed):
            for done in message.history:
                self.session.writer.record(done)
                trial.epoch = done.epoch
        elif isinstance(message, StateSaved):
            self._outcomes.got_further(number)
        elif isinstance(message, Finished):
            trial.finished = trial.finished or message  # what was ruled already stands

    def _judge(self, trial: TrialProcess, done: EpochEnd) -> Decision:
        metric = self.plan.settings.study.metric
        value = done.metrics.get(metric)
        self.session.writer.record(done)
        if value is not None and not math.isfinite(value):
            trial.finished = Finished(done.number, "failed", "diverged", f"{metric} was {value}, not a finite number")
            return Decision.STOP
        # To prune a trial that is complete would save nothing and lose its value. One that is told to stop is judged
        # all the same: nobody judges this epoch again, and it would go on where the uncut study ends it.
        complete = done.epoch + 1 >= trial.spec.config["trainer"]["max_epochs"]
        if not complete and self.session.writer.should_prune(done.number):
            trial.pruned = True
            return Decision.STOP
        return Decision.SAVE_AND_STOP if self.stopping.is_stopping or self.no_room else Decision.GO_ON

    def _tick(self) -> None:
        self._watchdog.tick()
        if forkserver.is_warm() and not self.no_room and not self.stopping.is_stopping:
            self._plot_scheduler.tick()
        now = time.monotonic()
        if now - self._flushed_at >= self._flush_every_s:
            self._flushed_at = now
            for number in self.session.writer.flush():  # MLflow must not know what the ledger may yet forget
                self._note(self.session.read(number))
            self._keep_company()
            if not self.stopping.is_stopping and self.session.attributes.stop_requested:
                self.stop()
        if now - self._looked_at >= LOOK_EVERY_S:
            self._looked_at = now
            self._look_for_room()
            self._keep_links()
            self.ahead = self.limits.status_line(self.records) if self.limits is not None else None
            self.on_change(self)
        if not self.stopping.is_stopping and self.limits is not None and self.limits.time_is_up(self.records):
            self.stopping.request(StopReason.LIMIT)
        for trial in list(self.running.values()):
            if self.stopping.is_stopping or self.no_room:
                self._let_go(trial)
            else:
                self._watch(trial)

    def _keep_company(self) -> None:
        """Hear what others at this study have done, and say what is done here."""
        self._hear_others()
        if time.monotonic() >= self._adopt_again_at:
            self._adopt_again_at = time.monotonic() + ADOPT_AGAIN_S
            for number in self.session.coordinator.adopt():
                self.mlflow_sync.recheck(number)
                self._note(self.session.read(number))
                self._look_anew()
        self.session.coordinator.release(self.mlflow_sync.take_synced())
        self._drop_lost()

    def _hear_others(self) -> None:
        for number in self.session.coordinator.poll():
            self.records[number] = self.session.read(number)
            self._look_anew()

    def _look_anew(self) -> None:
        """What a limit said of older records holds no longer: it is asked again before anybody leaves."""
        self._refused = False

    def _drop_lost(self) -> list[int]:
        """End what others have taken over: what it would say does not count. Returns the numbers of all of them."""
        lost = self.session.coordinator.take_lost()
        for number in lost:
            self._unmirrored.pop(number, None)
            if number in self.running:
                trial = self.running.pop(number)
                trial.kill()
                trial.close()
                self._watchdog.unwatch(number)
                self.devices.append(trial.spec.device)
        return lost

    def _still_waits(self) -> bool:
        """Stay this process's trials while MLflow is told; whether anybody waits for that."""
        self.session.coordinator.keep_alive()
        return not self.stopping.is_by_user or self.stopping.seconds_to_exit() > 0

    def _is_to_go_on(self) -> bool:
        """Whether there may be something to do yet, now that nothing runs here."""
        if self.no_room or self._unanswered:
            return True
        return self.only is None and not self._exit_policy.may_leave(self.records.values(), self._refused)

    def _hurries(self) -> bool:
        return self.stopping.is_by_user or (self.limits is not None and self.limits.is_late())

    def _let_go(self, trial: TrialProcess) -> None:
        """Have a trial save and stop. Before its first epoch's end it has nothing to save, and may hang."""
        if not trial.asked_to_stop:
            trial.asked_to_stop = True
            trial.send(Decision.SAVE_AND_STOP)
        elif self.stopping.is_stopping and (trial.epoch < 0 or self.stopping.grace_is_over):
            self._cut_down(trial)

    def _watch(self, trial: TrialProcess) -> None:
        violation = self._watchdog.violation(trial.spec.number)
        if violation is not None:
            trial.violation = trial.violation or violation
            self._cut_down(trial)

    def _cut_down(self, trial: TrialProcess) -> None:
        """Kill a trial, and hear its last words, if it got that far."""
        trial.kill()
        for message in trial.messages():
            self._hear(trial, message)
        self._end(trial)

    def _await_room(self) -> None:
        """A write of the ledger's found none: running trials wait for its answers, and it is tried again."""
        self.no_room = True
        self.on_change(self)
        if self.stopping.is_stopping:
            raise DiskFull("the disk is full; nothing is lost, and the same line goes on once there is room")
        time.sleep(LOOK_EVERY_S)

    def _look_for_room(self) -> None:
        """Trials save and wait while the disk is about full: what they save still has the rest of it."""
        free, wanted = free_mib(self.plan.settings.location.paths.root), self.plan.settings.min_free_mib
        # A tenth more than wanted, lest they start and stop with every file.
        self.no_room = free < (1.1 * wanted if self.no_room else wanted)

    def _end(self, trial: TrialProcess) -> None:
        """A trial's process is through: write down how it ended, and free its slot."""
        number = trial.spec.number
        del self.running[number]
        peak_bytes = self._watchdog.unwatch(number)
        # The slot waits for no disk: the next trial starts before the ledger has this one's end. What a kill takes in
        # between, the state of the one still holds, and the other is drawn again as it was.
        with self.session.writer.batch():
            self.session.writer.record_peak_memory(number, peak_bytes)
            record = self._outcomes.of(trial, stopping=self.stopping.is_stopping)
            self.devices.append(trial.spec.device)
            self._note(record)
            if record.done:
                self.ended.append(record)
            self._ask_again_at = 0.0
            if self._outcomes.too_many:
                self.stopping.request(StopReason.FAILURES)
            self._fill_slots()
        if record.done:
            if record.state == "complete" and self.best is record and self.only is None:
                self._plot_scheduler.want(record)
            self._keep_best_weights(record)
        trial.close()

    def _note(self, record: TrialRecord) -> None:
        self.records[record.number] = record
        self._unmirrored[record.number] = record
        self.on_change(self)

    def _mirror(self) -> None:
        """Have MLflow know what the ledger has by now."""
        for number in [n for n in self._unmirrored if self.session.writer.is_written(n)]:
            self.mlflow_sync.submit(self._unmirrored.pop(number))

    def _keep_links(self) -> None:
        mlflow_sync = self.mlflow_sync
        if mlflow_sync.ready and not self._linked:
            self.session.attributes.set_mlflow(mlflow_sync.experiment_id, mlflow_sync.parent_run_id)
            self._linked = True

    def _keep_best_weights(self, record: TrialRecord) -> None:
        """Remove the checkpoints of every ended trial but the best so many; what `train` trained keeps its own."""
        settings = self.plan.settings
        if self.only is not None:
            gone = set() if record.state == "complete" else {record.number}
        else:  # of all of them, lest a kill left one
            gone = {n for n, r in self.records.items() if r.done} - trials_with_weights(self.records.values(), settings)
            gone, self._gone = gone - self._gone, gone  # a thousand folders need not be looked for at every end
        for number in gone:
            folder = self.plan.paths.checkpoint(number)
            if folder.exists():
                shutil.rmtree(folder, ignore_errors=True)
