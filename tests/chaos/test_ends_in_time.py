"""Studies with a deadline in a few minutes, from the command line. Some trials take ten times as long as others. Each
study ends in time, is confirmed, tested and reported, and has used its time."""

from __future__ import annotations

import statistics
import subprocess
import time
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import pytest

from overnight.config.compose import study_location
from overnight.study.snapshot import StudyView, view
from support.commands import start

pytestmark = [pytest.mark.deadline, pytest.mark.timeout(0)]
# A trial takes from 1 to 10 s, unless it is pruned.
VARIED = (
    "~model.hidden_sizes", "~model.activation", "~model.dropout", "~model.batch_norm", "search=none",
    "model._target_=user_networks.Paced", "+model.lr=tag(log,interval(1e-3,1e-1))",
    "+model.pace=tag(log,interval(0.05,0.5))", "trainer.max_epochs=20", "study.trials=1000", "study.name=varied",
)  # fmt: skip
# The minimum share of the time that a study uses. The imports take a large part of one minute.
USED, USED_OF_A_MINUTE = 0.8, 0.6


@dataclass(frozen=True)
class Run:
    """One study.

    Attributes:
        early_s: Seconds from its end to the deadline.
        used: Share of the time until the deadline that it used.
        trained: Share of the slots' time that was training.
    """

    code: int
    early_s: float
    used: float
    trained: float
    seen: StudyView
    output: str


def one_run(home: Path, seconds: int, seed: int) -> Run:
    until = datetime.fromtimestamp(int(time.time()) + seconds + 1)
    began = time.time()
    with start(
        "tune", f"home={home}", *VARIED, f"study.until={until.isoformat()}", f"seed={seed}",
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    ) as process:  # fmt: skip
        output = process.communicate(timeout=seconds * 3)[0]
    ended = time.time()
    seen, _ = view(study_location([f"home={home}"]))
    assert seen is not None
    confirmations = seen.confirmation.records if seen.confirmation is not None else ()
    training = sum(e.seconds for r in (*seen.records, *confirmations) for e in r.history)
    window = until.timestamp() - began
    return Run(
        process.returncode, until.timestamp() - ended, (ended - began) / window, training / window / 2, seen, output
    )


def test_a_study_with_a_deadline_ends_before_it_and_uses_its_time(
    tmp_path: Path, request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]
) -> None:
    runs, seconds = request.config.getoption("--runs"), request.config.getoption("--seconds")
    done = []
    first = request.config.getoption("--first")
    for number in range(first, first + runs):
        run = one_run(tmp_path / str(number), seconds, number)
        done.append(run)
        with capsys.disabled():
            print(
                f"\n  run with seed {number}: ended {run.early_s:.1f} s before the deadline, {run.used:.0%} used, "
                f"{run.trained:.0%} of two slots' time trained; {run.seen.count('complete', 'pruned')} trials, "
                f"{run.seen.count('paused')} paused, {run.seen.confirmed} confirmations; "
                + "; ".join(run.seen.launch["notes"]),
                flush=True,
            )
        assert run.code == 0, run.output
        assert run.early_s >= 0
        assert run.used >= (USED if seconds >= 120 else USED_OF_A_MINUTE)
        assert run.seen.confirmed > 0
        assert run.seen.confirmation is not None
        assert run.seen.confirmation.tests
        assert " won: " in run.output
        page = tmp_path / str(number) / "reports" / "varied.html"
        assert page.exists() or "left no time for the page" in run.output
    with capsys.disabled():
        print(f"  {runs} runs: {statistics.fmean(r.used for r in done):.0%} used on the average, "
              f"{min(r.used for r in done):.0%} at least")  # fmt: skip
