"""Several owners of one study on a real PostgreSQL, in many orders of events, which Hypothesis generates.

Each trial is completed once. No report that was written is lost. An owner learns of each trial that it loses, once.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field

import hypothesis.strategies as st
import pytest
import sqlalchemy
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy import Connection
from sqlalchemy.exc import OperationalError

from overnight.config.paths import StudyLocation
from overnight.study.storage.database import OptunaDatabase, dispose, open_storage
from overnight.study.storage.leased import LeasedStorage
from overnight.study.storage.optuna_tables import make_trial_id
from overnight.study.storage.outage import Unreachable

OWNERS, TRIALS, LEASE_S = 2, 4, 1000.0  # no lease ends by itself


owners = st.integers(0, OWNERS - 1)


class FaultyDatabase:
    """A database of one owner. state: "up", "down", or "loses answer", of the next commit, after which it is down."""

    def __init__(self, url: str) -> None:
        self.storage: OptunaDatabase = open_storage(StudyLocation("unused", url, storage="postgres"))
        self.state = "up"
        sqlalchemy.event.listen(self.storage.engine, "before_cursor_execute", self._execute)
        sqlalchemy.event.listen(self.storage.engine, "commit", self._commit)

    def _execute(self, *_: object) -> None:
        if self.state == "down":
            raise OperationalError("a statement", {}, Exception("the server is down"))

    def _commit(self, connection: Connection) -> None:
        if self.state == "loses answer":
            self.state = "down"
            connection.connection.dbapi_connection.commit()
            raise OperationalError("COMMIT", {}, Exception("the server is down"))


@dataclass
class Owner:
    """A process, and what the test knows about it."""

    name: str
    database: FaultyDatabase
    storage: LeasedStorage
    running: set[int] = field(default_factory=set)
    owned: set[int] = field(default_factory=set)  # claimed or adopted, and neither released nor reported as lost
    releasing: set[int] = field(default_factory=set)  # released, and the lease may not be free yet
    lost: set[int] = field(default_factory=set)  # adopted by others, which is not reported yet


class OwnershipMachine(RuleBasedStateMachine):
    counter = itertools.count(1)

    def __init__(self, databases: list[FaultyDatabase], reader: OptunaDatabase) -> None:
        super().__init__()
        self.reader, self.now_s = reader, 0.0
        self.study_id = reader.create_new_study([StudyDirection.MINIMIZE])
        self.owners: list[Owner] = []
        self.dead: list[str] = []
        self.attributes: dict[str, int] = {}  # of the study, by every owner
        self.authors: dict[float, str] = {}  # value of a report or of a completed trial -> the owner that set it
        self.written: list[FrozenTrial] = []
        self.lease_owners: dict[int, str | None] = {}
        for database in databases:
            database.state = "up"
            self.owners.append(self.new_owner(database))

    def new_owner(self, database: FaultyDatabase) -> Owner:
        name = f"owner-{next(self.counter)}"
        storage = LeasedStorage(database.storage, LEASE_S, name, retry_after_s=0.0, clock=lambda: self.now_s)
        storage.join(self.study_id)
        return Owner(name, database, storage)

    # Events

    @initialize()
    def start(self) -> None:
        for i in range(OWNERS):
            self.claim(i)

    @rule(i=owners)
    def claim(self, i: int) -> None:
        owner = self.owners[i]
        with suppress(Unreachable):
            number = owner.storage.claim(self.study_id, "any", lambda: self.is_spent(owner))
            if number is not None:
                owner.owned.add(number)
                owner.storage.set_trial_state_values(self.id_of(number), TrialState.RUNNING)
                owner.running.add(number)
                reports = owner.storage.get_trial(self.id_of(number)).intermediate_values
                assert reports == self.read()[number].intermediate_values, "the next owner sees every report"

    @rule(i=owners)
    def adopt(self, i: int) -> None:
        owner = self.owners[i]
        with suppress(Unreachable):
            for number in owner.storage.adopt(self.study_id):
                owner.owned.add(number)
                if owner.storage.get_trial(self.id_of(number)).state == TrialState.RUNNING:
                    owner.storage.set_trial_state_values(self.id_of(number), TrialState.WAITING)

    @rule(
        i=owners,
        before=st.sampled_from(["report", "complete", "pause", "nothing"]),
        is_down=st.booleans(),
        adopts=st.booleans(),
        returns=st.booleans(),
    )
    def lose(self, i: int, before: str, is_down: bool, adopts: bool, returns: bool) -> None:
        """An owner does something, perhaps in an outage; its leases end, a peer takes a trial, and it may return."""
        if is_down:
            self.owners[i].database.state = "down"
        if before == "report":
            self.report(i, postponed=True)
        elif before == "complete":
            self.complete(i, released=True)
        elif before == "pause":
            self.pause(i, released=True)
        self.let_leases_end(self.owners[i].name)
        peer = (i + 1) % OWNERS
        self.owners[peer].database.state = "up"
        if adopts:
            self.adopt(peer)
        self.claim(peer)
        self.no_result_changes()
        if returns:
            self.repair_database(i)
            self.poll(i)
            self.poll(i)

    @rule(i=owners, postponed=st.booleans(), loses_answer=st.booleans())
    def report(self, i: int, postponed: bool, loses_answer: bool = False) -> None:
        owner = self.owners[i]
        if loses_answer:
            owner.database.state = "loses answer"
        for number in owner.running:
            step = len(owner.storage.get_trial(self.id_of(number)).intermediate_values)
            with owner.storage.later() if postponed else nullcontext():
                owner.storage.set_trial_intermediate_value(self.id_of(number), step, self.value_of(owner))
        if loses_answer:
            owner.storage.write()
            self.repair_database(i)

    @rule(i=owners, released=st.booleans())
    def complete(self, i: int, released: bool) -> None:
        owner = self.owners[i]
        for number in sorted(owner.running)[:1]:
            owner.running.remove(number)
            owner.storage.set_trial_state_values(self.id_of(number), TrialState.COMPLETE, [self.value_of(owner)])
        if released:
            self.release(i)

    @rule(i=owners, released=st.booleans())
    def pause(self, i: int, released: bool) -> None:
        owner = self.owners[i]
        for number in sorted(owner.running)[:1]:
            owner.running.remove(number)
            owner.storage.set_trial_state_values(self.id_of(number), TrialState.WAITING)
        if released:
            self.release(i)

    def release(self, i: int) -> None:
        owner = self.owners[i]
        owner.releasing |= owner.owned - owner.running
        owner.storage.release(self.study_id, owner.owned)

    @rule(i=owners)
    def write(self, i: int) -> None:
        owner = self.owners[i]
        owner.storage.set_study_user_attr(self.study_id, owner.name, value := next(self.counter))
        self.attributes[owner.name] = value
        owner.storage.write()
        if owner.storage.outage is None:
            assert owner.storage.unwritten == 0

    @rule(i=owners)
    def poll(self, i: int) -> None:
        owner = self.owners[i]
        owner.storage.poll(self.study_id)
        reported = owner.storage.take_lost(self.study_id)
        # A released trial may be reported too if the answer to the release was lost.
        assert set(reported) <= owner.lost | owner.releasing
        for trials in (owner.lost, owner.owned, owner.running, owner.releasing):
            trials.difference_update(reported)

    @rule(i=owners, state=st.sampled_from(["down", "loses answer"]))
    def break_database(self, i: int, state: str) -> None:
        self.owners[i].database.state = state

    @rule(i=owners)
    def repair_database(self, i: int) -> None:
        self.owners[i].database.state = "up"
        self.write(i)

    @rule(i=owners)
    def crash(self, i: int) -> None:
        self.dead.append(self.owners[i].name)
        self.attributes.pop(self.owners[i].name, None)
        self.owners[i].database.state = "up"
        self.owners[i] = self.new_owner(self.owners[i].database)

    # Invariants

    @invariant()
    def no_result_changes(self) -> None:
        trials, lease_owners = self.read(), self.read_lease_owners()
        assert [t.number for t in trials] == list(range(len(trials)))
        assert len(trials) <= TRIALS
        for before, now in zip(self.written, trials, strict=False):
            assert before.intermediate_values.items() <= now.intermediate_values.items(), "no report is lost"
            new = now.intermediate_values.items() - before.intermediate_values.items()
            assert {self.authors[value] for _, value in new} <= {self.lease_owners[now.number]}, (
                "only the owner reports"
            )
            if before.state == TrialState.COMPLETE:
                assert (now.state, now.values) == (before.state, before.values)
            elif now.state == TrialState.COMPLETE:
                assert self.authors[now.values[0]] == self.lease_owners[now.number], "only the owner completes a trial"
        self.written, self.lease_owners = trials, lease_owners
        for owner in self.owners:
            freed = {n for n in owner.releasing if lease_owners[n] is None}
            taken = {n for n in owner.owned if lease_owners[n] not in (None, owner.name)}
            owner.owned -= freed
            owner.releasing -= {n for n in freed if owner.storage.ownership(self.study_id, n) == "foreign"}
            owner.lost |= taken
            for n in owner.owned - owner.releasing:
                is_sure = owner.storage.ownership(self.study_id, n) == "owned"
                assert not is_sure or lease_owners[n] == owner.name, "the owner is in doubt before a peer takes over"

    def teardown(self) -> None:
        """End the study without further faults: everything is completed, and every loss is reported."""
        self.now_s += LEASE_S / 2  # writes are due
        for i, owner in enumerate(self.owners):
            self.repair_database(i)
            self.no_result_changes()
            self.poll(i)
            assert owner.lost == set(), "each loss is reported"
        for name in self.dead:
            self.let_leases_end(name)
        for i in itertools.islice(itertools.cycle(range(OWNERS)), 5 * OWNERS * TRIALS):
            if [t.state for t in self.written] == [TrialState.COMPLETE] * TRIALS and not any(
                self.lease_owners.values()
            ):
                break
            self.adopt(i)
            self.claim(i)
            self.no_result_changes()
            self.complete(i, released=True)
            self.write(i)
            self.no_result_changes()
        assert [t.state for t in self.written] == [TrialState.COMPLETE] * TRIALS
        assert set(self.lease_owners.values()) == {None}
        written = self.reader.get_study_user_attrs(self.study_id)
        assert self.attributes.items() <= written.items()

    # The contents of the database

    def id_of(self, number: int) -> int:
        return make_trial_id(self.study_id, number)

    def value_of(self, owner: Owner) -> float:
        value = float(next(self.counter))
        self.authors[value] = owner.name
        return value

    def is_spent(self, owner: Owner) -> bool:
        return len(owner.storage.get_all_trials(self.study_id, deepcopy=False)) >= TRIALS

    def read(self) -> list[FrozenTrial]:
        return self.reader.get_all_trials(self.study_id, deepcopy=False)

    def read_lease_owners(self) -> dict[int, str | None]:
        query = sqlalchemy.text("SELECT number, owner FROM overnight_leases WHERE study_id = :study_id")
        with self.reader.engine.connect() as connection:
            return {row.number: row.owner for row in connection.execute(query, {"study_id": self.study_id})}

    def let_leases_end(self, name: str) -> None:
        """Let time pass: the database looks as if an owner had been silent for a lease, and the others had not."""
        self.now_s += 2 * LEASE_S
        long_ago = f"clock_timestamp() - interval '{2 * LEASE_S} s'"
        with self.reader.engine.begin() as connection:
            for statement in (
                f"UPDATE overnight_leases SET expires_at = {long_ago} WHERE owner = :name",
                f"UPDATE overnight_members SET expires_at = {long_ago} WHERE owner = :name",
                f"UPDATE overnight_members SET unbroken_since = {long_ago} WHERE owner <> :name",
            ):
                connection.execute(sqlalchemy.text(statement), {"name": name})


@pytest.fixture
def databases(database: Callable[[], str]) -> Iterator[tuple[list[FaultyDatabase], OptunaDatabase]]:
    url = database()
    faulty = [FaultyDatabase(url) for _ in range(OWNERS)]
    reader = open_storage(StudyLocation("unused", url, storage="postgres"))
    yield faulty, reader
    for storage in (reader, *(f.storage for f in faulty)):
        dispose(storage)


@pytest.mark.long
def test_each_trial_is_completed_once_in_any_order_of_claims_losses_and_outages(
    databases: tuple[list[FaultyDatabase], OptunaDatabase],
) -> None:
    run_state_machine_as_test(
        lambda: OwnershipMachine(*databases),
        settings=settings(
            max_examples=15,
            stateful_step_count=30,
            deadline=None,
            phases=[Phase.generate],
            suppress_health_check=[HealthCheck.too_slow],
        ),
    )
