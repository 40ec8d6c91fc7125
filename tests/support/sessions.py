"""Sessions of a study without processes, whose trials are played."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from overnight.protocol import Progress
from overnight.search.build_plan import build_plan
from overnight.search.plan import Plan
from overnight.study.open import open_study
from overnight.study.session import StudySession
from overnight.system import forkserver


def planned(home: Path, *overrides: str) -> Plan:
    trials = [] if any(o.startswith("study.trials=") for o in overrides) else ["study.trials=14"]
    return build_plan([f"home={home}", *trials, *overrides])


@contextmanager
def opened(study: Plan, **options: bool) -> Iterator[StudySession]:
    session, _ = open_study(study, **options)
    session.queue.use_helper_process(forkserver.fork)
    try:
        yield session
    finally:
        session.close()


def epoch(number: int, e: int, value: float, **more: float) -> Progress:
    return Progress(number, e, {"val/accuracy": value, **more}, 1000.0 + e, 0.1)


def play(session: StudySession, trials: int) -> list[tuple[int, dict[str, Any]]]:
    """Complete trials whose score depends on their parameters alone."""
    played = []
    for _ in range(trials):
        assignment = session.queue.ask()
        if assignment is None:
            break
        score = (assignment.config["optimizer"]["lr"] * 1000 + len(assignment.config["model"]["hidden_sizes"])) % 1
        for e in range(3):
            session.writer.record(epoch(assignment.number, e, score + e / 10))
            session.writer.should_prune(assignment.number)
        session.writer.complete(assignment.number)
        played.append((assignment.number, assignment.values))
    return played
