"""Trial processes and supervisors are killed at random times. The study ends like an undisturbed one."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import subprocess
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import psutil
import pytest

from overnight import api
from overnight.cli import doctor
from overnight.config.compose import study_location
from overnight.search.record import TrialRecord
from overnight.study.snapshot import view
from support.commands import LATE, start
from support.mlflow_store import assert_equal, runs_of

pytestmark = pytest.mark.chaos
EVERY_S, EPOCHS = 0.3, 8


@dataclass(frozen=True)
class Kill:
    """One kill.

    Attributes:
        after: The number of finished epochs of the study before it.
        delay_s: Seconds from there to the kill.
        target: "trial", "supervisor", or "starting", which is a supervisor during its imports.
    """

    after: int
    delay_s: float
    target: str


def draw_kills(rng: random.Random, kills: int, epochs: int) -> list[Kill]:
    moments = sorted(rng.randrange(epochs - EPOCHS) for _ in range(kills))
    targets = rng.choices(("trial", "supervisor", "starting"), weights=(7, 2, 1), k=kills)
    return [
        Kill(after, rng.uniform(0, 8 if target == "starting" else 0.2), target)
        for after, target in zip(moments, targets, strict=True)
    ]


def lines_of(log: Path) -> list[tuple[str, int, float]]:
    """Return trial, epoch and seconds of every epoch trained to its end. A kill may cut off the last line."""
    text = log.read_text() if log.exists() else ""
    rows = [line.split() for line in text.splitlines(keepends=True) if line.endswith("\n")]
    return [(row[0], int(row[1]), float(row[2])) for row in rows if len(row) == 3]


def facts_of(records: Iterable[TrialRecord]) -> list[tuple[Any, ...]]:
    return [(r.number, r.state, r.params, r.objective, [(e.index, e.metrics) for e in r.history]) for r in records]


def losses(log: Path) -> list[list[float]]:
    """Return for every resumed trial the seconds of the epochs that it had to train again, in order."""
    lost = []
    done: dict[str, dict[int, float]] = {}
    for trial, epoch, seconds in lines_of(log):
        mine = done.setdefault(trial, {})
        if epoch in mine:
            lost.append([mine.pop(e) for e in sorted(mine) if e >= epoch])
        mine[epoch] = seconds
    return lost


class Victim:
    """A study that is killed and started again with the same command."""

    def __init__(self, line: list[str], log: Path, output: IO[str]) -> None:
        self.line, self.log, self.output = line, log, output
        self._start()

    def _start(self) -> None:
        self.process = start("tune", *self.line, stdout=self.output, stderr=self.output)

    def epochs(self) -> int:
        return len({(trial, epoch) for trial, epoch, _ in lines_of(self.log)})

    def strike(self, kill: Kill, rng: random.Random) -> bool:
        """Return False if the study ended before."""
        if not self._wait_until(lambda: self.epochs() >= kill.after):
            return False
        if kill.target == "starting":
            self._end()  # this kill counts, so it comes after the delay, not before
            self._start()
        time.sleep(kill.delay_s)
        if kill.target != "trial":
            self._end()
            self._start()
            return True
        which = 0 if rng.random() < 0.9 else -1  # the oldest trains; a younger one was forked ahead for the next trial
        return self._wait_until(lambda: self._kill_trial(which))

    def _kill_trial(self, which: int) -> bool:
        with contextlib.suppress(psutil.Error, IndexError):  # between the end of a trial and the start of the next one
            self._trials()[which].kill()
            return True
        return False

    @property
    def is_running(self) -> bool:
        return self.process.poll() is None

    def _wait_until(self, condition: Callable[[], bool]) -> bool:
        """Wait for the condition; return False if the study ends first."""
        while not condition():
            if not self.is_running:
                return False
            time.sleep(0.01)
        return True

    def _end(self) -> None:
        """Send SIGKILL, and check that no process outlives it."""
        with contextlib.suppress(psutil.Error):
            family = psutil.Process(self.process.pid).children(recursive=True)
            self.process.kill()
            self.process.wait()
            _, alive = psutil.wait_procs(family, timeout=2 * LATE)
            assert not [p for p in alive if p.status() != psutil.STATUS_ZOMBIE], "a trial outlived its supervisor"

    def _trials(self) -> list[psutil.Process]:
        """Return the trial processes, which lead sessions of their own, oldest first."""
        with contextlib.suppress(psutil.Error, ProcessLookupError):
            family = psutil.Process(self.process.pid).children(recursive=True)
            return sorted((p for p in family if _leads(p)), key=lambda p: p.create_time())
        return []


def _leads(process: psutil.Process) -> bool:
    """Return whether the process is alive and leads a session of its own."""
    return process.status() != psutil.STATUS_ZOMBIE and os.getsid(process.pid) == process.pid


@pytest.mark.parametrize(
    "scheduler",
    [
        ("scheduler=halving", "scheduler.min_epochs=1"),
        ("scheduler=median", "scheduler.startup_trials=3", "scheduler.warmup_epochs=2"),
    ],
    ids=["trials are paused", "trials are pruned"],
)
@pytest.mark.timeout(5400)
def test_a_repeatedly_killed_study_ends_as_the_undisturbed_one(
    request: pytest.FixtureRequest,
    tune: Callable[..., api.Result],
    empty_store: Path,
    tmp_path: Path,
    rng: random.Random,
    report: Callable[[str], None],
    scheduler: tuple[str, ...],
) -> None:
    kills = max(request.config.getoption("--kills") // 2, 1)
    trials = 40 if kills >= 20 else 10
    line = [
        "~model.hidden_sizes", "~model.activation", "~model.dropout", "~model.batch_norm", "search=none",
        "model._target_=user_networks.Counted", "+model.lr=tag(log,interval(1e-4,1e-1))",
        f"study.trials={trials}", "study.retries=1000", "slots=1", f"trainer.max_epochs={EPOCHS}",
        f"checkpoint.every_s={EVERY_S}", *scheduler,
        "preflight=never", "pictures.when=never",  # their processes would look like trials
        "study.confirm.seeds=0",  # the log could not tell its trials from those of the search
    ]  # fmt: skip
    report(f"the undisturbed study of {trials} trials")
    log = tmp_path / "undisturbed.log"
    undisturbed = facts_of(tune(*line, f"+model.marker={log}").records)
    epochs = len(lines_of(log))
    assert len(undisturbed) == trials

    home, log = tmp_path / "killed", tmp_path / "killed.log"
    home.mkdir()
    shutil.copy(empty_store, home / "mlflow.db")
    with open(tmp_path / "output", "w") as output:
        victim = Victim([*line, f"home={home}", f"+model.marker={log}"], log, output)
        try:
            for done, kill in enumerate(draw_kills(rng, kills, epochs), 1):
                if not victim.strike(kill, rng):
                    done -= 1
                    break
                if done % 10 == 0 or kills < 20:
                    report(f"{done} of {kills} kills, {victim.epochs()} of {epochs} epochs: {kill}")
            assert victim.process.wait(600) == 0
        finally:
            victim.process.kill()
            victim.process.wait()

    location = study_location([f"home={home}"])
    found, _ = view(location)
    assert found is not None
    assert found.state == "complete"
    assert facts_of(found.records) == undisturbed, "bit for bit"
    assert done == kills, "the study ended before the last kill"
    assert_equal(home, found)
    assert len(runs_of(home)) == trials + 1, "one run a trial, and one for the study"
    assert doctor.find_defects(location, found.name) == []
    lost = losses(log)
    assert len(lost) <= kills
    for epochs_lost in lost:
        assert sum(epochs_lost[:-1]) <= EVERY_S, "at most checkpoint.every_s and one epoch is trained again"
    again = sum(map(sum, lost))
    report(f"{kills} kills; {sum(map(len, lost))} of {len(lines_of(log))} epochs were trained again, {again:.1f} s")


def test_one_of_two_processes_that_start_the_same_study_runs_it(home: Path) -> None:
    line = ["tune", f"home={home}", "study.trials=4", "trainer.max_epochs=2", "slots=1", "preflight=never"]
    both = [start(*line, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    outputs = [process.communicate()[1] for process in both]
    assert sorted(process.returncode for process in both) == [0, 2]
    loser, winner = sorted(both, key=lambda process: -process.returncode)
    assert f"digits-mlp: process {winner.pid} on " in outputs[both.index(loser)]
    found, _ = view(study_location([f"home={home}"]))
    assert found is not None
    assert (found.state, found.count("complete", "pruned")) == ("complete", 4)
    assert_equal(home, found)
