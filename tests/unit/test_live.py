"""The progress of a running study: the live table, plain lines and the notebook."""

from __future__ import annotations

import io
import re
import time
from dataclasses import replace

import pytest
from rich.console import Console

from overnight.protocol import Progress
from overnight.report.live import (
    NotebookScreen,
    PlainScreen,
    ProgressSnapshot,
    RunningTrial,
    TerminalScreen,
    render,
)
from overnight.search.build_plan import build_plan
from overnight.search.formatting import describe, format_duration
from overnight.search.record import TrialRecord
from support.terminal import TerminalFile

STUDY = build_plan(["scheduler=median", "study.trials=10", "trainer.max_epochs=20"])
LONG = build_plan(["trainer.max_epochs=200"])


def record(number: int, state: str, value: float | None = None, took: float = 10.0, **params: object) -> TrialRecord:
    history = () if value is None else (Progress(number, 0, {"val/accuracy": value}, 101.5, 1.0),)
    reason = "diverged" if state == "failed" else None
    return TrialRecord(number, state, params, history, value, reason, "", 100.0, 100.0 + took)  # type: ignore[arg-type]


def snapshot(
    *records: TrialRecord, running: tuple[RunningTrial, ...] = (), slots: int = 2, **more: object
) -> ProgressSnapshot:
    ended = tuple(r for r in records if r.done)
    given = {"activity": None, "warning": None, **more}
    return ProgressSnapshot(STUDY, {r.number: r for r in records}, running, ended, slots, **given)  # type: ignore[arg-type]


def rendered(now: ProgressSnapshot, width: int = 120) -> str:
    console = Console(file=io.StringIO(), width=width, record=True)
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
        "val/accuracy 95.00%", "trial-0003", "0004", "7/20", "1:15", "0.0123", "1 free",
    ):  # fmt: skip
        assert words in text, text


def test_the_epochs_of_a_trial_are_its_own() -> None:
    study = build_plan(["trainer.max_epochs=5,8"])
    running = record(4, "running", 0.5, **{"trainer.max_epochs": 8})
    now = snapshot(running, running=(RunningTrial(4, 6, 0.5, time.time()),))
    assert "7/8" in rendered(replace(now, plan=study))


def test_a_study_that_stops_says_what_it_does_and_has_no_bar() -> None:
    done = record(0, "complete", 0.9)
    assert "━" in rendered(snapshot(done))
    text = rendered(snapshot(done, activity="writing MLflow, at most 5 s", warning="OSError: no room"))
    assert "1 of 10 trials (1 complete) writing MLflow, at most 5 s ..." in text
    assert "OSError: no room" in text
    assert "━" not in text
    assert "free" not in text


WIDE = {
    "model.hidden_sizes.length": 3, "model.hidden_sizes.0": 512, "model.hidden_sizes.1": 256,
    "model.hidden_sizes.2": 128, "model.encoder.width": 8, "model.decoder.width": 16, "model.batch_norm": True,
    "model.activation": "leaky_relu", "optimizer.lr": 0.000123456, "optimizer.weight_decay": 1e-5,
    "data.a_parameter_with_quite_a_long_name": 3,
}  # fmt: skip


def wide_study(metric: str = "val/accuracy", name: str = "digits-mlp", epoch: int = 136) -> ProgressSnapshot:
    """A study with more parameters than fit into a line. Its two running trials differ in their learning rate only."""
    now = snapshot(
        *(record(n, "complete", 0.9, **WIDE) for n in range(97)), *(record(n, "pruned", 0.5) for n in range(97, 180)),
        record(180, "failed"), record(181, "running", 0.876543, **WIDE),
        record(182, "running", 0.876543, **{**WIDE, "optimizer.lr": 0.0789}),
        running=(RunningTrial(181, epoch, 0.876543, time.time() - 4000), RunningTrial(182, epoch, 0.87, time.time())),
        slots=4,
    )  # fmt: skip
    study = replace(STUDY.settings.study, trials=1000, metric=metric, name=name)
    return replace(now, plan=replace(LONG, settings=replace(LONG.settings, study=study)))


@pytest.mark.parametrize("width", [60, 80, 100])
def test_a_narrow_terminal_keeps_what_matters_and_no_line_wraps(width: int) -> None:
    lines = rendered(wide_study(), width).splitlines()
    assert max(map(len, lines)) <= width - 4, "there is room for ^C"
    text = "\n".join(lines)
    assert re.search(r"^digits-mlp .*181 of 1000 trials .*left *$", lines[0]), text
    assert "97 complete, 83 pruned, 1 failed" in text
    best, heads, first, second, free = lines[-5:]
    assert best.startswith("best val/accuracy 90.00% trial-0000 "), text
    assert ("hidden_sizes=512-256-128" if width > 60 else "encoder.width=8") in best
    assert re.search(r" \+\d+ *$", best), "it says how many parameters are left out"
    assert heads.split()[:5] == ["trial", "epoch", "val/accuracy", "for", "lr"], (
        "what tells the trials apart comes first"
    )
    assert first.split()[:5] == ["0181", "137/200", "87.65%", "1:06:40", "0.000123"]
    assert second.split()[:4] == ["0182", "137/200", "87.00%", "0"]
    assert "0.0789" in second
    assert free.strip() == "2 free"


