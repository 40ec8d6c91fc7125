"""Keeps MLflow in step with the Optuna storage, from a thread of its own.

The thread works by state, not by event: it compares a trial's record with what MLflow holds, writes what is missing,
and ends the run last. A run that has ended is therefore complete, and progress, repair and resuming are the same code.
"""

from __future__ import annotations

import math
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from overnight.config import credentials
from overnight.search.plan import Plan
from overnight.search.record import TrialRecord
from overnight.study.coordinator import Coordinator, SoloCoordinator
from overnight.study.storage.leased import Ownership
from overnight.study.storage.outage import Unreachable
from overnight.tracking import tags
from overnight.tracking.parent_run import ParentRun, open_experiment
from overnight.tracking.reconcile import reconcile
from overnight.tracking.run_update import LoggedMetric
from overnight.tracking.run_writer import RunWriter, log_plots
from overnight.tracking.store import describe_error, describe_refusal, open_client

WRITE_EVERY_S = 1.0
# The progress of a running trial is written less often. A write takes as much CPU as 20 steps of a small network, and a
# server does it for every user.
PROGRESS_EVERY_S, PROGRESS_TO_SERVER_EVERY_S = 3.0, 10.0
RETRY_AFTER_S = 5.0
_REPAIR_ATTEMPTS = 3  # it can be repeated
_SAMPLES_AT_ONCE = 1000  # MLflow's limit


@dataclass(frozen=True)
class _Ending:
    status: str
    best: TrialRecord | None
    weights: str | None


