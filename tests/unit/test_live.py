"""The progress of a running study: the live table, plain lines and the notebook."""

from __future__ import annotations

import io
import time

import pytest
from rich.console import Console

from overnight.protocol import EpochEnd
from overnight.report.live import (
    NotebookScreen,
    PlainScreen,
    ProgressSnapshot,
    RunningTrial,
    render,
)
from overnight.search.build_plan import build_plan
from overnight.search.record import TrialRecord, describe, format_duration

STUDY = build_plan(["study.trials=10", "trainer.max_epochs=20"])


def record(number: int, state: str, value: float | None = None, took: float = 10.0, **params: object) -> TrialRecord:
    history = () if value is None else (EpochEnd(number, 0, {"val/accuracy": value}, 0.0, 1.0),)
    reason = "diverged" if state == "failed" else None
    return TrialRecord(number, state, params, history, value, reason, "", 100.0, 100.0 + took)  # type: ignore[arg-type]


def snapshot(
    *records: TrialRecord, running: tuple[RunningTrial, ...] = (), slots: int = 2, **more: object
) -> ProgressSnapshot:
    ended = tuple(r for r in records if r.done)
    given = {"stopping": False, "warning": None, **more}
    return ProgressSnapshot(STUDY, {r.number: r for r in records}, running, ended, slots, **given)  # type: ignore[arg-type]


def rendered(now: ProgressSnapshot) -> str:
    console = Console(file=io.StringIO(), width=120, record=True)
    console.print(render(now))
    return console.export_text()


def test_the_table_shows_progress_best_trial_and_slots() -> None:
    now = snapshot(
        record(0, "complete", 0.9), record(1, "pruned", 0.2), record(2, "failed"), record(3, "complete", 0.95),
        record(4, "running", 0.5, **{"optimizer.lr": 0.012345}),
        running=(RunningTrial(4, 6, 0.5, time.time() - 75.2),),
    )  # fmt: skip
    text = rendered(now)
    for words in (
        "digits-mlp", "4 of 10 trials", "(2 complete, 1 pruned, 1 failed)", "about", "left",
        "val/accuracy 0.95", "trial-0003", "trial-0004", "7/20", "1:15", "lr=0.0123", "free",
    ):  # fmt: skip
        assert words in text, text


def test_it_shows_that_it_is_stopping_and_a_warning() -> None:
    text = rendered(snapshot(stopping=True, warning="OSError: no room"))
    assert "saving and stopping" in text
    assert "OSError: no room" in text


def test_the_time_left_is_estimated_from_past_durations_and_running_trials() -> None:
    done = [record(n, "complete", 0.5, took=20.0) for n in range(4)]
    assert snapshot().seconds_left() is None
    assert snapshot(*done).seconds_left() == pytest.approx(6 * 20 / 2)
    running = (RunningTrial(4, 0, None, time.time() - 5), RunningTrial(5, 0, None, time.time() - 500))
    assert snapshot(*done, running=running).seconds_left() == pytest.approx((4 * 20 + 15) / 2, abs=0.5)


def test_a_plain_screen_prints_one_line_for_each_trial(capsys: pytest.CaptureFixture[str]) -> None:
    lines = PlainScreen()
    first = record(
        0, "complete", 0.9, **{"model.hidden_sizes.length": 2, "model.hidden_sizes.0": 8, "model.hidden_sizes.1": 4}
    )
    lines.update(lambda: snapshot(first))
    lines.update(lambda: snapshot(first))
    lines.update(lambda: snapshot(first, record(1, "failed")))
    out = capsys.readouterr().out.splitlines()
    assert len(out) == 2
    assert out[0].startswith("trial-0000 complete       0.9  hidden_sizes=8-4  [1 of 10, best 0.9")
    assert out[1].startswith("trial-0001 failed    diverged")


def test_a_notebook_redraws_one_table(monkeypatch: pytest.MonkeyPatch) -> None:
    display = pytest.importorskip("IPython.display")
    shown: list[str] = []

    class Handle:
        def update(self, html: object) -> None:
            shown.append(html.data)  # type: ignore[attr-defined]

    def show(html: object, display_id: bool) -> Handle:
        assert display_id
        shown.append(html.data)  # type: ignore[attr-defined]
        return Handle()

    monkeypatch.setattr(display, "display", show)
    screen = NotebookScreen()
    screen.update(lambda: snapshot(record(0, "complete", 0.9)), force=True)
    screen.update(lambda: snapshot(record(0, "complete", 0.9)))
    screen.update(lambda: snapshot(record(0, "complete", 0.91)), force=True)
    screen.close()
    assert len(shown) == 2
    assert "0.91" in shown[1]


def test_a_trial_is_described_in_one_short_line() -> None:
    params = {
        "model.hidden_sizes.length": 2,
        "model.hidden_sizes.0": 64,
        "model.hidden_sizes.1": 8,
        "optimizer.lr": 1e-3,
    }
    assert describe(record(0, "running", None, 1.0, **params)) == "hidden_sizes=64-8 lr=0.001"


@pytest.mark.parametrize(
    ("s", "text"), [(9.4, "9 s"), (75, "1:15"), (3909, "1:05:09"), (None, "?"), (-3, "0 s"), (59.7, "1:00")]
)
def test_durations_read_like_a_clock(s: float | None, text: str) -> None:
    assert format_duration(s) == text
