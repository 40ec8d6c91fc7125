"""What is reported where the helper process of a sampler or a terminator does not start, or dies."""

from __future__ import annotations

import multiprocessing
import os
import re
import signal
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest

from overnight.search import custom_sampler
from overnight.search.build_plan import build_plan
from overnight.search.gp import GpHelper, Question
from overnight.search.terminator import Terminator
from support.planted_study import planned, search_records


def refuse(*_: Any) -> BaseProcess:
    raise BlockingIOError(11, "Resource temporarily unavailable")


def end_at_once(*_: Any) -> BaseProcess:
    process = multiprocessing.get_context("fork").Process(target=_die)
    process.start()
    return process


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


FAILURES = pytest.mark.parametrize(
    ("fork", "cause"),
    [
        pytest.param(refuse, r"could not be started: \[Errno 11\] Resource temporarily unavailable", id="refused"),
        pytest.param(end_at_once, "ended by signal 9", id="died"),
    ],
)


@FAILURES
def test_gp_says_why_its_process_fails(fork: Callable[..., BaseProcess], cause: str) -> None:
    helper = GpHelper(fork)
    with pytest.raises(RuntimeError, match=f"^sampler: the process of gp {cause} .* sampler=tpe$"):
        helper.ask(Question(0, "maximize", 2, {}, (), ()))


@FAILURES
def test_a_sampler_by_target_says_why_its_process_fails(
    fork: Callable[..., BaseProcess], cause: str, tmp_path: Path
) -> None:
    plan = build_plan([f"home={tmp_path}", "sampler._target_=optuna.samplers.RandomSampler"])
    with pytest.raises(RuntimeError, match=f"^sampler: the process of .*RandomSampler {cause} .* sampler=tpe$"):
        custom_sampler.CustomSampler(fork).ask(custom_sampler.make_question(plan, "s", [], 0, {}))
    (problem,) = custom_sampler.find_problems(plan, fork)
    assert re.search(f"got a process that {cause}; take sampler=tpe$", problem)


@FAILURES
def test_a_terminator_says_why_its_process_fails(fork: Callable[..., BaseProcess], cause: str) -> None:
    plan = planned("terminator=regret_bound", "scheduler=median")
    terminator = Terminator(plan, fork)
    assert terminator.stop_reason(search_records(plan)) is None
    assert re.search(f"no longer used: its process {cause}$", terminator.error or "")
