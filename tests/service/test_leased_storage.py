"""A study that several processes share: who owns which trial, late writes, and outages of the database."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import sqlalchemy
from optuna.trial import TrialState
from sqlalchemy import Connection, Engine

from overnight.search.plan import Plan
from overnight.study import snapshot
from overnight.study.open import open_study
from overnight.study.session import StudySession
from overnight.study.storage import leased, leases
from overnight.study.storage.outage import Unreachable
from support.servers import Cable, Postgres
from support.shared_sessions import LEASE_S, Join, ask_number, epoch, keep_alive, leased_storage, poll_records


def test_concurrent_processes_get_each_trial_once_and_no_more_than_the_budget(
    planned: Callable[..., Plan], database: Callable[[], str], join: Join
) -> None:
    wider = planned(database(), "study.trials=10")
    sessions = [join(f"owner-{i}", 30.0, wider) for i in range(3)]
    got: list[int] = []

    def run_trials(session: StudySession) -> None:
        while (number := ask_number(session)) is not None:
            got.append(number)
            session.writer.record(epoch(number, 0))
            session.writer.complete(number)

    threads = [threading.Thread(target=run_trials, args=(session,)) for session in sessions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(got) == list(range(10))
    assert [r.state for r in join("reader", of=wider).records()] == ["complete"] * 10


def test_a_process_polls_what_its_peers_have_changed(join: Join) -> None:
    a, b = join("a", 30.0), join("b", 30.0)
    assert (ask_number(a), ask_number(b)) == (0, 1)
    a.writer.record(epoch(0, 0, 0.9))
    a.writer.flush()
    changed = {r.number: r for r in poll_records(b)}
    assert (changed[0].state, changed[0].objective) == ("running", 0.9)
    a.writer.complete(0)
    assert {r.number: r.state for r in poll_records(b)} == {0: "complete"}
    assert poll_records(b) == []


def test_no_trial_is_adopted_from_an_owner_that_renews_its_lease(join: Join) -> None:
    a, b = join("a"), join("b")
    assert ask_number(a) == 0
    for _ in range(3):
        keep_alive(a, b, seconds=LEASE_S)
        assert b.queue.ask_for(0) is None


def test_a_trial_of_a_silent_owner_is_resumed_elsewhere_and_its_late_writes_are_dropped(join: Join) -> None:
    a, b = join("a"), join("b")
    assert ask_number(a) == 0
    a.writer.record(epoch(0, 0, 0.1))
    a.writer.flush()
    keep_alive(b)
    assignment = b.queue.ask_for(0)
    assert assignment is not None
    assert assignment.had_other_owner
    b.writer.record(epoch(0, 1, 0.2))
    b.writer.flush()
    a.writer.record(epoch(0, 1, 0.99))
    a.writer.complete(0)
    assert a.coordinator.take_lost() == [0]
    assert a.coordinator.take_lost() == []
    record = b.writer.complete(0)
    assert [e.metrics["val/accuracy"] for e in record.history] == [0.1, 0.2]
    assert join("reader").read(0).objective == 0.2
    assert {r.number: r.objective for r in poll_records(a)} == {0: 0.2}


@pytest.mark.parametrize("claim", ["any", "abandoned", "adopt"])
def test_a_trial_that_ends_while_a_peer_claims_one_stays_as_it_ended(
    join: Join, monkeypatch: pytest.MonkeyPatch, claim: str
) -> None:
    """After an outage one transaction writes the end of a trial and frees its lease."""
    a, b = join("a"), join("b")
    assert ask_number(a) == 0
    a.writer.record(epoch(0, 0))
    a.writer.flush()
    if claim != "any":  # so that b may take it
        keep_alive(b)
    read, was = leased_storage(b).refresh, []

    def end_after_it_was_read(study_id: int) -> None:
        read(study_id)
        if not was:
            was.append(b.read(0).state)
            a.writer.complete(0)
            a.coordinator.release([0])
            a.coordinator.keep_alive()

    monkeypatch.setattr(b.storage, "refresh", end_after_it_was_read)
    if claim == "adopt":
        b.coordinator.adopt()
    else:
        assert ask_number(b) == 1
    assert was == ["running"]
    b.writer.flush()
    for who in (b, join("reader")):
        who.coordinator.poll()
        assert who.read(0).state == "complete"


def test_a_paused_trial_can_be_claimed_once_it_is_released(join: Join) -> None:
    a, b = join("a", 30.0), join("b", 30.0)
    assert ask_number(a) == 0
    a.writer.pause(0)
    assert b.queue.ask_for(0) is None
    a.coordinator.release([0])
    a.coordinator.keep_alive()
    assert b.queue.ask_for(0) is not None


def test_an_ended_trial_that_a_dead_owner_has_not_released_is_adopted(join: Join) -> None:
    a, b = join("a"), join("b")
    assert ask_number(a) == 0
    a.writer.record(epoch(0, 0))
    a.writer.complete(0)
    assert b.coordinator.adopt() == []
    keep_alive(b)
    assert b.coordinator.adopt() == [0]
    assert b.coordinator.ownership(0) == "owned"
    assert b.coordinator.had_other_owner(0)


@pytest.mark.parametrize(("released", "fencing_token"), [(False, 2), (True, 3)])
def test_an_abandoned_trial_is_taken_once_and_again_if_it_was_released_before_it_runs(
    join: Join, released: bool, fencing_token: int
) -> None:
    """released: MLflow has the trial before a slot is free."""
    a, b = join("a"), join("b")
    assert ask_number(a) == 0
    keep_alive(b)
    assert b.coordinator.adopt() == [0]
    if released:
        b.coordinator.release([0])
        b.coordinator.keep_alive()
    assert b.queue.ask_for(0) is not None
    with b.storage.backend.engine.connect() as database:
        assert leases.held(database, "b") == {(b.study._study_id, 0): fencing_token}


def test_a_claim_whose_answer_was_lost_is_not_repeated(join: Join) -> None:
    a, again = join("a", 30.0), join("a", 30.0)
    assert ask_number(a) == 0
    assert ask_number(again) == 0  # as if the first call had got no answer
    assert len(again.trials()) == 1


@pytest.mark.long
def test_trials_continue_during_an_outage_and_everything_is_written_after_it(
    tmp_path: Path, planned: Callable[..., Plan], study: Plan, postgres: Postgres, join: Join
) -> None:
    cable = Cable(tmp_path / "cable", postgres)
    a = join("a", 30.0, planned(cable.through(str(study.settings.location.storage_url))))
    b = join("b", 30.0)
    assert ask_number(a) == 0
    cable.cut()
    a.writer.record(epoch(0, 0, 0.7))
    a.writer.flush()
    assert not a.writer.should_prune(0)
    assert a.coordinator.outage is not None
    assert not a.writer.is_written(0)
    with pytest.raises(Unreachable):
        a.queue.ask()
    assert not a.attributes.stop_requested
    a.writer.complete(0)
    cable.reconnect()
    until = time.monotonic() + 10
    while not a.writer.is_written(0) and time.monotonic() < until:
        time.sleep(0.1)
        a.coordinator.keep_alive()
    assert a.coordinator.outage is None
    assert {r.number: (r.state, r.objective) for r in poll_records(b)} == {0: ("complete", 0.7)}
    assert ask_number(a) == 1


@pytest.mark.long
def test_an_outage_in_the_middle_of_a_read_is_no_error(
    tmp_path: Path, planned: Callable[..., Plan], study: Plan, postgres: Postgres, join: Join
) -> None:
    cable, cuts = Cable(tmp_path / "cable", postgres), []
    a = join("a", 30.0, planned(cable.through(str(study.settings.location.storage_url))))
    b = join("b", 30.0)
    assert ask_number(b) == 0
    b.writer.record(epoch(0, 0, 0.7))
    b.writer.flush()

    def cut(_: Connection, cursor: object, statement: str, *__: object) -> None:  # noqa: ARG001
        if "FROM trial_params" in statement and not cuts:
            cuts.append(statement)
            cable.cut()

    sqlalchemy.event.listen(a.storage.backend.engine, "before_cursor_execute", cut)
    assert a.coordinator.poll() == []
    assert cuts
    assert a.coordinator.outage is not None
    cable.reconnect()
    time.sleep(2.5)
    assert [r.objective for r in poll_records(a)] == [0.7]


@pytest.mark.parametrize(
    "at", ["FROM studies", "INSERT INTO study_user_attributes", "INSERT INTO trials", "INSERT INTO overnight_members"]
)
def test_an_outage_while_a_study_is_opened_raises_unreachable_and_the_same_command_opens_it_later(
    tmp_path: Path, planned: Callable[..., Plan], database: Callable[[], str], postgres: Postgres, at: str
) -> None:
    cable, url = Cable(tmp_path / "cable", postgres), database()
    study = planned(cable.through(url))
    with cut_at(at, cable), pytest.raises(Unreachable, match="can't be reached"):
        open_study(study)
    session, _ = open_study(study)
    assert (ask_number(session), ask_number(session)) == (0, 1)
    session.close()


@pytest.mark.parametrize("at", ["FROM studies", "FROM trials", "FROM trial_values", "overnight_members"])
def test_an_outage_while_a_study_is_viewed_raises_unreachable(
    tmp_path: Path,
    planned: Callable[..., Plan],
    study: Plan,
    postgres: Postgres,
    join: Join,
    capfd: pytest.CaptureFixture[str],
    at: str,
) -> None:
    a = join("a", 30.0)
    assert ask_number(a) == 0
    a.writer.record(epoch(0, 0))
    a.writer.complete(0)
    cable = Cable(tmp_path / "cable", postgres)
    location = planned(cable.through(str(study.settings.location.storage_url))).settings.location
    with cut_at(at, cable), pytest.raises(Unreachable, match="can't be reached") as error:
        snapshot.view(location, study.name)
    assert "rolled back" not in str(error.value), "the cause, not its consequences"
    assert capfd.readouterr() == ("", "")
    seen, _ = snapshot.view(location, study.name)
    assert seen is not None
    assert seen.records[0].state == "complete"


def test_attributes_that_were_never_read_are_unreachable_in_an_outage_and_are_read_after_it(
    tmp_path: Path, planned: Callable[..., Plan], study: Plan, postgres: Postgres, join: Join
) -> None:
    cable = Cable(tmp_path / "cable", postgres)
    a = join("a", 30.0, planned(cable.through(str(study.settings.location.storage_url))))
    storage, study_id = leased_storage(a), a.study._study_id
    fresh = leased.LeasedStorage(storage.backend, 30.0, "fresh")
    reads = (fresh.get_study_user_attrs, fresh.get_study_system_attrs, fresh.get_study_directions)
    cable.cut()
    for read in (*reads, fresh.get_study_name_from_id):
        with pytest.raises(Unreachable):
            read(study_id)
    cable.reconnect()
    for read in reads:
        assert read(study_id) or read == fresh.get_study_system_attrs
    assert fresh.get_study_name_from_id(study_id) == study.name


@pytest.mark.long
def test_leases_that_could_not_be_renewed_while_the_database_was_down_are_not_lost(
    postgres: Postgres, join: Join
) -> None:
    a, b = join("a", 2.0), join("b", 2.0)
    assert ask_number(a) == 0
    keep_alive(a, b, seconds=2.2)
    postgres.stop()
    time.sleep(2.2)
    postgres.start()
    assert b.queue.ask_for(0) is None
    assert b.coordinator.outage is None  # it tried to renew them
    a.writer.record(epoch(0, 0))
    a.writer.flush()
    assert a.writer.is_written(0)
    assert a.coordinator.take_lost() == []
    keep_alive(b, seconds=2.3)
    assert b.queue.ask_for(0) is not None


def test_an_abandoned_trial_is_claimed_before_a_new_one(join: Join) -> None:
    a, b = join("a"), join("b")
    assert ask_number(a) == 0
    keep_alive(b)
    assert ask_number(b) == 0
    assert ask_number(b) == 1
    states = [t.state for t in b.trials()]
    assert states == [TrialState.RUNNING, TrialState.RUNNING]


def test_a_lost_trial_that_waits_is_claimed_once_the_loss_is_reported(join: Join) -> None:
    a, b = join("a"), join("b")
    assert ask_number(a) == 0
    keep_alive(b)
    assert b.coordinator.adopt() == [0]
    b.coordinator.release([0])
    b.coordinator.keep_alive()
    assert ask_number(a) == 1
    assert a.coordinator.take_lost() == [0]
    assert a.queue.ask_for(0) is not None
    a.writer.record(epoch(0, 0))


@pytest.mark.long
@pytest.mark.parametrize(
    ("setting", "reason"),
    [("idle_in_transaction_session_timeout = 300", "idle-in-transaction"), ("transaction_read_only = on", "read-only")],
)
def test_a_server_that_closes_an_idle_session_or_is_read_only_is_tried_again(
    planned: Callable[..., Plan], database: Callable[[], str], setting: str, reason: str
) -> None:
    session, _ = open_study(planned(database()))
    storage, study_id = leased_storage(session), session.study._study_id
    assert ask_number(session) == 0  # the baseline
    with each_transaction_with(setting, storage.backend.engine), pytest.raises(Unreachable, match=reason):
        storage.claim(study_id, "new", lambda: time.sleep(1) or False)
    time.sleep(2.5)
    assert storage.claim(study_id, "new", lambda: False) == 1
    session.close()


@contextlib.contextmanager
def cut_at(words: str, cable: Cable) -> Iterator[None]:
    """Cut the cable at the first statement with these words, and reconnect it after the block."""
    came = []

    def cut(_: Connection, cursor: object, statement: str, *__: object) -> None:  # noqa: ARG001
        if words in statement and not came:
            came.append(statement)
            cable.cut()

    sqlalchemy.event.listen(Engine, "before_cursor_execute", cut)
    try:
        yield
    finally:
        sqlalchemy.event.remove(Engine, "before_cursor_execute", cut)
        cable.reconnect()
    assert came, f"no statement has {words}"


@contextlib.contextmanager
def each_transaction_with(setting: str, engine: Engine) -> Iterator[None]:
    """Apply a setting of the server to the transactions that begin in the block."""

    def change(connection: Connection) -> None:
        connection.exec_driver_sql(f"SET LOCAL {setting}")

    sqlalchemy.event.listen(engine, "begin", change)
    try:
        yield
    finally:
        sqlalchemy.event.remove(engine, "begin", change)
