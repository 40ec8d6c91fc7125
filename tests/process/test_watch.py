"""`overnight status --watch` follows a study that another process runs."""

from __future__ import annotations

import os
import pty
import select
import signal
import subprocess
import time
from pathlib import Path

import pytest
from click.testing import CliRunner

from overnight.cli.main import cli
from overnight.config.compose import study_location
from overnight.study.snapshot import view
from support.commands import LATE, running, start
from support.user_overrides import user_network


def until_it_runs(home: Path) -> None:
    deadline = time.monotonic() + 60 * LATE
    while time.monotonic() < deadline:
        found, _ = view(study_location([f"home={home}"]))
        if found is not None and found.count("running"):
            return
        time.sleep(0.2)
    raise AssertionError("the study should have started by now")


def seen_on_a_terminal(home: Path, seconds: float) -> tuple[str, int]:
    """Return what `--watch` draws until Ctrl-C, and its exit code."""
    ours, theirs_ = pty.openpty()
    process = start(
        "status", "--watch", f"home={home}", stdin=theirs_, stdout=theirs_, stderr=theirs_,
        env={**os.environ, "TERM": "xterm-256color", "COLUMNS": "110", "LINES": "30"},
    )  # fmt: skip
    os.close(theirs_)
    drawn, deadline = b"", time.monotonic() + seconds
    while time.monotonic() < deadline and b"epoch" not in drawn:
        if select.select([ours], [], [], 0.2)[0]:
            drawn += os.read(ours, 1 << 16)
    process.send_signal(signal.SIGINT)
    code = process.wait(20 * LATE)
    os.close(ours)
    return drawn.decode(errors="replace"), code


@pytest.mark.long
def test_watch_follows_the_study_to_its_end_and_ctrl_c_does_not_stop_it(home: Path) -> None:
    line = user_network("Slow", "study.trials=2", "trainer.max_epochs=6", "slots=1")
    with running("tune", f"home={home}", "preflight=never", "pictures.when=never", *line) as study:
        until_it_runs(home)
        with start("status", "--watch", f"home={home}", stdout=subprocess.PIPE, text=True) as plain:
            drawn, code = seen_on_a_terminal(home, 30 * LATE)
            assert code == 130
            assert "epoch" in drawn
            assert "of 2 trials" in drawn
            assert study.poll() is None, "watching does not stop the study"
            printed, _ = plain.communicate(timeout=120 * LATE)
        assert plain.returncode == 0
        lines = printed.splitlines()
        named = [text.split() for text in lines if text.startswith("trial-")]
        ended = [number for number, state, *_ in named if state != "after"]  # a paused trial that leads has a line too
        assert ended == ["trial-0000", "trial-0001"], printed
        assert any(text.startswith("digits-mlp: complete, 2 of 2 trials done") for text in lines), printed
        assert study.wait(30 * LATE) == 0


def test_watch_and_json_exclude_each_other(finished_home: Path) -> None:
    done = CliRunner().invoke(cli, ["status", "--watch", "--json", f"home={finished_home}"])
    assert done.exit_code == 2
    assert "use one of them" in done.output


def test_watching_a_study_that_does_not_run_prints_its_status(finished_home: Path) -> None:
    with start("status", "--watch", f"home={finished_home}", stdout=subprocess.PIPE, text=True) as process:
        printed, _ = process.communicate(timeout=60 * LATE)
    assert process.returncode == 0
    assert printed.startswith("digits-mlp: complete, 6 of 6")
