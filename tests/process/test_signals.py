"""What Ctrl-C, SIGTERM and a closed terminal do at each point of a command."""

from __future__ import annotations

import os
import signal
import threading
import time
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from overnight import api
from overnight.cli.main import cli
from overnight.report.live import NullScreen
from overnight.search.build_plan import build_plan
from overnight.study.open import open_study
from overnight.study.session import StudySession
from overnight.study.storage.exclusive import postponed_signals
from overnight.system.signals import Signals


class Referent:
    """The target of a weak reference."""


def signal_where_exceptions_are_dropped(number: int) -> None:
    referent = Referent()
    callback = weakref.ref(referent, lambda _: os.kill(os.getpid(), number))
    del referent
    assert callback() is None


@pytest.fixture
def stopped() -> list[str]:
    return []


@pytest.fixture(autouse=True)
def handlers_are_restored() -> Iterator[None]:
    before = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
    yield
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)] == before


def test_each_signal_calls_stop(stopped: list[str]) -> None:
    with Signals() as signals, signals.working(lambda: stopped.append("stop")):
        assert stopped == []
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGINT)
        assert stopped == ["stop", "stop"]
    assert signals.received == [signal.SIGTERM, signal.SIGINT]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_signal_before_any_work_exits_with_its_code(number: int, code: int) -> None:
    with pytest.raises(SystemExit) as exited, Signals():
        os.kill(os.getpid(), number)
    assert exited.value.code == code


def test_ctrl_c_without_work_raises_keyboard_interrupt() -> None:
    with Signals() as signals:
        with signals.working(lambda: None):
            pass
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_an_ignored_signal_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with Signals() as signals:
            os.kill(os.getpid(), signal.SIGHUP)
        assert signals.received == []
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_signal_is_handled_again_after_a_library_has_taken_its_handler(stopped: list[str]) -> None:
    with Signals() as signals, signals.working(lambda: stopped.append("stop")):
        signal.signal(signal.SIGTERM, lambda *_: None)
        signals.install()
        os.kill(os.getpid(), signal.SIGTERM)
    assert (stopped, signals.received) == (["stop"], [signal.SIGTERM])


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_signal_whose_exception_is_dropped_stops_later_work(stopped: list[str]) -> None:
    with Signals() as signals:
        signal_where_exceptions_are_dropped(signal.SIGINT)
        with signals.working(lambda: stopped.append("stop")):
            assert stopped == ["stop"]
        with pytest.raises(KeyboardInterrupt):
            signals.check()


@pytest.mark.long
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_study_that_is_stopped_while_it_opens_starts_no_trial(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def open_and_signal(*args: Any, **options: Any) -> tuple[StudySession, list[str]]:
        opened = open_study(*args, **options)
        signal_where_exceptions_are_dropped(signal.SIGINT)
        return opened

    monkeypatch.setattr(api, "open_study", open_and_signal)
    study = build_plan([f"home={home}", "study.trials=2", "preflight=never"])
    with Signals() as signals:
        result = api.run(study, screen=NullScreen(), signals=signals)
    assert (result.stop_reason, result.signal) == ("stopped", signal.SIGINT)
    assert not [r.number for r in result.records if r.history]


@pytest.mark.long
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("option", ["--dry-run", "--detach"])
def test_a_signal_also_ends_a_dry_run_and_a_detached_launch(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, option: str
) -> None:
    def build_and_signal(*args: Any, **options: Any) -> Any:
        plan = build_plan(*args, **options)
        signal_where_exceptions_are_dropped(signal.SIGINT)
        return plan

    monkeypatch.setattr("overnight.runner.launch.build_plan", build_and_signal)
    done = CliRunner().invoke(cli, ["tune", option, f"home={tmp_path / 'home'}"])
    assert done.exit_code != 0
    assert done.output.strip() == "Aborted!"


def test_a_signal_is_postponed_to_the_end_of_a_write_in_any_thread() -> None:
    ended, steps = threading.Event(), []
    other = threading.Thread(target=ended.wait)
    other.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            write(steps)
    finally:
        ended.set()
        other.join()
    assert steps == ["written"]


def write(steps: list[str]) -> None:
    with postponed_signals():
        os.kill(os.getpid(), signal.SIGINT)
        for _ in range(1000):
            time.sleep(0)
        steps.append("written")
    steps.append("not interrupted")
