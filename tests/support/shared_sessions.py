"""Supervisors at one study in a PostgreSQL, each a ledger in this process: fixtures, and what to do with them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from overnight.protocol import EpochEnd
from overnight.search.build_plan import build_plan
from overnight.search.plan import CONFIRM_SUFFIX, Plan
from overnight.search.record import TrialRecord
from overnight.study.open import open_study
from overnight.study.session import StudySession
from overnight.study.storage.leased import LeasedStorage

Join = Callable[..., StudySession]


@pytest.fixture
def planned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Plan]:
    def planned(url: str, *overrides: str) -> Plan:
        monkeypatch.setenv("OVERNIGHT_STORAGE_URL", url)
        return build_plan([f"home={tmp_path}", "storage=postgres", "sampler=random", "study.trials=3", *overrides])

    return planned


@pytest.fixture
def study(planned: Callable[..., Plan], database: Callable[[], str]) -> Plan:
    return planned(database())


@pytest.fixture
def join(study: Plan) -> Iterator[Join]:
    """Be one more supervisor at the study, in this process; its leases last half a second unless told otherwise."""
    with ExitStack() as open_:

        def join(owner: str, lease_s: float = 0.5, of: Plan = study) -> StudySession:
            session, _ = open_study(of)
            if not of.name.endswith(CONFIRM_SUFFIX):  # whose search is this process's as well
                session.coordinator.leave()
            storage = leased_storage(session)
            storage.owner, storage.lease_s = owner, lease_s
            storage.join(session.study._study_id)
            open_.callback(session.close)
            return session

        yield join


def epoch(number: int, e: int, value: float = 0.5) -> EpochEnd:
    return EpochEnd(number, e, {"val/accuracy": value}, 1000.0 + e, 0.1)


def stay(*ledgers: StudySession, seconds: float = 0.8) -> None:
    """Let time go by with these supervisors at work, and no other. Where a busy machine kept them from their word so
    long that nobody could take anything over, it goes by once more."""
    began = heard = time.monotonic()
    give_up = began + 30
    while (now := time.monotonic()) < min(began + seconds, give_up):
        if now - heard > 0.2:  # of leases of half a second
            began = now
        heard = now
        for session in ledgers:
            session.coordinator.keep_alive()
        time.sleep(0.02)


def leased_storage(session: StudySession) -> LeasedStorage:
    assert isinstance(session.storage, LeasedStorage)
    return session.storage


def polled(session: StudySession) -> list[TrialRecord]:
    return [session.read(n) for n in session.coordinator.poll()]


def asked(session: StudySession) -> int | None:
    assignment = session.queue.ask()
    return assignment.number if assignment is not None else None


def leave(session: StudySession, *told: int) -> None:
    """Go, once MLflow knows of these trials."""
    session.coordinator.release(told)
    session.writer.flush()
    session.coordinator.keep_alive()
    session.coordinator.leave()