class MlflowSync:
    """Synchronises one study into MLflow. Every method but `close` returns at once.

    Attributes:
        ready: Whether `experiment_id` and `parent_run_id` are known.
        error: Why MLflow could not be written last; None if it was written.
        refused: What MLflow does not take -> why. Everything else of these trials is written.

    Args:
        with_parent: Whether the study has a run of its own, above the runs of its trials.
        repairs: This is a repair, which ends where MLflow is away. At the start every step of every metric is compared,
            not only the last one, and stray runs are removed if no peer works on the study.
        search_uid: The search that this study confirms. The runs of its trials have the search's parent run.
        search_records: The trials of that search.
        coordinator: Of a study that several processes share. Each writes the runs of its own trials.
    """

    def __init__(
        self,
        plan: Plan,
        uid: str,
        *,
        with_parent: bool = True,
        repairs: bool = False,
        search_uid: str | None = None,
        search_records: Iterable[TrialRecord] = (),
        coordinator: Coordinator | None = None,
    ) -> None:
        self._plan, self._uid, self._with_parent, self._repairs = plan, uid, with_parent, repairs
        self._search_uid, self._coordinator = search_uid, coordinator or SoloCoordinator()
        self._search_records = tuple(search_records)
        self._stored: list[TrialRecord] = []  # what the Optuna storage holds at the start
        self._latest: dict[int, TrialRecord] = {}  # of every known trial
        self._pending: dict[int, TrialRecord] = {}
        self._rechecks: set[int] = set()
        self._synced: set[int] = set()
        self._samples: dict[int, list[LoggedMetric]] = {}  # system metrics by trial number
        self._plots: dict[int, Path] = {}  # trial number -> folder
        self._pending_plots: set[int] = set()
        self._ending: _Ending | None = None
        self._lock, self._wake, self._closing = threading.Lock(), threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, name="mlflow", daemon=True)
        self._written_at: dict[int, float] = {}
        self.experiment_id = ""
        self.parent_run_id: str | None = None
        self.error: str | None = None
        self.refused: Mapping[str, str] = {}
        self.ready = False

    def start(self, records: Iterable[TrialRecord]) -> None:
        """Open the store and bring it up to `records`, all trials of the Optuna storage."""
        self._stored = list(records)
        self._latest.update({record.number: record for record in self._stored})
        self._thread.start()

    @property
    def incomplete(self) -> str | None:
        """What MLflow lacks for good or until it can be written again, in one line; None if it lacks nothing."""
        refused = [f"{what}: {why}" for what, why in list(self.refused.items())]
        more = f", and {len(refused) - 1} more" if len(refused) > 1 else ""
        return self.error or (f"{refused[0]}{more}" if refused else None)

    def submit(self, record: TrialRecord) -> None:
        """Synchronise a trial."""
        with self._lock:
            self._pending[record.number] = self._latest[record.number] = record
            self._synced.discard(record.number)
        self._wake.set()

    def recheck(self, number: int) -> None:
        """Read a trial's run before it is written next, because another process may have written it."""
        with self._lock:
            self._rechecks.add(number)

    def take_synced(self) -> set[int]:
        """Return the trials that are not running and whose runs are up to date, each once."""
        with self._lock:
            synced, self._synced = self._synced, set()
            return synced

    def add_samples(self, number: int, samples: Sequence[LoggedMetric]) -> None:
        """Log system metrics of a trial. They are nowhere else, so that a kill loses what is not written yet."""
        with self._lock:
            self._samples.setdefault(number, []).extend(samples)
        self._wake.set()

    def attach_plots(self, number: int, folder: Path) -> None:
        """Log the plots of a trial, which are the PNG files of a folder and the texts beside them."""
        with self._lock:
            self._plots[number] = folder
            self._pending_plots.add(number)
        self._wake.set()

    def close(
        self,
        status: str,
        best: TrialRecord | None,
        weights: str | None,
        within_s: float | None = None,
        keep_waiting: Callable[[], bool] = lambda: True,
    ) -> None:
        """Write what is pending, end the parent run, and wait until that is done.

        `error` is set if something could not be written. The next start writes it, from the Optuna storage.

        Args:
            status: MLflow's FINISHED, FAILED or KILLED.
            weights: The file with the weights of the best trial, which is logged to its run.
            within_s: Stop waiting after so long.
            keep_waiting: Called every second; stop waiting when it returns False.
        """
        self._ending = _Ending(status, best, weights)
        self._closing.set()
        self._wake.set()
        until = time.monotonic() + (math.inf if within_s is None else max(within_s, 0.0))
        while self._thread.is_alive() and time.monotonic() < until and keep_waiting():
            self._thread.join(min(1.0, until - time.monotonic()))
        if self._thread.is_alive():
            self.error = self.error or "there was no time left"

    def _run(self) -> None:
        failures = 0
        while True:
            self._wake.wait(WRITE_EVERY_S if self._pending else None)
            self._wake.clear()
            ending = self._ending
            try:
                if not self.ready:
                    self._open()
                self._write_pending(everything=ending is not None)
                self._write_plots()
                self._write_samples()
                if ending is not None:
                    self._end(ending)
                self.error = describe_refusal(self._client)
                if ending is not None:
                    return
            except Exception as error:  # of MLflow, SQLAlchemy or the network: the remedy for each is to try again
                self.error = describe_error(error)
                failures += ending is not None
                # A study of one process is repaired by its next start. A shared one may have no next start.
                if failures >= (_REPAIR_ATTEMPTS if self._repairs else self._coordinator.final_write_attempts):
                    print(credentials.redact(traceback.format_exc()), file=sys.stderr)
                    return
                self._wake.set()
            if self._ending is not None and self.error:
                time.sleep(WRITE_EVERY_S)
            else:
                self._closing.wait(RETRY_AFTER_S if self.error else WRITE_EVERY_S)

    def _open(self) -> None:
        self._client = open_client(self._plan.settings.location)
        with self._coordinator.lock("mlflow", keep_alive=False):
            missing = self._open_runs()
        with self._lock:
            for record in self._stored:
                if record.number in missing and self._ownership(record.number) != "foreign":
                    self._pending.setdefault(record.number, record)
        self._stored = []
        self.ready = True

    def _open_runs(self) -> set[int]:
        """Find or create the experiment and the parent run. Returns the trials whose runs lack something."""
        self.experiment_id = open_experiment(self._client, self._plan, self._search_uid or self._uid)
        self._parent = ParentRun(self._client, self._plan, self._uid, self.experiment_id)
        if self._search_uid is not None:
            self._parent.open_for_confirmation(self._search_uid)
        found = reconcile(
            self._client,
            self.experiment_id,
            self._uid,
            self._plan,
            self._stored,
            check_steps=self._repairs,
            parent_run_id=self._parent.run_id,
        )
        # A stray run may belong to a peer's trial.
        if self._coordinator.runs_all_trials or (self._repairs and not self._coordinator.count_peers()):
            for run_id in found.strays:
                self._client.delete_run(run_id)
        if self._search_uid is None and self._with_parent:
            started_at = min(filter(None, (r.first_started_at for r in self._stored)), default=None)
            self._parent.open(found.parent, started_at, keep_result=self._repairs)
        self.parent_run_id = self._parent.run_id
        number_tag = tags.TRIAL if self._search_uid is None else tags.CONFIRMATION
        self._writer = RunWriter(
            self._client,
            self._plan,
            self._uid,
            self.experiment_id,
            self.parent_run_id,
            number_tag,
            found.runs,
            self._closing.wait,
        )
        self.refused = self._writer.refused
        return set(found.missing)

    def _write_pending(self, *, everything: bool) -> None:
        """Write the trials that start or end, and the progress of those that were not written for some seconds."""
        while (record := self._next_due(everything)) is not None:
            number, owned = record.number, self._ownership(record.number) == "owned"
            if owned:
                with self._lock:
                    recheck = number in self._rechecks
                    self._rechecks.discard(number)
                self._writer.write(record, recheck=recheck)
            self._written_at[number] = time.monotonic()
            with self._lock:
                if self._pending.get(number) is record:  # no newer record arrived meanwhile
                    del self._pending[number]
                    if owned and record.state != "running":
                        self._synced.add(number)
        if everything and self._pending:
            raise Unreachable("the study storage can't be reached, so the owners of these trials are unknown")

    def _next_due(self, everything: bool) -> TrialRecord | None:
        at_server = self._plan.settings.location.server is not None
        due = time.monotonic() - (PROGRESS_TO_SERVER_EVERY_S if at_server else PROGRESS_EVERY_S)
        with self._lock:
            for record in self._pending.values():
                if self._ownership(record.number) == "uncertain":
                    continue
                if everything or record.state != "running" or self._written_at.get(record.number, due) <= due:
                    return record
        return None

    def _ownership(self, number: int) -> Ownership:
        return self._coordinator.ownership(number)

    def _write_plots(self) -> None:
        with self._lock:
            numbers = sorted(self._pending_plots & self._writer.runs.keys())
        for number in numbers:
            log_plots(self._client, self._writer.runs[number].run_id, self._plots[number])
            with self._lock:
                self._pending_plots.discard(number)

    def _write_samples(self) -> None:
        with self._lock:
            numbers = sorted(self._samples.keys() & self._writer.runs.keys())
        for number in numbers:
            with self._lock:
                some = self._samples[number][:_SAMPLES_AT_ONCE]
            self._writer.write_samples(number, some)
            with self._lock:
                del self._samples[number][: len(some)]
                if not self._samples[number]:
                    del self._samples[number]
                else:
                    self._wake.set()

    def _end(self, ending: _Ending) -> None:
        best, runs = ending.best, self._writer.runs
        if best is not None and self._search_uid is None:
            if best.number in runs and ending.weights is not None:
                self._client.log_artifact(runs[best.number].run_id, ending.weights, "weights")
            self._parent.write_best(best, self._plots.get(best.number), step=len(runs))
        elif self._search_uid is None and not self._coordinator.count_peers():  # a peer may know of a best trial
            self._parent.clear_best()
        # Where peers continue, this process is killed, not the study.
        if ending.status != "KILLED" or not self._coordinator.count_peers():
            self._parent.end(ending.status, (*self._search_records, *self._latest.values()))
