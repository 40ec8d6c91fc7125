"""The supervisor runs the trials of a study on one machine: it asks for them, starts them and records their results."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from overnight.protocol import Decision
from overnight.runner.assignments import Assignments
from overnight.runner.checkpoint_cleanup import CheckpointCleanup
from overnight.runner.disk_space import DiskSpace
from overnight.runner.message_handler import MessageHandler
from overnight.runner.mlflow_feed import MlflowFeed
from overnight.runner.plot_scheduler import PlotScheduler
from overnight.runner.slot_pool import SlotPool
from overnight.runner.stop_state import StopReason, StopState
from overnight.runner.system_metrics import SystemMetrics
from overnight.runner.trial_outcomes import Outcomes
from overnight.runner.trial_process import ForkedProcesses, ProcessFactory, TrialProcess
from overnight.runner.trial_spec import trial_spec
from overnight.runner.watchdog import Watchdog
from overnight.search.limits import Limits, NoLimits
from overnight.search.plan import devices_of
from overnight.search.record import TrialRecord, best_of
from overnight.study.queue import TrialAssignment
from overnight.study.session import StudySession
from overnight.system import forkserver
from overnight.system.devices import machine_memory
from overnight.tracking.sync import MlflowSync

TICK_S = 0.2
STATUS_EVERY_S = 1.0
ADOPT_EVERY_S = 5.0
_TRAINED_AGAIN = "trained again from its first epoch, because there is no saved state of it"
_STATE_ELSEWHERE = "trained again from its first epoch, because its saved state is on another machine"


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
    """Runs a plan's trials in the machine's slots until the budget is spent, a limit is reached or a stop requested.

    Args:
        only: the number of the single trial to run.
        limits: may end the launch before the budget is spent.
        clock: monotonic, in seconds.
        processes: starts trials; by default in processes forked from the warm forkserver.

    Attributes:
        records: of all trials of the study, by number.
        ended: records of the trials that this supervisor ran to their end, in order.
        outlook: what the limits expect, in one line.
        closing: what is done once no trial runs any more, e.g. "drawing the winner"; None before.
    """

    def __init__(
        self,
        session: StudySession,
        mlflow_sync: MlflowSync,
        only: int | None = None,
        limits: Limits | None = None,
        clock: Callable[[], float] = time.monotonic,
        processes: ProcessFactory | None = None,
    ) -> None:
        self.session, self.plan = session, session.plan
        self.only, self.limits = only, limits or NoLimits()
        settings = self.plan.settings
        self.slots = SlotPool(devices_of(session.plan))
        self.stopping = StopState(clock)
        self.disk = DiskSpace(settings.location.paths.root, settings.min_free_mib)
        self.outcomes = Outcomes(session)
        self.mlflow = MlflowFeed(session, mlflow_sync)
        self.records: dict[int, TrialRecord] = {}
        self.ended: list[TrialRecord] = []
        self.started = 0
        self.outlook: str | None = None
        self.closing: str | None = None
        self._clock = clock
        self._on_change: Callable[[Supervisor], None] = lambda _: None
        self._processes = processes or ForkedProcesses(self.slots.on_cpu)
        self._assignments = Assignments(session, self.limits, only, clock)
        self._watchdog = Watchdog(settings.trial, self.slots.count, machine_memory(), clock)
        self._messages = MessageHandler(
            session,
            self._watchdog,
            self.outcomes,
            lambda: self._is_working,
            lambda: self._assignments.update_limits(self.records),
        )
        self._plots = PlotScheduler(self.plan, session.attributes.uid, mlflow_sync, clock)
        self._cleanup = CheckpointCleanup(self.plan)
        self._system = SystemMetrics(mlflow_sync, settings.tracking.system_metrics, clock)
        self._flushed_at = self._shown_at = clock()
        self._adopt_at = 0.0
        session.queue.use_helper_process(forkserver.fork)
        session.storage.backend.wait_for_space = lambda: self.disk.wait(self.stopping, lambda: self._on_change(self))

    def stop(self) -> None:
        """Save the running trials and stop. A second call kills them."""
        self.stopping.request(StopReason.STOPPED)

    @property
    def best(self) -> TrialRecord | None:
        return best_of(self.records.values(), self.plan.settings)

    @property
    def finishes(self) -> bool:
        """Whether the search starts no more trials and completes its best ones, because of study.patience."""
        return self.session.schedule is not None and self.session.schedule.finishes

    def run(self, on_change: Callable[[Supervisor], None] = lambda _: None) -> Ending:
        """Work until nothing is left to do. A KeyboardInterrupt counts as `stop`.

        Args:
            on_change: called whenever there is something new to show.
        """
        self._on_change = on_change
        self.records = {r.number: r for r in self.session.records()}
        self._on_change(self)
        try:
            self._loop()
        finally:
            paused = self._release_trials()
        for number in paused:
            self._note(self.session.read(number))
        self.mlflow.send()
        return self._close()

    def _loop(self) -> None:
        while True:
            try:
                if not self._processes.is_ready(TICK_S):
                    if self.stopping.is_stopping:
                        return
                    self._tick()
                    continue
                self._fill_slots()
                self.mlflow.send()
                if not self.mlflow.is_started:  # opening it takes seconds, so the first trials start before
                    self.mlflow.start(self.records.values())
                    self._plots.resume(self.records)
                if not self.slots.running and (
                    self.stopping.is_stopping or not (self.disk.is_full or self._assignments.may_follow(self.records))
                ):
                    return
                if self._is_working and not self._assignments.are_exhausted:
                    self._processes.fork_ahead()
                self._handle_messages()
                self._tick()
                self.mlflow.send()
            except KeyboardInterrupt:
                self.stop()

    @property
    def _is_working(self) -> bool:
        """Whether trials may start and go on. Otherwise they save and stop."""
        return not self.stopping.is_stopping and not self.disk.is_full

    def _fill_slots(self) -> None:
        while self._is_working and self.slots.has_free and self._assignments.may_ask:
            assignment = self._assignments.ask(self.records, self.slots.running)
            lost = self._drop_lost_trials()
            if assignment is None:
                self._poll_peers()  # they may have started what was left
                return
            if assignment.number not in lost:  # else this machine was suspended between two writes
                self._start(assignment)

    def _start(self, assignment: TrialAssignment) -> None:
        settings, number = self.plan.settings, assignment.number
        device = self.slots.acquire()
        self.started += 1
        self._assignments.note_start()
        spec = trial_spec(
            self.plan,
            number,
            assignment.config,
            assignment.seed,
            device,
            every_s=settings.checkpoint.every_s,
            keep_weights=settings.study.keep_checkpoints > 0 or self.only is not None,
        )
        trial = self._processes.start(spec, self.plan.paths.log(number))
        assert trial.process.pid is not None
        trial.until = assignment.until
        self.slots.add(trial)
        self.outcomes.note_start(assignment)
        if assignment.had_other_owner:
            self.mlflow.recheck(number)
        record = self.session.read(number)
        if assignment.until is not None and record.history and not spec.checkpoint_folder.exists():
            self.session.writer.add_notes(number, [_STATE_ELSEWHERE if assignment.had_other_owner else _TRAINED_AGAIN])
        self._watchdog.watch(number, trial.process.pid, sum(e.seconds for e in record.history))
        self._note(record)

    def _handle_messages(self) -> None:
        """Wait until something arrives, and handle it."""
        for trial in self.slots.wait(TICK_S):
            number = trial.spec.number
            if self.slots.running.get(number) is not trial:  # a peer has adopted it since
                continue
            if trial.drain_output():
                self._watchdog.note_activity(number)
            self._messages.handle_all(trial)
            if trial.finished is not None or not trial.process.is_alive():
                self._messages.handle_all(trial)  # those that it sent before its end
                self._end(trial)

    def _tick(self) -> None:
        self._watchdog.tick()
        self._system.tick(self.slots.running, self.records)
        if self._is_working and self._processes.is_ready():
            self._plots.tick()
        now = self._clock()
        if now - self._flushed_at >= self.session.coordinator.flush_interval_s:
            self._flushed_at = now
            self._flush()
        if now - self._shown_at >= STATUS_EVERY_S:
            self._shown_at = now
            self.disk.check()
            self.mlflow.keep_links()
            self.outlook = self.limits.status_line(self.records)
            self._on_change(self)
        if not self.stopping.is_stopping and self.limits.time_is_up(self.records):
            self.stopping.request(StopReason.LIMIT)
        for number, trial in list(self.slots.running.items()):
            if self.slots.running.get(number) is not trial:  # a peer has adopted it since the loop began
                continue
            if not self._is_working:
                self._ask_to_save(trial)
            elif violation := self._watchdog.violation(number):
                trial.violation = trial.violation or violation
                self._kill(trial)

    def _flush(self) -> None:
        """Write what the trials have reported, and exchange changes with peers."""
        for number in self.session.writer.flush():
            self._note(self.session.read(number))
        self._poll_peers()
        now = self._clock()
        if now >= self._adopt_at:
            self._adopt_at = now + ADOPT_EVERY_S
            for number in self.session.coordinator.adopt():
                self.mlflow.recheck(number)
                self._note(self.session.read(number))
                self._assignments.note_news()
        self.mlflow.release_synced()
        self._drop_lost_trials()
        if not self.stopping.is_stopping and self.session.attributes.stop_requested:
            self.stop()

    def _poll_peers(self) -> None:
        for number in self.session.coordinator.poll():
            self.records[number] = self.session.read(number)
            self._assignments.note_news()

    def _drop_lost_trials(self) -> list[int]:
        """Kill the trials that peers have adopted, and return their numbers. Their results do not count."""
        lost = self.session.coordinator.take_lost()
        for number in lost:
            self.mlflow.discard(number)
            if number in self.slots.running:
                self.slots.remove(number).close()
                self._watchdog.unwatch(number)
        return lost

    def _ask_to_save(self, trial: TrialProcess) -> None:
        """Ask a trial to save and stop. Before the end of its first epoch it has nothing to save, and is killed."""
        if not trial.asked_to_stop:
            trial.asked_to_stop = True
            trial.send(Decision.SAVE_AND_STOP)
        elif self.stopping.is_stopping and (trial.index < 0 or self.stopping.grace_is_over):
            self._kill(trial)

    def _kill(self, trial: TrialProcess) -> None:
        trial.kill()
        self._messages.handle_all(trial)  # it may have finished
        self._end(trial)

    def _end(self, trial: TrialProcess) -> None:
        """Record how a trial ended, and start the next one."""
        number = trial.spec.number
        self.slots.remove(number)
        peak_bytes = self._watchdog.unwatch(number)
        # The next trial starts before the end of this one is written, so that no slot waits for the disk. If a kill
        # comes between, the checkpoint still holds this trial's end, and the next trial is sampled again as it was.
        with self.session.writer.batch():
            self.session.writer.record_peak_memory(number, peak_bytes)
            record = self.outcomes.record_outcome(trial, stopping=self.stopping.is_stopping)
            self._note(record)
            if record.done:
                self.ended.append(record)
            self._assignments.note_end()
            if self.outcomes.too_many_failures:
                self.stopping.request(StopReason.FAILURES)
            self._fill_slots()
        if record.done and self.only is None:
            if record.state == "complete" and self.best is record:
                self._plots.want(record)
            self._cleanup.delete_all_but_best(self.records)
        elif record.done and record.state != "complete":
            self._cleanup.delete(number)
        elif record.waits_at_rung:
            self._cleanup.limit_paused(self.records.values(), self.session.queue)
        trial.close()

    def _note(self, record: TrialRecord) -> None:
        """Take over a record that this process has changed."""
        self.records[record.number] = record
        self.mlflow.add(record)
        self._on_change(self)

    def _release_trials(self) -> list[int]:
        """End all processes and pause their trials, after an error too. Returns the numbers of the paused trials."""
        self._processes.close()
        self._plots.pause()
        self.slots.close()
        self.session.coordinator.take_lost()
        return self.session.writer.pause_all()

    def _settle(self) -> None:
        """End the trials that are paused at a rung, unless peers still run some."""
        schedule = self.session.schedule
        if schedule is None or self.only is not None:
            return
        self._poll_peers()  # those that a deadline ends have just paused their trials; the last one settles
        if any(r.state == "running" for r in self.records.values()):
            return
        with self.session.writer.batch():
            settled = schedule.settle()
        for number in settled:
            if self.session.coordinator.had_other_owner(number):
                self.mlflow.recheck(number)
            self._note(self.session.read(number))
        self.mlflow.send()

    def _close(self) -> Ending:
        """Plot the winner, and end the study's run in MLflow."""

        def has_time() -> bool:
            self.session.coordinator.keep_alive()  # this process's trials stay its own while MLflow is written
            self._on_change(self)
            return not self.stopping.is_by_user or self.stopping.seconds_to_exit() > 0

        reason = self.stopping.reason
        if reason in (None, StopReason.LIMIT):
            reason = StopReason.LIMIT if self.limits.cut_short(self.records) else StopReason.COMPLETE
            self._settle()
        best = self.best if self.only is None else self.records.get(self.only)
        weights = self.plan.paths.checkpoint(best.number) / "weights.ckpt" if best else None
        winner = best if reason in (StopReason.COMPLETE, StopReason.LIMIT) else None

        def is_given_up() -> bool:
            self._on_change(self)
            return self.stopping.is_by_user or self.limits.is_late()

        self.closing = "drawing the pictures"
        try:
            self._plots.close(winner, self.slots.count, is_given_up)
        except KeyboardInterrupt:
            self.stop()
        timeout_s = self.limits.mlflow_timeout_s()
        if self.stopping.is_by_user:  # possibly while the winner was plotted
            reason = StopReason.STOPPED
            timeout_s = self.stopping.seconds_to_exit()
            self.session.coordinator.leave()  # the last process to leave marks the study as stopped
        self.closing = "writing MLflow"
        kept = str(weights) if weights and weights.exists() else None
        self.mlflow.close(_run_status(reason, self.records.values()), best, kept, timeout_s, has_time)
        records = tuple(self.records[n] for n in sorted(self.records))
        did_work = bool(self.started) or reason not in (StopReason.COMPLETE, StopReason.LIMIT)
        return Ending(reason, records, did_work, self.mlflow.incomplete)


def _run_status(reason: StopReason, records: Iterable[TrialRecord]) -> str:
    """Return the status of the study's MLflow run."""
    if reason is StopReason.STOPPED:
        return "KILLED"
    if reason is StopReason.FAILURES or not any(r.state in ("complete", "pruned") for r in records):
        return "FAILED"
    return "FINISHED"
