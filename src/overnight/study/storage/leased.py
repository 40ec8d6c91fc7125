"""The ledger for one of many processes that write it: its own trials from memory, everybody else's as last read.

A trial is claimed, which takes a lease on it; every transaction that writes one first locks its lease's row, and what
has been taken over is not written. While the database is out of reach trials go on: what they say is written once it is
back. See `leases`.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import datetime
from typing import Any, Literal, TypeVar

from optuna.exceptions import StorageInternalError
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError

from overnight.config.paths import StudyLocation
from overnight.study.storage import leases, postgres
from overnight.study.storage.database import OptunaDatabase, open_storage
from overnight.study.storage.exclusive import Claim, ExclusiveStorage, as_stored, id_of, undisturbed
from overnight.study.storage.lock import StudyInUse
from overnight.study.storage.optuna_tables import Row, blank, write_trial
from overnight.study.storage.outage import Unreachable, raising_unreachable, unreachable_message

Ownership = Literal["owned", "uncertain", "foreign"]
T = TypeVar("T")
_TRY_AGAIN_S = 2.0  # at a database that is out of reach
# Of a lease. With a break of half a one, as long as others may have and still take over, that leaves time to spare.
_RENEW_AFTER = 0.15


class LeasedStorage(ExclusiveStorage):
    """Optuna's storage for one of several processes that write the trials of a study, each its own.

    lease_s: seconds for which a trial stays this process's after it was last heard of. owner: what this process is
    called there; the same for all the storages that it opens.
    """

    def __init__(self, backend: OptunaDatabase, lease_s: float, owner: str | None = None) -> None:
        super().__init__(backend)
        self.owner, self.lease_s = owner or _this_process(), lease_s
        self.outage: str | None = None  # why the database is out of reach
        self._mine: dict[int, int] = {}  # ids of the trials that are this process's -> how often they changed hands
        self._lost: set[int] = set()  # ids of those that were, and that nobody was told of yet
        self._settled: set[int] = set()  # ids of those of which everything is written, in MLflow too
        self._stale: set[int] = set()  # ids of those that somebody else may have written since
        self._news: set[int] = set()  # ids of those that somebody else has written, and that nobody was told of yet
        self._unsure: set[int] = set()  # ids of those of which the last transaction may have been made, or not
        self._is_member = False
        self._renewed_at, self._try_at = -1e9, 0.0
        self._said: dict[tuple[int, str], Any] = {}  # attributes of studies that are not written yet
        self._attrs: dict[tuple[int, str], dict[str, Any]] = {}  # of studies, as last read
        self._directions: dict[int, list[StudyDirection]] = {}
        self._names: dict[int, str] = {}

    # Trials that are this process's

    def claim(self, study_id: int, which: Claim, spent: Callable[[], bool]) -> int | None:
        """Make a trial this process's: one that waits or was left behind, or a new one; its number.

        which: any, a new one, or the one of this number. spent: whether no new one is to be made; asked when nobody
        else can make one. Raises Unreachable.
        """

        def work(database: Connection) -> tuple[int, int, Row | None] | None:
            # Leases, then trials: what is let go of in between has ended, and is seen to have.
            taken = leases.out_of_reach(database, study_id, self.owner, self.lease_s)
            self.refresh(study_id)
            rows = self._rows(study_id)
            for (study, number), fencing_token in leases.held(database, self.owner).items():
                i = id_of(study, number)
                lost_on_the_way = study == study_id and i not in self._mine and i not in self._lost
                if lost_on_the_way and which in ("any", "new", number) and not rows[number].now.state.is_finished():
                    return number, fencing_token, None  # it was claimed, and the answer did not arrive
            for number in self._claimable(study_id, which, taken):
                if self._keeps(study_id, number):  # it was put back, and MLflow does not know yet
                    return number, self._mine[id_of(study_id, number)], None
                token = self._take(database, study_id, number)
                if token is None:
                    continue
                if not rows[number].now.state.is_finished():
                    return number, token, None
                leases.release(database, self.owner, [(study_id, number)])  # whoever was late had all but let go of it
            if isinstance(which, int) or spent():
                return None
            new = blank(datetime.now())
            new.number, new._trial_id = len(rows), id_of(study_id, len(rows))
            row = Row(new, new, write_trial(database, new._trial_id, Row(new)))
            first = leases.take(database, study_id, new.number, self.owner, self.lease_s)
            assert first is not None, "nobody else knows of it yet"
            return new.number, first, row

        claimed = self._transact(work, lock=f"trials of {study_id}")
        if claimed is None:
            return None
        number, fencing_token, row = claimed
        rows = self._rows(study_id)
        if row is not None:
            rows.append(row)
        self._mine[id_of(study_id, number)] = fencing_token
        return number

    def _claimable(self, study_id: int, which: Claim, taken: set[int]) -> Iterable[int]:
        """Numbers of trials that wait, and of those that run and whose holder is gone; but for those that are taken."""
        if which == "new":
            return []
        rows = self._rows(study_id)
        open_ = [n for n, row in enumerate(rows) if which in ("any", n) and not row.now.state.is_finished()]
        # What somebody has taken from this process, and may have put back: another time, once that is known here.
        open_ = [n for n in open_ if id_of(study_id, n) not in self._lost]
        waits = {n for n in open_ if rows[n].now.state == TrialState.WAITING}
        return sorted(
            (n for n in open_ if n not in taken or (n in waits and self._keeps(study_id, n))),
            key=lambda n: (n not in waits, n),
        )

    def _take(self, database: Connection, study_id: int, number: int) -> int | None:
        """Take a trial's lease, and then read what its last holder wrote, who writes no more; how often it changed
        hands, or None."""
        fencing_token = leases.take(database, study_id, number, self.owner, self.lease_s)
        if fencing_token is not None:
            self._stale.add(id_of(study_id, number))
            self.refresh(study_id)
        return fencing_token

    def _keeps(self, study_id: int, number: int) -> bool:
        i = id_of(study_id, number)
        return i in self._mine and i not in self._settled

    def adopt(self, study_id: int) -> list[int]:
        """Make those trials this process's whose holder went before they had ended, or before everybody was told; their
        numbers. Raises Unreachable."""

        def work(database: Connection) -> dict[int, int]:
            held = {
                n: fencing_token
                for (study, n), fencing_token in leases.held(database, self.owner).items()
                if study == study_id
            }
            unheard = {n: fencing_token for n, fencing_token in held.items() if id_of(study_id, n) not in self._mine}
            left = leases.abandoned(database, study_id, self.owner, self.lease_s)
            if left or unheard:
                self.refresh(study_id)
            known = sorted(n for n in left if n < len(self._rows(study_id)))
            taken = {n: self._take(database, study_id, n) for n in known}
            return {**unheard, **{n: fencing_token for n, fencing_token in taken.items() if fencing_token is not None}}

        adopted = self._transact(work)
        self._mine.update({id_of(study_id, n): fencing_token for n, fencing_token in adopted.items()})
        return list(adopted)

    def ownership(self, study_id: int, number: int) -> Ownership:
        """Say whose a trial is: uncertain once another process may have adopted it. Thread-safe."""
        if id_of(study_id, number) not in self._mine:
            return "foreign"
        return "owned" if _awake_or_not_s() < self._renewed_at + self.lease_s else "uncertain"

    def had_other_owner(self, study_id: int, number: int) -> bool:
        """Whether a trial of this process's was somebody's before. Other threads may ask."""
        return self._mine.get(id_of(study_id, number), 1) > 1

    def release(self, study_id: int, numbers: Iterable[int]) -> None:
        """Let go of trials that have ended, or wait, now that everything of them is written."""
        for i in (id_of(study_id, n) for n in numbers):
            if i in self._mine and self._row(i).now.state != TrialState.RUNNING:  # it may be under way again
                self._settled.add(i)

    def take_lost(self, study_id: int) -> list[int]:
        """The numbers of trials that somebody has taken over, each told once."""
        lost = {i for i in self._lost if i >> 32 == study_id}
        self._lost -= lost
        return sorted(i & 0xFFFFFFFF for i in lost)

    # One of several

    def join(self, study_id: int, alone: bool = False) -> None:
        """Count this process as a member of a study. Raises StudyInUse if `alone` and there are others; Unreachable."""

        def work(database: Connection) -> None:
            there = leases.members(database, study_id) if alone else []
            if there:
                raise StudyInUse(self.get_study_name_from_id(study_id), vars(there[0]))
            leases.join(database, study_id, self.owner, self.lease_s)

        self._transact(work, lock=f"members of {study_id}")
        self._is_member = True

    def leave(self, study_id: int) -> None:
        """Say that this process is at a study no more. What of its trials is not written stays out of others' reach
        until its lease ends."""
        with contextlib.suppress(Unreachable):
            self._transact(lambda database: leases.leave(database, study_id, self.owner))

    def count_peers(self, study_id: int) -> int:
        """How many other processes are at a study. Other threads may ask."""
        with raising_unreachable(), self.backend.engine.connect() as connection:
            return sum(member.owner != self.owner for member in leases.members(connection, study_id))

    def may_have_silent_peers(self, study_id: int, first: dict[str, float]) -> bool:
        """Whether somebody else who is at a study, or was, may be gone without a word: has not been heard of since
        `first` was begun, an empty dict; or is gone, and has left what this process can't take over yet."""
        with raising_unreachable(), self.backend.engine.connect() as connection:
            there, holding = leases.others(connection, study_id, self.owner)
        silent = [owner for owner, until in there.items() if first.setdefault(owner, until) == until]
        return bool(silent or holding - there.keys())

    @property
    def unwritten(self) -> int:
        return len(self._unwritten) + len(self._said)

    @contextlib.contextmanager
    def lock(self, what: str, meanwhile: Callable[[], None] = lambda: None) -> Iterator[None]:
        """Be the only process to do something, of all that share the database; waits for its turn, and calls
        `meanwhile` until then, now and again. Other threads may ask. Raises Unreachable."""
        with raising_unreachable():
            connection = self.backend.engine.connect().execution_options(isolation_level="AUTOCOMMIT")
        with connection:
            pause_s = 0.02
            with raising_unreachable():
                while not leases.try_lock_beyond(connection, what):  # asleep here, not there: signals are heeded
                    meanwhile()
                    time.sleep(pause_s)
                    pause_s = min(2 * pause_s, 0.5)
            try:
                yield
            finally:
                with contextlib.suppress(DBAPIError):  # then it ended with its connection
                    leases.unlock(connection, what)

    # When it is written, and read

    def write(self) -> None:
        """Bring the database up to what is known here; where it is out of reach, another time."""
        due = _awake_or_not_s() > self._renewed_at + _RENEW_AFTER * self.lease_s
        if self._unwritten or self._settled or self._said or (due and self._is_member):
            with contextlib.suppress(Unreachable):
                self._transact(lambda _: None)

    def poll(self, study_id: int) -> list[int]:
        """Read what others wrote of a study's trials; the numbers of those that changed since this was last asked."""
        try:
            if time.monotonic() >= self._try_at:
                self.refresh(study_id)
        except StorageInternalError as error:
            self._out_of_reach(error)
        news = {i for i in self._news if i >> 32 == study_id}
        self._news -= news
        return sorted(_pair(i)[1] for i in news)

    def refresh(self, study_id: int) -> None:
        """Read what others wrote of a study's trials. Raises StorageInternalError."""
        rows = self._rows(study_id)
        if not rows:
            del self._studies[study_id]
            self._news.update(id_of(study_id, n) for n in range(len(self._rows(study_id))))
            return
        theirs = {
            row.row_id
            for number, row in enumerate(rows)
            if (i := id_of(study_id, number)) in self._stale
            or (i not in self._mine and not row.now.state.is_finished())
        }
        for trial in self.backend._get_trials(study_id, None, theirs, rows[-1].row_id):
            row = self._as_row(study_id, trial)
            if trial.number == len(rows):
                rows.append(row)
            elif _differ(rows[trial.number].now, row.now):
                rows[trial.number] = row
            else:
                continue
            self._news.add(id_of(study_id, trial.number))
        self._stale = {i for i in self._stale if i >> 32 != study_id}

    def _transact(self, work: Callable[[Connection], T], lock: str | None = None) -> T:
        """Do something in a transaction that first writes what there is to write. Raises Unreachable."""
        if time.monotonic() < self._try_at:
            raise Unreachable(self.outage)
        unwritten, settled, before = dict(self._unwritten), set(self._settled), _awake_or_not_s()
        try:
            with undisturbed():
                if self._unsure:
                    self._make_sure()
                with self.backend.engine.begin() as database:
                    if lock is not None:
                        leases.lock(database, lock)
                    held = leases.held(database, self.owner)
                    for i in [i for i, fencing_token in self._mine.items() if held.get(_pair(i)) != fencing_token]:
                        self._lose(i)
                    for i in [i for i in self._unwritten if i not in self._mine]:  # said after it was lost
                        self._forget(i)
                    unwritten = dict(self._unwritten)
                    nows = {i: row.now for i, row in unwritten.items()}
                    for i, row in unwritten.items():
                        write_trial(database, i, row)
                    leases.release(database, self.owner, map(_pair, settled & self._mine.keys()))
                    leases.renew(database, self.owner, self.lease_s)
                    done = work(database)
                self._renewed_at, self.outage = before, None
                for i, now in nows.items():
                    self._unwritten.pop(i).written = now
                for i in settled:
                    self._mine.pop(i, None)
                self._settled -= settled
        except (DBAPIError, StorageInternalError) as error:
            self._unsure |= unwritten.keys()
            self._out_of_reach(error)
            raise Unreachable(self.outage) from error
        self._say()
        return done

    def _lose(self, i: int) -> None:
        """Somebody has taken a trial over: what is known here of it does not count."""
        del self._mine[i]
        self._lost.add(i)
        self._forget(i)

    def _forget(self, i: int) -> None:
        self._unwritten.pop(i, None)
        self._settled.discard(i)
        self._stale.add(i)

    def _make_sure(self) -> None:
        """See what the database has of the trials that the last transaction was to write."""
        for i in self._unsure & self._unwritten.keys():
            row = self._unwritten[i]
            found = [
                t
                for t in self.backend._get_trials(i >> 32, None, {row.row_id}, row.row_id)
                if t._trial_id == row.row_id
            ]
            row.written = self._as_row(i >> 32, found[0]).now
        self._unsure.clear()

    def _out_of_reach(self, error: BaseException) -> None:
        if not postgres.is_unreachable(error):
            raise error
        self.outage = unreachable_message(error)
        self._try_at = time.monotonic() + min(_TRY_AGAIN_S, _RENEW_AFTER * self.lease_s)

    # Optuna's own questions

    def create_new_trial(self, study_id: int, template_trial: FrozenTrial | None = None) -> int:
        """Have a trial wait, for whoever claims it. Raises Unreachable."""
        assert template_trial is not None, "a trial that is to run is claimed"
        trial = as_stored(template_trial)
        for name, dist in trial.distributions.items():
            self._check_drawn(study_id, name, dist)

        def work(database: Connection) -> Row:
            self.refresh(study_id)
            trial.number = len(self._rows(study_id))
            trial._trial_id = id_of(study_id, trial.number)
            return Row(trial, trial, write_trial(database, trial._trial_id, Row(trial)))

        row = self._transact(work, lock=f"trials of {study_id}")
        self._rows(study_id).append(row)  # which may be read anew by then
        return trial._trial_id

    def delete_study(self, study_id: int) -> None:
        self._transact(lambda database: leases.forget(database, study_id))
        super().delete_study(study_id)

    def set_study_user_attr(self, study_id: int, key: str, value: Any) -> None:
        self._said[study_id, key] = value
        self._say()

    def _say(self) -> None:
        """Write what was said of studies, where the database can be reached."""
        try:
            for (study_id, key), value in list(self._said.items()):
                if time.monotonic() >= self._try_at:
                    self.backend.set_study_user_attr(study_id, key, value)
                    del self._said[study_id, key]
        except StorageInternalError as error:
            self._out_of_reach(error)

    def get_study_user_attrs(self, study_id: int) -> dict[str, Any]:
        said = {key: value for (study, key), value in self._said.items() if study == study_id}
        return {**self._last_known(study_id, "user", self.backend.get_study_user_attrs), **said}

    def get_study_system_attrs(self, study_id: int) -> dict[str, Any]:
        return self._last_known(study_id, "system", self.backend.get_study_system_attrs)

    def _last_known(self, study_id: int, kind: str, ask: Callable[[int], dict[str, Any]]) -> dict[str, Any]:
        """A study's attributes; as they were last read where the database is out of reach. Raises Unreachable where
        they never were."""
        known = self._attrs.get((study_id, kind))
        if known is None or time.monotonic() >= self._try_at:
            try:
                self._attrs[study_id, kind] = known = ask(study_id)
            except StorageInternalError as error:
                self._out_of_reach(error)
                if known is None:
                    raise Unreachable(self.outage) from error
        return dict(known)

    def get_study_directions(self, study_id: int) -> list[StudyDirection]:
        if study_id not in self._directions:
            with raising_unreachable():
                self._directions[study_id] = self.backend.get_study_directions(study_id)
        return self._directions[study_id]

    def get_study_name_from_id(self, study_id: int) -> str:
        if study_id not in self._names:
            with raising_unreachable():
                self._names[study_id] = self.backend.get_study_name_from_id(study_id)
        return self._names[study_id]


def open_for_work(location: StudyLocation) -> ExclusiveStorage:
    """The ledger's storage for a process that works on studies: the one that holds them, or one of many."""
    storage = open_storage(location)
    if storage.engine.name == "sqlite":
        return ExclusiveStorage(storage)
    return LeasedStorage(storage, location.lease_s)


def begin() -> None:
    """From here on this process goes by another name: what it left unsaid of an earlier study is anybody's, in time."""
    _name["now"] = f"{socket.gethostname()[:50]}-{os.getpid()}-{uuid.uuid4().hex[:8]}"


_name: dict[str, str] = {}


def _this_process() -> str:
    if not _name:
        begin()
    return _name["now"]


def _awake_or_not_s() -> float:
    """Seconds of a clock that goes on while the machine sleeps, as the database's does; where there is one."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


def _pair(i: int) -> tuple[int, int]:
    return i >> 32, i & 0xFFFFFFFF


def _differ(a: FrozenTrial, b: FrozenTrial) -> bool:
    names: Sequence[str] = ("state", "values", "params", "user_attrs", "system_attrs", "intermediate_values")
    return any(getattr(a, name) != getattr(b, name) for name in names)
