"""How the processes that work on one study keep out of each other's way.

`SoloCoordinator` is for a study that one process holds: it has nothing to do. `LeasedCoordinator` is for a study that
several processes share.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext

from optuna.trial import TrialState

from overnight.study.attributes import StudyAttributes
from overnight.study.storage import peers
from overnight.study.storage.leased import LeasedStorage, Ownership
from overnight.study.storage.outage import Unreachable
from overnight.study.trial_reader import TrialReader

_POLL_INTERVAL_S = 3.0  # a poll takes about 10 ms here, and at a database that all processes share
_ADOPTION_S = 10.0  # for abandoned trials to be adopted, once their leases have ended
_LAST_WRITES_S = 10.0  # for an unreachable database to return before unwritten results are left to the peers


class Coordinator:
    """The contract of both coordinators. What it answers here is right for a study without peers.

    Attributes:
        flush_interval_s: Time between two flushes, each of which polls the peers.
        ask_again_s: Time after which trials that peers leave may have appeared.
        peer_timeout_s: Time within which a silent peer is found to be dead and its trials are adopted.
        runs_all_trials: Whether no other process runs trials of the study, possibly on another machine.
        final_write_attempts: How often a last write to MLflow is tried, at least a second apart. A study that one
            process holds is repaired at its next start. A shared study may have no next start.
    """

    flush_interval_s = 1.0
    ask_again_s = 0.0
    peer_timeout_s = 0.0
    runs_all_trials = True
    final_write_attempts = 3

    # Trials

    def poll(self) -> list[int]:
        """Return the numbers of the trials that peers have changed since the last poll."""
        return []

    def take_lost(self) -> list[int]:
        """Return the numbers of trials that this process ran and peers have adopted, each once."""
        return []

    def adopt(self, *, free: bool = False) -> list[int]:
        """Adopt the trials of dead peers and return their numbers.

        Running ones return to the queue. Of the others the dead peer may have left the MLflow run unfinished.

        Args:
            free: Adopt those that no process owns, in place of those.
        """
        return []

    def release(self, numbers: Iterable[int]) -> None:
        """Allow peers to claim these trials: their MLflow runs are synchronised."""

    def ownership(self, number: int) -> Ownership:
        """Return whose trial it is; "uncertain" where peers may have adopted it since. Thread-safe."""
        return "owned"

    def had_other_owner(self, number: int) -> bool:
        """Whether a peer owned this process's trial before. Thread-safe."""
        return False

    # Peers

    def leave(self) -> None:
        """Stop being counted as a peer. Trials stay this process's until they are released."""

    def keep_alive(self) -> None:
        """Renew the leases of this process, and write what is not written yet."""

    def lock(self, name: str, *, keep_alive: bool = True) -> AbstractContextManager[None]:
        """Return a block that one process of the study enters at a time.

        Args:
            name: What the lock protects.
            keep_alive: Whether to call `keep_alive` while waiting. Only for the thread that writes the study.

        Raises:
            Unreachable: The database is out of reach.
        """
        return nullcontext()

    def count_peers(self) -> int:
        """Return the number of other processes that work on the study. Thread-safe. Raises Unreachable."""
        return 0

    def may_have_silent_peers(self, first_seen: dict[str, float]) -> bool:
        """Whether a peer may be dead, or has left trials that this process can't adopt yet. Raises Unreachable.

        Args:
            first_seen: Peer -> end of its lease when it was first seen. Empty at first; filled by the call.
        """
        return False

    def may_peers_continue(self, unfinished: Collection[str], start_refused: bool) -> bool:
        """Whether peers may still end trials, or leave some to this process.

        Args:
            unfinished: The states of the trials that have not ended.
            start_refused: Whether a limit forbids to start those that wait.
        """
        return False

    @property
    def outage(self) -> str | None:
        """Why the database is out of reach, or None. Meanwhile writes are kept in memory."""
        return None

    def finish_writes(self) -> None:
        """Write what is not written yet. Waits some seconds for an unreachable database."""

    # Launches

    def begin_launch(self) -> float | None:
        """Work on the last launch; return when the first process began to, in seconds since 1970.

        The time limit of a launch counts from there, as a study may wait for a worker. None without peers, where work
        begins with the launch. Raises Unreachable.
        """
        return None

    @property
    def is_relaunched(self) -> bool:
        """Whether the study was launched again since this process began to work on it."""
        return False

    @property
    def published(self) -> Mapping[str, int]:
        """How many trials, confirmations and tests the answer that a peer has published for this launch covers."""
        return {}

    def set_published(self, counts: Mapping[str, int]) -> None:
        """Keep how much the answer covers that this process has published."""

    def close_study(self) -> None:
        """Tell workers not to join the study before its next launch."""


