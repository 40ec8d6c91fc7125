"""Several processes pause and resume the trials of one study, each under the lock of the database."""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy
from sqlalchemy.exc import OperationalError

from overnight.protocol import Progress
from overnight.runner.checkpoint_cleanup import CheckpointCleanup
from overnight.search.plan import Plan
from overnight.search.record import TrialRecord
from overnight.search.schedulers.halving import ETA, Halving
from overnight.search.schedulers.interface import Resume, Start, Trial
from overnight.study.session import StudySession
from overnight.study.storage.outage import Unreachable
from overnight.tracking import store
from support.groups import Group
from support.paths import python_path
from support.shared_sessions import Join, leased_storage

EPOCHS = 8
Decided = tuple[list[Trial], float, Start | Resume | None]


def curve(number: int, epoch: int) -> float:
    return round(random.Random(number).random() * (1 - 0.5 ** (epoch + 1)), 6)


@pytest.fixture
def decided(monkeypatch: pytest.MonkeyPatch) -> list[Decided]:
    """What the schedulers of all sessions answered, in order, with the trials that they saw."""
    found: list[Decided] = []
    ask = Halving.next

    def asked(self: Halving, trials: list[Trial], left: float, *slot_left: float) -> Start | Resume | None:
        answer = ask(self, trials, left, *slot_left)
        found.append((list(trials), left, answer))
        return answer

    monkeypatch.setattr(Halving, "next", asked)
    return found


@pytest.fixture
def halving(planned: Callable[..., Plan], database: Callable[[], str]) -> Callable[..., Plan]:
    def halving(*overrides: str) -> Plan:
        fixed = ("study.trials=null", "scheduler=halving", "scheduler.min_epochs=1", f"trainer.max_epochs={EPOCHS}")
        return planned(database(), *fixed, *overrides)

    return halving


class Worker(threading.Thread):
    """Trains in no time what its session assigns, and notes which trials train in all threads.

    Args:
        releases: how often it releases its trials once one has ended. It does so in any case once it is idle.
    """

    def __init__(self, session: StudySession, training: set[int], rng: random.Random, releases: float) -> None:
        super().__init__()
        self.session, self.training, self.rng, self.releases = session, training, rng, releases
        self.error: BaseException | None = None
        self.unreleased: list[int] = []
        self.trained: list[tuple[int, int]] = []
        self.sent: list[tuple[int, int]] = []  # number of a trial, and the epochs to which it was sent
        self.idle = 0

    def run(self) -> None:
        try:
            while self._work():
                pass
        except BaseException as error:
            self.error = error
            raise

    def _work(self) -> bool:
        session = self.session
        assert session.schedule is not None
        try:
            assignment = session.queue.ask_scheduled(session.schedule)
        except Unreachable:
            return True
        if assignment is None:
            self.idle += not session.schedule._is_ending(session.schedule._read())
            self._release()
            session.coordinator.adopt()
            session.coordinator.poll()
            time.sleep(0.005)
            return any(not r.done and not r.waits_at_rung for r in session.records()) or bool(self.training)
        assert assignment.until is not None
        assert assignment.number not in self.training, "two processes train the same trial"
        self.training.add(assignment.number)
        self.sent.append((assignment.number, assignment.until))
        self._train(assignment.number, assignment.until)
        if self.rng.random() < self.releases:
            self._release()
        return True

    def _train(self, number: int, until: int) -> None:
        session = self.session
        for epoch in range(len(session.read(number).history), EPOCHS):
            self.trained.append((number, epoch))
            time.sleep(self.rng.random() * 0.004)
            session.writer.record(Progress(number, epoch, {"val/accuracy": curve(number, epoch)}, time.time(), 0.1))
            if epoch + 1 == EPOCHS:
                self.training.remove(number)
                session.writer.complete(number)
            elif epoch + 1 >= until:
                if not session.schedule.go_on(number):
                    self.training.remove(number)
                    session.writer.pause(number)
                    break
                until = session.schedule.until(number)
                self.sent.append((number, until))
        self.unreleased.append(number)

    def _release(self) -> None:
        """As a process whose runs in MLflow are synchronised."""
        self.session.coordinator.release(self.unreleased)
        self.session.coordinator.keep_alive()
        self.unreleased = []


