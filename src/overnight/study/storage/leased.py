"""The storage for one of several processes that work on the same studies.

A process writes the trials that it owns. To own a trial it claims it, which takes a lease; see `leases`. Every
transaction first locks the rows of the process's leases, and does not write a trial that another process has adopted.
While the database is unreachable trials continue; their reports are written once it is back.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, Literal, TypeVar

from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy import Connection

from overnight.config.paths import StudyLocation
from overnight.study.storage import leases
from overnight.study.storage.database import OptunaDatabase, open_storage
from overnight.study.storage.exclusive import Choice, Claim, ExclusiveStorage, postponed_signals
from overnight.study.storage.lock import StudyInUse
from overnight.study.storage.optuna_tables import Row, blank, differ, make_trial_id, split_trial_id, write_trial
from overnight.study.storage.outage import OutageGuard, Unreachable
from overnight.study.storage.ownership import OwnershipTable, Phase

Ownership = Literal["owned", "uncertain", "foreign"]
T = TypeVar("T")
_RETRY_AFTER_S = 2.0
# Fraction of a lease after which it is renewed. Breaks of half a lease are tolerated, so one renewal may fail.
_RENEW_AFTER = 0.15


class LeasedStorage(ExclusiveStorage):
    """Optuna's storage for one of several processes that write the trials of a study, each its own trials.

    It differs from Optuna's contract in three points. A trial has one owner; changes by other processes are dropped.
    Trials of other processes are as they were at the last `poll`, `claim` or `adopt`. While the database is unreachable
    writes are kept in memory, and only operations that need an answer raise Unreachable.

    Args:
        backend: a PostgreSQL database.
        lease_s: seconds after its last renewal for which a trial stays owned.
        owner: the name of this process in leases, by default one for all storages that the process opens.
        retry_after_s: seconds between two attempts at an unreachable database.
        clock: returns seconds, also of the time for which the machine is suspended.
    """

    def __init__(
        self,
        backend: OptunaDatabase,
        lease_s: float,
        owner: str | None = None,
        retry_after_s: float = _RETRY_AFTER_S,
        clock: Callable[[], float] = leases.boot_time_s,
    ) -> None:
        super().__init__(backend)
        self.owner, self.lease_s = owner or leases.owner_name(), lease_s
        self._ownership = OwnershipTable()
        self._guard = OutageGuard(backend, min(retry_after_s, _RENEW_AFTER * lease_s))
        self._is_member = False
        self._clock, self._renewed_at = clock, float("-inf")  # by the clock

    # Ownership of trials

    def claim(self, study_id: int, which: Claim, is_spent: Callable[[], bool]) -> int | None:
        """Become the owner of a trial: of one that waits or was abandoned, or of a new one.

        Args:
            which: see Claim.
            is_spent: whether no new trial may be created. Called while no other process can create one.

        Returns:
            The number of the trial, or None.

        Raises:
            Unreachable: the database is unreachable.
        """

        def work(database: Connection) -> tuple[int, int, Row | None] | None:
            # The leases are read before the trials: one that is released in between belongs to a trial that is seen to
            # have ended.
            unavailable = self._unavailable(database, study_id)
            self.refresh(study_id)
            choice = which(unavailable) if callable(which) else Choice("new" if which == "any" else which)
            if choice is None:
                return None
            wanted = choice.which if callable(which) else which
            for number, token in self._unconfirmed(database, study_id).items():
                if wanted in ("any", "new", number) and not self._is_finished(study_id, number):
                    return number, token, None
            for number in self._claimable(study_id, wanted, unavailable):
                known = self._ownership.get(make_trial_id(study_id, number))
                if known.phase is Phase.OWNED:  # it was paused, and is not released yet
                    return number, known.fencing_token, self._with_attrs(database, study_id, number, choice.attrs)
                taken = self._take(database, study_id, [number]).get(number)
                if taken is not None and not self._is_finished(study_id, number):
                    return number, taken, self._with_attrs(database, study_id, number, choice.attrs)
                if taken is not None:  # its owner was late, but has ended it
                    leases.release(database, self.owner, [(study_id, number)])
            if isinstance(wanted, int) or is_spent():
                return None
            trial = blank(datetime.now())
            trial.user_attrs = dict(choice.attrs)
            row, first_token = self._insert(database, study_id, trial)
            assert first_token is not None, "no other process knows of the trial"
            return row.now.number, first_token, row

        claimed = self._transact(work, lock=f"trials of {study_id}")
        if claimed is None:
            return None
        number, token, row = claimed
        self._put(study_id, number, row)
        self._ownership.own(make_trial_id(study_id, number), token)
        return number

    def change(self, study_id: int, number: int, choose: Callable[[], Mapping[str, Any]]) -> None:
        """As ExclusiveStorage.change, and in one transaction. Raises Unreachable."""

        def work(database: Connection) -> Row | None:
            self.refresh(study_id)
            if not self._ownership.get(make_trial_id(study_id, number)).is_own:  # a peer has adopted it
                return None
            return self._with_attrs(database, study_id, number, choose())

        self._put(study_id, number, self._transact(work, lock=f"trials of {study_id}"))

    def _with_attrs(self, database: Connection, study_id: int, number: int, attrs: Mapping[str, Any]) -> Row | None:
        """Write user attributes of a trial in this transaction, so that the next process that decides sees them.

        Returns:
            The trial as the transaction leaves it, for `_put` after the commit; None without attributes.
        """
        if not attrs:
            return None
        row = self._rows(study_id)[number]  # what was unwritten of it is part of this transaction
        changed = copy.copy(row.now)
        changed.user_attrs = {**row.now.user_attrs, **attrs}
        write_trial(database, Row(changed, row.now, row.row_id))
        return Row(changed, changed, row.row_id)

    def _put(self, study_id: int, number: int, row: Row | None) -> None:
        """Keep a trial as a transaction has left it. It is the next one, or takes the place of the one in memory."""
        if row is not None:
            self._rows(study_id)[number : number + 1] = [row]

    def adopt(self, study_id: int, *, free: bool = False) -> list[int]:
        """Become the owner of the trials that dead processes had not released, and return their numbers.

        Args:
            free: of the trials that no process owns, in place of those.

        Raises:
            Unreachable: the database is unreachable.
        """

        def work(database: Connection) -> dict[int, int]:
            adopted = self._unconfirmed(database, study_id)
            wanted = leases.abandoned(database, study_id, self.owner, self.lease_s)
            if wanted or adopted or free:
                self.refresh(study_id)
            if free:
                wanted = set(range(len(self._rows(study_id)))) - leases.owned(database, study_id)
            # One that was lost is not adopted again before the loss is reported.
            return adopted | self._take(database, study_id, wanted - self._ownership.numbers(study_id, Phase.LOST))

        adopted = self._transact(work)
        for number, token in adopted.items():
            self._ownership.own(make_trial_id(study_id, number), token)
        return list(adopted)

    def ownership(self, study_id: int, number: int) -> Ownership:
        """Say whose a trial is: uncertain once another process may have adopted it. Thread-safe."""
        if not self._ownership.get(make_trial_id(study_id, number)).is_own:
            return "foreign"
        return "owned" if self._clock() < self._renewed_at + self.lease_s else "uncertain"

    def had_other_owner(self, study_id: int, number: int) -> bool:
        """Whether a trial that this process owns had another owner before. Thread-safe."""
        return self._ownership.get(make_trial_id(study_id, number)).fencing_token > 1

    def release(self, study_id: int, numbers: Iterable[int]) -> None:
        """Give up the ownership of trials that have ended or wait, and are in MLflow; those that run stay owned."""
        for trial_id in (make_trial_id(study_id, n) for n in numbers):
            if self._ownership.get(trial_id).is_own and self._row(trial_id).now.state != TrialState.RUNNING:
                self._ownership.release(trial_id)

    def take_lost(self, study_id: int) -> list[int]:
        """Return the numbers of the trials that other processes have adopted from this one, each once."""
        return self._ownership.take_lost(study_id)

    def _is_finished(self, study_id: int, number: int) -> bool:
        return bool(self._rows(study_id)[number].now.state.is_finished())

    def _claimable(self, study_id: int, which: Literal["any", "new"] | int, unavailable: set[int]) -> Iterable[int]:
        """Return the numbers of the trials that wait, then of those whose owner is dead."""
        if which == "new":
            return []
        candidates: list[tuple[bool, int]] = []
        for number, row in enumerate(self._rows(study_id)):
            if which not in ("any", number) or row.now.state.is_finished() or number in unavailable:
                continue
            waits = row.now.state == TrialState.WAITING
            if waits or self._ownership.get(make_trial_id(study_id, number)).phase is not Phase.OWNED:
                candidates.append((not waits, number))
        return [number for _, number in sorted(candidates)]

    def _unavailable(self, database: Connection, study_id: int) -> set[int]:
        """Return the numbers of the trials that this process can't claim now."""
        unavailable = leases.unavailable(database, study_id, self.owner, self.lease_s)
        own = self._ownership.numbers(study_id, Phase.OWNED)  # one that waits is claimed again
        # One that was lost is not claimed before the loss is reported.
        return (unavailable - own) | self._ownership.numbers(study_id, Phase.LOST)

    def _unconfirmed(self, database: Connection, study_id: int) -> dict[int, int]:
        """Return number -> fencing token of the trials that a transaction took whose result did not arrive."""
        return {
            number: token
            for (study, number), token in leases.held(database, self.owner).items()
            if study == study_id and self._ownership.get(make_trial_id(study, number)).phase is Phase.FOREIGN
        }

    def _take(self, database: Connection, study_id: int, numbers: Iterable[int]) -> dict[int, int]:
        """Take the leases of trials, then read what their last owners, who can't write them now, have written."""
        tokens = {n: leases.take(database, study_id, n, self.owner, self.lease_s) for n in sorted(numbers)}
        taken = {number: token for number, token in tokens.items() if token is not None}
        # What this transaction writes was owned until now, and can't be read before the commit.
        for trial_id in {make_trial_id(study_id, number) for number in taken} - self._unwritten.keys():
            self._ownership.mark_stale(trial_id)
        if self._ownership.stale(study_id):
            self.refresh(study_id)
        return taken

    def _insert(self, database: Connection, study_id: int, trial: FrozenTrial) -> tuple[Row, int | None]:
        """Insert a trial, and take the lease of one that runs; return its fencing token."""
        trial.number = len(self._rows(study_id))
        trial._trial_id = make_trial_id(study_id, trial.number)
        row = Row(trial, trial, write_trial(database, Row(trial)))
        is_running = trial.state == TrialState.RUNNING
        return row, leases.take(database, study_id, trial.number, self.owner, self.lease_s) if is_running else None

    # Membership

    def join(self, study_id: int, alone: bool = False) -> None:
        """Become a member of a study.

        Raises:
            StudyInUse: `alone` is asked for, and the study has another member.
            Unreachable: the database is unreachable.
        """

        def work(database: Connection) -> None:
            members = leases.members(database, study_id) if alone else []
            if members:
                raise StudyInUse(self.get_study_name_from_id(study_id), vars(members[0]))
            leases.join(database, study_id, self.owner, self.lease_s)

        self._transact(work, lock=f"members of {study_id}")
        self._is_member = True

    def leave(self, study_id: int) -> None:
        """End the membership. Trials that are not written and released stay unavailable until their leases end."""
        with contextlib.suppress(Unreachable):
            self._transact(lambda database: leases.leave(database, study_id, self.owner))

    # Reads and writes

    @property
    def outage(self) -> str | None:
        """Why the database is unreachable, or None."""
        return self._guard.outage

    @property
    def unwritten(self) -> int:
        return super().unwritten + self._guard.unwritten_attributes

    def write(self) -> None:
        """Write what is unwritten, and renew the leases if that is due. Postponed while the database is unreachable."""
        is_due = self._is_member and self._clock() > self._renewed_at + _RENEW_AFTER * self.lease_s
        if is_due or self.unwritten or self._ownership.released():
            with contextlib.suppress(Unreachable):
                self._transact(lambda _: None)

    def poll(self, study_id: int) -> list[int]:
        """Read what other processes have written; return the numbers of the trials they changed since the last poll."""
        with contextlib.suppress(Unreachable), self._guard.attempt():
            self.refresh(study_id)
        return self._ownership.take_changed(study_id)

    def refresh(self, study_id: int) -> None:
        """Read what other processes have written. Raises StorageInternalError."""
        rows = self._rows(study_id)
        if not rows:
            del self._studies[study_id]
            for row in self._rows(study_id):
                self._ownership.mark_changed(row.now._trial_id)
            return
        stale = self._ownership.stale(study_id)
        row_ids = {
            row.row_id
            for number, row in enumerate(rows)
            if number in stale
            or not (row.now.state.is_finished() or self._ownership.get(make_trial_id(study_id, number)).is_own)
        }
        for trial in self.backend._get_trials(study_id, None, row_ids, rows[-1].row_id):
            row = self._as_row(study_id, trial)
            if trial.number == len(rows):
                rows.append(row)
            elif differ(rows[trial.number].now, row.now):
                rows[trial.number] = row
            else:
                continue
            self._ownership.mark_changed(row.now._trial_id)
        self._ownership.mark_read(study_id)

    def _transact(self, work: Callable[[Connection], T], lock: str | None = None) -> T:
        """Run `work` in a transaction that first writes what is unwritten and renews the leases. Raises Unreachable."""
        started_at = self._clock()
        with self._guard.attempt(), postponed_signals():
            self._guard.begin_commit(self._unwritten)
            with self.backend.engine.begin() as database:
                if lock is not None:
                    leases.lock_transaction(database, lock)
                self._drop_lost(leases.held(database, self.owner))
                for row in self._unwritten.values():
                    write_trial(database, row)
                leases.release(database, self.owner, map(split_trial_id, self._ownership.released()))
                leases.renew(database, self.owner, self.lease_s)
                result = work(database)
            self._renewed_at = started_at
            self._guard.confirm_commit()
            self._ownership.end_release()
            for row in self._unwritten.values():
                row.written = row.now
            self._unwritten.clear()
        self._guard.write_attributes()
        return result

    def _drop_lost(self, held: Mapping[tuple[int, int], int]) -> None:
        """Drop the writes to trials that this process does not own, or no longer."""
        lost = self._ownership.lose(held)
        for trial_id in {*lost, *(i for i in self._unwritten if not self._ownership.get(i).is_own)}:
            self._unwritten.pop(trial_id, None)
            self._ownership.mark_stale(trial_id)

    # Optuna's interface

    def create_new_trial(self, study_id: int, template_trial: FrozenTrial | None = None) -> int:
        """Create a running trial of this process, or a copy of the template for any process. Raises Unreachable."""
        trial = self._new_trial(study_id, template_trial)

        def work(database: Connection) -> tuple[Row, int | None]:
            self.refresh(study_id)
            return self._insert(database, study_id, trial)

        row, token = self._transact(work, lock=f"trials of {study_id}")
        self._put(study_id, row.now.number, row)  # the list may be another one after `refresh`
        if token is not None:
            self._ownership.own(trial._trial_id, token)
        return trial._trial_id

    def set_trial_state_values(self, trial_id: int, state: TrialState, values: Sequence[float] | None = None) -> bool:
        if state == TrialState.RUNNING and not self._ownership.get(trial_id).is_own:
            study_id, number = split_trial_id(trial_id)
            if (
                self._row(trial_id).now.state == TrialState.WAITING
                and self.claim(study_id, number, lambda: True) is None
            ):
                return False
        return super().set_trial_state_values(trial_id, state, values)

    def delete_study(self, study_id: int) -> None:
        self._transact(lambda database: leases.forget(database, study_id))
        super().delete_study(study_id)
        self._guard.forget_study(study_id)

    def set_study_user_attr(self, study_id: int, key: str, value: Any) -> None:
        self._guard.set_attribute(study_id, key, value)

    def get_study_user_attrs(self, study_id: int) -> dict[str, Any]:
        return self._guard.user_attributes(study_id)

    def get_study_system_attrs(self, study_id: int) -> dict[str, Any]:
        return self._guard.system_attributes(study_id)

    def get_study_directions(self, study_id: int) -> list[StudyDirection]:
        return self._guard.directions(study_id)

    def get_study_name_from_id(self, study_id: int) -> str:
        return self._guard.name(study_id)


def open_for_work(location: StudyLocation) -> ExclusiveStorage:
    """Open the storage for a process that works on studies: one that holds their locks, or one of several."""
    database = open_storage(location)
    return LeasedStorage(database, location.lease_s) if location.shared else ExclusiveStorage(database)
