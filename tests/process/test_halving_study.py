"""Studies whose trials are paused and resumed: interrupted, continued with more budget, and changed."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from overnight.protocol import Progress
from overnight.search.build_plan import build_plan
from overnight.search.plan import Plan
from overnight.search.record import TrialRecord
from overnight.study.open import open_study
from overnight.study.queue import TrialAssignment
from overnight.study.session import StudySession
from overnight.study.storage.database import dispose

EPOCHS = 8


def planned(home: Path, *overrides: str) -> Plan:
    line = ["scheduler=halving", "scheduler.min_epochs=1", f"trainer.max_epochs={EPOCHS}", "study.budget=6"]
    return build_plan([f"home={home}", "sampler=random", *line, *overrides])


@contextmanager
def opened(plan: Plan, **options: Any) -> Iterator[StudySession]:
    session, _ = open_study(plan, **options)
    try:
        yield session
    finally:
        session.close()


def curve(number: int, epoch: int) -> float:
    return round(random.Random(number).random() * (1 - 0.5 ** (epoch + 1)), 2)  # equal values occur


class Killed(Exception):
    """The process was killed."""


class OneSlot:
    """A supervisor with one slot that is killed now and then. Trials save a state after each epoch.

    Args:
        risk: The probability of a kill at each step.
    """

    def __init__(self, plan: Plan, risk: float = 0.0, seed: int = 0) -> None:
        self.plan, self.risk, self.rng = plan, risk, random.Random(seed)
        self.saved: dict[int, int] = {}  # number of a trial -> epochs that its saved state has
        self.kills = 0

    def run(self) -> list[TrialRecord]:
        while True:
            session, _ = open_study(self.plan)
            try:
                self._work(session)
            except Killed:
                self.kills += 1
                dispose(session.storage)
                session.unlock()
                continue
            session.close()
            with opened(self.plan) as session:
                return session.records()

    def _step(self, session: StudySession) -> None:
        if self.rng.random() < self.risk:
            session.storage.write = lambda: None  # type: ignore[method-assign]  # what is unwritten is lost
            raise Killed

    def _work(self, session: StudySession) -> None:
        assert session.schedule is not None
        assignment = session.queue.ask_scheduled(session.schedule)
        while assignment is not None:
            self._step(session)
            is_complete = self._train(session, assignment)
            with session.writer.batch():  # as the supervisor: the next one is chosen before the end is written
                (session.writer.complete if is_complete else session.writer.pause)(assignment.number)
                self._step(session)
                assignment = session.queue.ask_scheduled(session.schedule)
                self._step(session)
        session.schedule.settle()

    def _train(self, session: StudySession, assignment: TrialAssignment) -> bool:
        number, until = assignment.number, assignment.until
        assert session.schedule is not None
        assert until is not None
        for epoch in range(EPOCHS):
            is_saved = epoch < self.saved.get(number, 0)
            session.writer.record(Progress(number, epoch, {"val/accuracy": curve(number, epoch)}, 0.0, 0.1))
            self.saved[number] = max(self.saved.get(number, 0), epoch + 1)
            if is_saved and epoch + 1 < self.saved[number]:
                continue  # the trial reports all that its state has before anything is decided
            self._step(session)
            if self.rng.random() < 0.3:
                session.writer.flush()
                self._step(session)
            if epoch + 1 < EPOCHS and epoch + 1 >= until:
                if not session.schedule.go_on(number):
                    return False
                until = session.schedule.until(number)
        return True


def facts_of(records: list[TrialRecord]) -> list[tuple[Any, ...]]:
    return [(r.number, r.state, r.until, r.params, [e.metrics for e in r.history]) for r in records]


@pytest.mark.parametrize("sampler", ["random", "tpe"])
@pytest.mark.parametrize("seed", range(4))
def test_a_study_that_is_killed_at_random_steps_promotes_as_if_it_had_not_been(
    tmp_path: Path, sampler: str, seed: int
) -> None:
    line = (f"sampler={sampler}", f"seed={seed}", "study.direction=maximize")
    undisturbed = OneSlot(planned(tmp_path / "undisturbed", *line)).run()
    assert {r.state for r in undisturbed} == {"complete", "pruned"}
    killed = OneSlot(planned(tmp_path / "killed", *line), risk=0.1, seed=seed)
    assert facts_of(killed.run()) == facts_of(undisturbed)
    assert killed.kills > 5