def work(sessions: list[StudySession], releases: float = 0.5) -> list[Worker]:
    training: set[int] = set()
    workers = [Worker(s, training, random.Random(i), releases) for i, s in enumerate(sessions)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    for worker in workers:
        if worker.error is not None:
            raise worker.error
    return workers


def assert_quotas_kept(decided: list[Decided]) -> None:
    """Assert that at most half of the trials at a rung are sent beyond it, outside of the ending."""
    for trials, left, answer in decided:
        if isinstance(answer, Resume):
            rung = trials[answer.number].until
            assert answer.until - trials[answer.number].epochs <= left
            reached = [t for t in trials if t.epochs >= rung]
            is_kept = sum(t.until > rung for t in reached) + 1 <= len(reached) // ETA
            assert is_kept or Halving(EPOCHS).is_ending(trials, left)


def assert_trained_once(workers: list[Worker], records: list[TrialRecord], budget: int) -> None:
    """Assert that budget and values are right, and that no epoch was trained twice."""
    trained = [pair for worker in workers for pair in worker.trained]
    assert len(trained) == len(set(trained)), "an epoch was trained twice"
    assert (budget - 1) * EPOCHS <= sum(len(r.history) for r in records) == len(trained) <= budget * EPOCHS
    sent = [pair for worker in workers for pair in worker.sent]
    assert len(sent) == len(set(sent)), "a trial was promoted twice"
    assert {r.state for r in records} == {"complete", "paused"}
    for r in records:
        assert [e.metrics["val/accuracy"] for e in r.history] == [curve(r.number, e.index) for e in r.history]


@pytest.mark.parametrize("releases", [0.5, 0.0], ids=["MLflow is there", "MLflow is away"])
def test_processes_that_share_a_study_keep_budget_and_quotas(
    join: Join, halving: Callable[..., Plan], decided: list[Decided], releases: float
) -> None:
    """A trial that another process has not released does not keep a slot free."""
    plan = halving("study.budget=12")
    workers = work([join(f"owner-{i}", 30.0, plan) for i in range(4)], releases)
    assert_quotas_kept(decided)
    assert not any(worker.idle for worker in workers), "a slot was free before the ending"
    assert_trained_once(workers, join("reader", of=plan).records(), 12)


def test_a_database_that_fails_before_and_after_commits_changes_no_promotion(
    join: Join, halving: Callable[..., Plan], decided: list[Decided]
) -> None:
    plan, rng = halving("study.budget=12"), random.Random(0)
    sessions = [join(f"owner-{i}", 30.0, plan) for i in range(3)]
    failed = []

    def fail(connection: Any) -> None:
        if (chance := rng.random()) < 0.1:
            if chance < 0.05:
                connection.connection.commit()
            failed.append(chance)
            raise OperationalError("COMMIT", {}, Exception("the server is down"))

    for session in sessions:
        storage = leased_storage(session)
        storage._guard._retry_after_s = 0.0
        sqlalchemy.event.listen(storage.backend.engine, "commit", fail)
    workers = work(sessions)
    for session in sessions:
        sqlalchemy.event.remove(leased_storage(session).backend.engine, "commit", fail)
        session.coordinator.keep_alive()
    assert len(failed) > 10
    assert_quotas_kept(decided)
    assert_trained_once(workers, join("reader", of=plan).records(), 12)


def test_the_state_of_a_paused_trial_that_a_peer_has_resumed_is_not_deleted(
    join: Join, halving: Callable[..., Plan]
) -> None:
    """There is room for no state, and this process does not know yet what the peer does."""
    plan = halving("study.budget=12", "scheduler.keep_gib=0")
    a, b = join("a", 30.0, plan), join("b", 30.0, plan)
    assert a.schedule is not None
    assert b.schedule is not None
    for number, value in enumerate((0.9, 0.1)):
        assert a.queue.ask_scheduled(a.schedule) is not None
        a.writer.record(Progress(number, 0, {"val/accuracy": value}, time.time(), 0.1))
        assert not a.schedule.go_on(number)
        a.writer.pause(number)
        plan.paths.checkpoint(number).mkdir(parents=True)
        (plan.paths.checkpoint(number) / "state.ckpt").write_bytes(b"state")
    a.coordinator.release([0, 1])
    a.coordinator.keep_alive()
    resumed = b.queue.ask_scheduled(b.schedule)
    assert resumed is not None
    assert resumed.number == 0
    assert [r.number for r in a.records() if r.waits_at_rung] == [0, 1], "it has not polled since"

    CheckpointCleanup(plan).limit_paused(a.records(), a.queue)
    assert plan.paths.checkpoint(0).exists()
    assert not plan.paths.checkpoint(1).exists()
    a.coordinator.keep_alive()
    assert b.queue.ask_for(1) is not None, "it is free again"


# With real processes


@pytest.mark.service
@pytest.mark.timeout(900)
@pytest.mark.parametrize("killed", [False, True], ids=["undisturbed", "one is killed"])
def test_three_supervisors_halve_one_study(group: Callable[..., Group], tmp_path: Path, killed: bool) -> None:
    """They share a home, so that each may go on with what another one has paused."""
    ours = group(lease_s=5.0)
    home, marker = tmp_path / "home", tmp_path / "marker"
    ours.environment["PYTHONPATH"] = python_path()
    line = [
        "tune", "study.name=halved", "preflight=never", "pictures.when=never", "study.confirm.seeds=0",
        "sampler=random", "scheduler=halving", "scheduler.min_epochs=1", f"trainer.max_epochs={EPOCHS}",
        "study.budget=6", "checkpoint.every_s=0", "~model.hidden_sizes", "~model.activation", "~model.dropout",
        "~model.batch_norm", "search=none", "model._target_=user_networks.Counted",
        "+model.lr=tag(log,interval(1e-4,1e-1))", f"+model.marker={marker}",
    ]  # fmt: skip
    for _ in range(3):
        ours.work(*line, home=home)
    if killed:
        until = time.monotonic() + 120
        while not marker.exists() or len(marker.read_text().splitlines()) < 12:
            assert time.monotonic() < until
            time.sleep(0.05)
        ours.processes[1].kill()
    outputs = ours.outputs()
    assert [p.returncode for p in ours.processes] == [0, -9 if killed else 0, 0], outputs
    seen = ours.study("halved")
    assert seen.state == "complete"
    assert {r.state for r in seen.records} == {"complete", "pruned"}
    assert 5 * EPOCHS <= sum(len(r.history) for r in seen.records) <= 6 * EPOCHS
    for r in seen.records:
        assert [e.index for e in r.history] == list(range(len(r.history)))
        assert r.until == len(r.history)
    trained = Counter(tuple(row.split()[:2]) for row in marker.read_text().splitlines())
    assert sum(trained.values()) - len(trained) <= killed, "only the epoch that was killed is trained again"
    states = ours.rows("SELECT DISTINCT state::text FROM trials")
    assert sorted(states) == [("COMPLETE",), ("PRUNED",)], "no other client of Optuna sees a trial that waits"
    assert ours.rows("SELECT count(*) FROM overnight_leases WHERE owner IS NOT NULL") == [(0,)]
    client = store.open_client(seen.plan.settings.location)
    # The server has the runs of the other test as well.
    found = client.search_runs([str(seen.experiment_id)], f"tags.`overnight.uid` = '{seen.uid}'", max_results=1000)
    runs = [r for r in found if "overnight.trial" in r.data.tags]
    assert sorted(int(r.data.tags["overnight.trial"]) for r in runs) == [r.number for r in seen.records]
    assert {r.info.status for r in runs} == {"FINISHED"}
    for run in runs:
        record = seen.records[int(run.data.tags["overnight.trial"])]
        steps = [m.step for m in client.get_metric_history(run.info.run_id, "val/accuracy")]
        assert sorted(steps) == list(range(len(record.history)))
        assert run.data.tags["overnight.state"] == record.state
