"""Long tests of their own target, `make chaos`; CI runs the short form of them."""

from __future__ import annotations

import random
import time
from collections.abc import Callable

import pytest

Say = Callable[[str], None]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--kills", type=int, default=6, help="how many SIGKILLs a study has to bear")
    parser.addoption(
        "--runs", type=int, default=1, help="how many studies with a deadline are tuned, one after another"
    )
    parser.addoption("--first", type=int, default=0, help="the seed of the first one")
    parser.addoption("--seconds", type=int, default=60, help="how far ahead their study.until is")
    parser.addoption("--kill-seed", type=int, default=None, help="draws the moments again that a run printed")


@pytest.fixture
def say(capsys: pytest.CaptureFixture[str]) -> Say:
    """Print at once, whatever pytest captures: these tests take minutes."""
    began = time.monotonic()

    def say(words: str) -> None:
        with capsys.disabled():
            print(f"  {time.monotonic() - began:5.0f} s  {words}", flush=True)

    say("")
    return say


@pytest.fixture
def rng(request: pytest.FixtureRequest, say: Say) -> random.Random:
    """Draws the moments of kills; its seed is printed."""
    seed = request.config.getoption("--kill-seed")
    seed = seed if seed is not None else random.SystemRandom().randrange(2**32)
    say(f"the moments are drawn with --kill-seed={seed}")
    return random.Random(seed)
