"""One process of a home calls the prepare_data of a class at a time, and a lock never outlives its holder."""

from __future__ import annotations

import pickle
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from overnight import api
from overnight.protocol import Alive, TrialSpec
from overnight.runner import preflight
from overnight.search.build_plan import build_plan
from overnight.trial import prepare_lock
from overnight.trial.dry_run import dry_run_batch
from overnight.trial.fit import fit
from support.trial_links import ListLink
from support.user_trials import USER_PACKAGE, spec_for

# A data module in a process without torch, which starts at once.
_SCRIPT = """
import os, subprocess, sys, time
from pathlib import Path
from overnight.trial import prepare_lock
prepare_lock.ANNOUNCED_AFTER_S = 0.1
folder, name, argument, seconds = Path(sys.argv[1]), sys.argv[2], sys.argv[3], float(sys.argv[4])
class Rows:
    def __init__(self, argument):
        self.argument = argument
    def prepare_data(self):
        (folder / f"{os.getpid()}.inside").touch()
        if argument == "forks" and os.fork() == 0:
            time.sleep(30)
            os._exit(0)
        print(len(list(folder.glob("*.inside"))), flush=True)
        time.sleep(seconds)
        (folder / f"{os.getpid()}.inside").unlink()
Rows.__qualname__ = name
rows = Rows(argument)
prepare_lock.guard(rows, folder / "locks")
rows.prepare_data()
"""


def start(folder: Path, name: str = "Rows", argument: str = "", seconds: float = 0.1) -> subprocess.Popen[str]:
    words = [sys.executable, "-c", _SCRIPT, str(folder), name, argument, str(seconds)]
    return subprocess.Popen(words, stdout=subprocess.PIPE, text=True, start_new_session=True)


def printed(process: subprocess.Popen[str]) -> list[str]:
    return process.communicate(timeout=60)[0].splitlines()


def wait_inside(folder: Path) -> None:
    deadline = time.monotonic() + 60
    while not list(folder.glob("*.inside")):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_processes_prepare_the_data_one_after_another_whatever_the_arguments_are(tmp_path: Path) -> None:
    processes = [start(tmp_path, argument=str(n)) for n in range(4)]
    assert [printed(p)[-1] for p in processes] == ["1"] * 4


def test_another_class_does_not_wait(tmp_path: Path) -> None:
    first = start(tmp_path, seconds=30)
    try:
        wait_inside(tmp_path)
        assert printed(start(tmp_path, "Others")) == ["2"]
    finally:
        first.kill()
        first.communicate()


@pytest.mark.parametrize("argument", ["", "forks"])
def test_a_lock_ends_with_its_holder_even_if_a_process_that_it_started_lives_on(tmp_path: Path, argument: str) -> None:
    import os
    import signal

    first = start(tmp_path, argument=argument, seconds=60)
    try:
        wait_inside(tmp_path)
        second = start(tmp_path)
        time.sleep(0.5)
        assert second.poll() is None, "it waits"
        os.kill(first.pid, signal.SIGKILL)
        assert printed(second)[0] == "waiting for prepare_data of __main__.Rows, which another process runs"
        assert second.returncode == 0
    finally:
        os.killpg(first.pid, signal.SIGKILL)
        first.communicate()


class Nested:
    """Calls its own prepare_data a second time, as a module that wraps another of its class does."""

    calls = 0

    def prepare_data(self) -> None:
        self.calls += 1
        if self.calls == 1:
            self.prepare_data()


def test_a_process_does_not_wait_for_itself(tmp_path: Path) -> None:
    module = Nested()
    prepare_lock.guard(module, tmp_path)
    module.prepare_data()
    assert module.calls == 2


def test_data_is_prepared_without_a_lock_where_none_can_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    module = Nested()
    prepare_lock.guard(module, tmp_path / "file" / "locks")
    module.prepare_data()
    assert module.calls == 2