class SoloCoordinator(Coordinator):
    """The coordinator of a study that one process holds."""


class LeasedCoordinator(Coordinator):
    """The coordinator of a study that several processes share. Each runs the trials that it has a lease on."""

    ask_again_s = 1.0
    runs_all_trials = False
    final_write_attempts = 60

    def __init__(self, storage: LeasedStorage, study_id: int, reader: TrialReader, attributes: StudyAttributes) -> None:
        self._storage, self._study_id, self._reader, self._attributes = storage, study_id, reader, attributes
        self.flush_interval_s = min(max(storage.lease_s / 10, 1.0), _POLL_INTERVAL_S)  # ten in a lease: some may fail
        self.peer_timeout_s = 2 * storage.lease_s + _ADOPTION_S
        self._launched_at: float | None = None  # of the launch that this process works on

    def poll(self) -> list[int]:
        return self._storage.poll(self._study_id)

    def take_lost(self) -> list[int]:
        lost = self._storage.take_lost(self._study_id)
        for number in lost:
            self._reader.running.pop(number, None)
        return lost

    def adopt(self, *, free: bool = False) -> list[int]:
        try:
            numbers = self._storage.adopt(self._study_id, free=free)
        except Unreachable:
            return []
        with self._storage.together():
            for t in (self._reader.trials()[n] for n in numbers):
                if t.state == TrialState.RUNNING:
                    self._storage.set_trial_state_values(t._trial_id, TrialState.WAITING)
        return numbers

    def release(self, numbers: Iterable[int]) -> None:
        self._storage.release(self._study_id, numbers)

    def ownership(self, number: int) -> Ownership:
        return self._storage.ownership(self._study_id, number)

    def had_other_owner(self, number: int) -> bool:
        return self._storage.had_other_owner(self._study_id, number)

    def leave(self) -> None:
        self._storage.leave(self._study_id)

    def keep_alive(self) -> None:
        self._storage.write()

    def lock(self, name: str, *, keep_alive: bool = True) -> AbstractContextManager[None]:
        meanwhile = self.keep_alive if keep_alive else _do_nothing
        return peers.locked(self._storage.backend.engine, f"{name} of {self._study_id}", meanwhile)

    def count_peers(self) -> int:
        return peers.count_peers(self._storage.backend.engine, self._study_id, self._storage.owner)

    def may_have_silent_peers(self, first_seen: dict[str, float]) -> bool:
        engine = self._storage.backend.engine
        return peers.may_have_silent_peers(engine, self._study_id, self._storage.owner, first_seen)

    def may_peers_continue(self, unfinished: Collection[str], start_refused: bool) -> bool:
        return self.outage is not None or "running" in unfinished or (bool(unfinished) and not start_refused)

    @property
    def outage(self) -> str | None:
        return self._storage.outage

    def finish_writes(self) -> None:
        until = time.monotonic() + _LAST_WRITES_S
        while self._storage.unwritten and time.monotonic() < until:
            time.sleep(0.2)
            self._storage.write()
        self._storage.write()

    def begin_launch(self) -> float | None:
        with self.lock("answer"):
            self._launched_at = self._attributes.launched_at
            if self._launched_at is None:
                self._launched_at = time.time()
                self._attributes.set_launched_at(self._launched_at)
        return self._launched_at

    @property
    def is_relaunched(self) -> bool:
        return self._attributes.launched_at != self._launched_at

    @property
    def published(self) -> Mapping[str, int]:
        return self._attributes.published

    def set_published(self, counts: Mapping[str, int]) -> None:
        self._attributes.set_published(counts)

    def close_study(self) -> None:
        self._attributes.set_closed(True)


def _do_nothing() -> None:
    pass