def test_names_that_are_too_long_are_cut_in_their_middle() -> None:
    now = wide_study("val/" + "very" * 60 + "@50", "a-study-whose-name-tells-the-whole-story-of-its-network")
    lines = rendered(now, 80).splitlines()
    assert max(map(len, lines)) <= 76
    assert lines[0].startswith("a-study-whos…")
    assert "181 of 1000 trials" in lines[0]
    heads = next(line for line in lines if line.startswith("trial"))
    assert heads.split()[2].startswith("val/ver…")
    assert heads.split()[2].endswith("@50")


def test_parameters_whose_names_end_alike_keep_what_tells_them_apart() -> None:
    text = rendered(wide_study(), 300)
    assert "encoder.width=8 decoder.width=16 batch_norm=true" in text
    assert "+" not in text


def test_a_table_with_more_trials_than_lines_says_how_many_are_left_out() -> None:
    file = TerminalFile()
    running = tuple(RunningTrial(n, 0, None, time.time()) for n in range(64))
    console = Console(file=file, width=80, height=24)
    console.print(render(snapshot(*(record(n, "running") for n in range(64)), running=running, slots=64)))
    lines = file.terminal.lines
    assert len(lines) < 24
    shown = sum(line.startswith("00") for line in lines)
    assert lines[-1] == f"+{64 - shown}"


def test_ctrl_c_leaves_no_line_of_the_table_behind() -> None:
    """The terminal itself writes ^C behind the last line. Were that line full, it would wrap."""
    file = TerminalFile()
    screen = TerminalScreen(Console(file=file, width=80, height=24, force_terminal=True))
    full = replace(wide_study(), slots=2)
    screen.update(lambda: full, force=True)
    assert file.terminal.lines[0].startswith("digits-mlp")
    file.terminal.write("^C^C")
    screen.update(lambda: replace(full, running=(), activity="saving the running trials, at most 6 s"), force=True)
    assert sum("digits-mlp" in line for line in file.terminal.lines) == 1
    assert not any("━" in line for line in file.terminal.lines)
    file.terminal.write("^C")
    screen.close()
    assert file.terminal.lines == []


def test_a_trial_of_train_is_named_by_its_classes() -> None:
    config = {"data": {"_target_": "overnight.data.digits.Digits", "batch_size": 32}, "model": {"_target_": "nets.Net"}}
    params = {f"data.key_{n}": n for n in range(30)}
    assert describe(replace(record(0, "running", **params), config=config)) == "data=Digits model=Net"


def test_the_time_left_is_estimated_from_past_durations_and_running_trials() -> None:
    done = [record(n, "complete", 0.5, took=20.0) for n in range(4)]
    assert snapshot().seconds_left() is None
    assert snapshot(*done).seconds_left() == pytest.approx(6 * 20 / 2)
    running = (RunningTrial(4, 0, None, time.time() - 5), RunningTrial(5, 0, None, time.time() - 500))
    assert snapshot(*done, running=running).seconds_left() == pytest.approx((4 * 20 + 15) / 2, abs=0.5)


def test_the_time_left_of_trials_that_were_resumed_counts_what_they_trained_before() -> None:
    now = time.time()
    long_ago = tuple(Progress(0, e, {"val/accuracy": 0.5}, 1e9 + 60.0 * (e + 1), 60.0) for e in range(10))
    resumed = replace(record(0, "running", 0.5), history=long_ago, started_at=now - 5)
    left_s = snapshot(resumed, running=(RunningTrial(0, 9, 0.5, now - 5),), slots=1).seconds_left()
    assert left_s == pytest.approx(600 + 9 * 1200, rel=0.02), "ten of its 20 epochs, and nine more trials"
    ended = replace(resumed, state="complete", ended_at=now + 600)
    assert snapshot(ended, slots=1).seconds_left() == pytest.approx(9 * 600), "as long as its epochs took"


def test_before_the_first_trial_ends_the_time_left_is_estimated_from_its_epochs() -> None:
    running = (RunningTrial(0, 4, None, time.time() - 5), RunningTrial(1, -1, None, time.time()))
    # 20 epochs take 20 s: 15 s of trial 0, all of trial 1, and eight more trials, in two slots.
    assert snapshot(running=running).seconds_left() == pytest.approx((15 + 20 + 8 * 20) / 2, abs=0.5)


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
    assert out[0].startswith("trial-0000 complete    90.00%  hidden_sizes=8-4  [1 of 10 trials, best 90.00%")
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
    assert "91.00%" in shown[1]


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
