"""What a supervisor passes on to MLflow."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from overnight.search.record import TrialRecord
from overnight.study.session import StudySession
from overnight.tracking.sync import MlflowSync


class MlflowFeed:
    """Passes to MLflow only what the Optuna storage holds.

    A kill loses what is in memory. MLflow must not show more than the next start finds in the storage.
    """

    def __init__(self, session: StudySession, sync: MlflowSync) -> None:
        self._session, self._sync = session, sync
        self._unsent: dict[int, TrialRecord] = {}
        self._is_linked = False
        self.is_started = False

    @property
    def error(self) -> str | None:
        """Why MLflow cannot be written, in one line."""
        return self._sync.error

    @property
    def incomplete(self) -> str | None:
        """What MLflow lacks, in one line; see MlflowSync.incomplete."""
        return self._sync.incomplete

    def start(self, records: Iterable[TrialRecord]) -> None:
        """Open MLflow in the background, and synchronise it with all records of the study."""
        self._sync.start(list(records))
        self.is_started = True

    def add(self, record: TrialRecord) -> None:
        """Send a record once the storage holds it."""
        self._unsent[record.number] = record

    def discard(self, number: int) -> None:
        """Forget a trial that a peer has adopted."""
        self._unsent.pop(number, None)

    def send(self) -> None:
        """Send the records that the storage holds by now."""
        for number in [n for n in self._unsent if self._session.writer.is_written(n)]:
            self._sync.submit(self._unsent.pop(number))

    def recheck(self, number: int) -> None:
        """Compare a run again to which a peer may have written."""
        self._sync.recheck(number)

    def keep_links(self) -> None:
        """Write where MLflow shows the study into the Optuna storage, once that is known."""
        if self._sync.ready and not self._is_linked:
            self._session.attributes.set_mlflow(self._sync.experiment_id, self._sync.parent_run_id)
            self._is_linked = True

    def release_synced(self) -> None:
        """Allow peers to claim the trials whose runs are complete."""
        self._session.coordinator.release(self._sync.take_synced())

    def close(
        self,
        status: str,
        best: TrialRecord | None,
        weights: str | None,
        timeout_s: float | None,
        keep_waiting: Callable[[], bool],
    ) -> None:
        """Write the rest and end the parent run; see MlflowSync.close."""
        self._sync.close(status, best, weights, timeout_s, keep_waiting)
        self.release_synced()
        self.keep_links()
