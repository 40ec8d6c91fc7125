"""Several sessions of one study in a PostgreSQL, all in this process: fixtures and helpers."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from overnight.protocol import Progress
from overnight.search.build_plan import build_plan
from overnight.search.plan import CONFIRM_SUFFIX, Plan
from overnight.search.record import TrialRecord
from overnight.study.open import open_study
from overnight.study.session import StudySession
from overnight.study.storage.leased import LeasedStorage

# Of the sessions in these tests. Long enough for a busy machine to renew it, short enough to wait for its end.
LEASE_S = 0.8
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
    """Join the study with one more session. Its leases last LEASE_S by default."""
    with ExitStack() as open_:

        def join(owner: str, lease_s: float = LEASE_S, of: Plan = study) -> StudySession:
            session, _ = open_study(of)
            if not of.name.endswith(CONFIRM_SUFFIX):  # its search has the same owner
                session.coordinator.leave()
            storage = leased_storage(session)
            storage.owner, storage.lease_s = owner, lease_s
            storage.join(session.study._study_id)
            open_.callback(session.close)
            return session

        yield join


def epoch(number: int, e: int, value: float = 0.5) -> Progress:
    return Progress(number, e, {"val/accuracy": value}, 1000.0 + e, 0.1)


def keep_alive(*sessions: StudySession, seconds: float = 1.6 * LEASE_S) -> None:
    """Wait while these sessions, and no others, renew their leases.

    The wait starts again if a busy machine delayed a renewal so long that the sessions could not adopt trials.
    """
    began = renewed = time.monotonic()
    give_up = began + 30
    while (now := time.monotonic()) < min(began + seconds, give_up):
        if now - renewed > 0.4 * LEASE_S:
            began = now
        renewed = now
        for session in sessions:
            session.coordinator.keep_alive()
        time.sleep(0.02)


def leased_storage(session: StudySession) -> LeasedStorage:
    assert isinstance(session.storage, LeasedStorage)
    return session.storage


def poll_records(session: StudySession) -> list[TrialRecord]:
    return [session.read(n) for n in session.coordinator.poll()]


def ask_number(session: StudySession) -> int | None:
    assignment = session.queue.ask()
    return assignment.number if assignment is not None else None


def release_and_leave(session: StudySession, *numbers: int) -> None:
    """Leave the study, as a process does whose runs in MLflow are synchronised."""
    session.coordinator.release(numbers)
    session.writer.flush()
    session.coordinator.keep_alive()
    session.coordinator.leave()
