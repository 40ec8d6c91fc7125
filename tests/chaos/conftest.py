"""Options and fixtures of `make chaos` and `make deadline`. CI runs short forms of these tests."""

from __future__ import annotations

import random
import time
from collections.abc import Callable

import pytest

Report = Callable[[str], None]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--kills", type=int, default=6, help="number of kills or other disturbances of a study")
    parser.addoption("--runs", type=int, default=1, help="number of studies with a deadline, one after the other")
    parser.addoption("--first", type=int, default=0, help="the seed of the first study")
    parser.addoption("--seconds", type=int, default=60, help="seconds from the start of a study to its study.until")
    parser.addoption(
        "--kill-seed", type=int, default=None, help="repeat the random times of a run, which prints this seed"
    )


@pytest.fixture
def report(capsys: pytest.CaptureFixture[str]) -> Report:
    """Print immediately, without pytest's capture, because these tests take minutes."""
    began = time.monotonic()

    def report(message: str) -> None:
        with capsys.disabled():
            print(f"  {time.monotonic() - began:5.0f} s  {message}", flush=True)

    report("")
    return report


@pytest.fixture
def rng(request: pytest.FixtureRequest, report: Report) -> random.Random:
    """Return the generator of the random times. Its seed is printed."""
    seed = request.config.getoption("--kill-seed")
    seed = seed if seed is not None else random.SystemRandom().randrange(2**32)
    report(f"random times from --kill-seed={seed}")
    return random.Random(seed)