@pytest.fixture
def spec_that_waits(tmp_path: Path) -> Iterator[tuple[TrialSpec, subprocess.Popen[bytes]]]:
    """A trial, and a process that holds the lock of its prepare_data until its input ends."""
    from user_package import prepared

    name = f"{prepared.__name__}.{prepared.PreparedDigits.__qualname__}"
    lock = tmp_path / "locks" / "data" / f"{name}.lock"  # as in a home
    lock.parent.mkdir(parents=True)
    code = (
        "import fcntl, sys; f = open(sys.argv[1], 'w'); fcntl.lockf(f, fcntl.LOCK_EX); print(flush=True); "
        "sys.stdin.read()"
    )
    spec = spec_for(tmp_path / "trial", f"{USER_PACKAGE}Classifier", name, of_data={"folder": str(tmp_path)}, epochs=1)
    with subprocess.Popen(
        [sys.executable, "-c", code, str(lock)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as held:
        assert held.stdout is not None
        held.stdout.readline()
        yield replace(spec, locks=lock.parent), held
        held.kill()


def config_of_prepared_digits(folder: Path) -> Path:
    """Return a config folder with the options data=mine and model=mine."""
    conf = folder / "conf"
    for group, text in {
        "data": f"_target_: user_package.prepared.PreparedDigits\nfolder: {folder}\nbatch_size: 50\n",
        "model": f"_target_: {USER_PACKAGE}Classifier\n",
    }.items():
        (conf / group).mkdir(parents=True)
        (conf / group / "mine.yaml").write_text(text)
    return conf


@pytest.fixture
def alive_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prepare_lock, "ALIVE_EVERY_S", 0.0)


@pytest.mark.usefixtures("alive_at_once")
def test_a_trial_that_waits_reports_that_it_is_alive(
    spec_that_waits: tuple[TrialSpec, subprocess.Popen[bytes]],
) -> None:
    spec, held = spec_that_waits

    class Link(ListLink):
        def send(self, message: Any) -> None:
            super().send(message)
            held.communicate()  # ends it

    link = Link()
    assert fit(spec, link).outcome == "complete"
    assert isinstance(link.messages[0], Alive)


@pytest.mark.usefixtures("alive_at_once")
def test_a_trial_that_waits_stops_when_it_is_told_to(
    spec_that_waits: tuple[TrialSpec, subprocess.Popen[bytes]],
) -> None:
    spec, _ = spec_that_waits
    assert fit(spec, ListLink(stop_in_epoch=0)).outcome == "saved"


@pytest.mark.usefixtures("alive_at_once")
def test_a_dry_run_that_waits_reports_that_it_is_alive(
    spec_that_waits: tuple[TrialSpec, subprocess.Popen[bytes]],
) -> None:
    spec, held = spec_that_waits
    alive: list[int] = []

    def show_life(_: str) -> None:
        alive.append(1)
        held.communicate()

    assert dry_run_batch(replace(spec, keep_weights=False), [], show_life).problems == ()
    assert alive


def test_the_check_before_a_study_says_for_what_it_waits(
    tmp_path: Path, spec_that_waits: tuple[TrialSpec, subprocess.Popen[bytes]]
) -> None:
    line = (f"home={tmp_path}", "data=mine", "model=mine", "search=none")
    plan = build_plan(line, config_of_prepared_digits(tmp_path))
    what = "prepare_data of user_package.prepared.PreparedDigits, which another process runs"
    _, held = spec_that_waits
    # The check waits until the lock is free: a fault has to fail, not to hang.
    released = threading.Timer(200.0, held.kill)
    released.start()
    messages: list[str] = []

    def say(text: str) -> None:
        messages.append(text)
        if text == f"waiting for {what} ...":
            held.communicate()

    try:
        preflight.find_mistakes(plan, say)
    finally:
        released.cancel()
    assert f"waiting for {what} ..." in messages  # a slow machine says more


def test_a_data_module_with_a_lock_can_be_sent_to_another_process(tmp_path: Path) -> None:
    from user_package.prepared import PreparedDigits

    data = PreparedDigits(str(tmp_path))
    prepare_lock.guard(data, tmp_path / "locks", lambda _: None)
    copy = pickle.loads(pickle.dumps(data.val_dataloader))
    assert copy.__self__.prepare_data.__func__ is PreparedDigits.prepare_data


@pytest.mark.long
def test_trials_side_by_side_find_a_whole_file(tune: Callable[..., api.Result], tmp_path: Path) -> None:
    line = ["data=mine", "model=mine", "search=none", "data.batch_size=16,32,50", "slots=3", "study.trials=3"]
    result = tune(
        *line, "trainer.max_epochs=1", "study.confirm.seeds=0", config_dir=config_of_prepared_digits(tmp_path)
    )
    assert [r.state for r in result.records] == ["complete"] * 3
