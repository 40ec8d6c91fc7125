"""Runs of their own target, `make deadline`; CI makes one short one."""

from __future__ import annotations

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--runs", type=int, default=1, help="how many studies are tuned, one after another")
    parser.addoption("--first", type=int, default=0, help="the first one's seed")
    parser.addoption("--seconds", type=int, default=60, help="how far ahead their study.until is")
