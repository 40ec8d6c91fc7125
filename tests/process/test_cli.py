"""The command line in a new process and an empty folder."""

from __future__ import annotations

import dataclasses
import json
import os
import pty
import re
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from click.testing import CliRunner

from overnight import api
from overnight.api import Result
from overnight.cli import output
from overnight.cli.main import cli
from overnight.config.compose import study_location
from overnight.runner.stop_state import StopReason
from overnight.search.build_plan import build_plan
from overnight.study.snapshot import StudyView, view
from support.commands import LATE, running, start

Overnight = Callable[..., "subprocess.CompletedProcess[str]"]


def read_study(home: Path) -> StudyView | None:
    return view(study_location([f"home={home}"]))[0]


def records(home: Path) -> StudyView:
    found = read_study(home)
    assert found is not None
    return found


def test_three_mistakes_are_reported_together_and_no_file_is_written(overnight: Overnight) -> None:
    done = overnight("tune", "model.hiden_sizes=3", "optimizer.lr=fast", "study.trials=-1")
    assert done.returncode == 2
    lines = done.stderr.splitlines()
    assert len(lines) == 3
    assert "hidden_sizes" in lines[0]
    assert [line.split(":")[0] for line in lines] == ["model.hiden_sizes", "optimizer.lr", "study.trials"]
    assert not list(overnight.folder.rglob("*"))  # type: ignore[attr-defined]


@pytest.mark.long
def test_an_interrupted_study_of_one_slot_equals_an_uninterrupted_one_bit_for_bit(
    tune: Callable[..., Result], home: Path, tmp_path: Path
) -> None:
    line = [
        "study.trials=12",
        "slots=1",
        "trainer.max_epochs=4",
        "scheduler=median",
        "scheduler.startup_trials=3",
        "scheduler.warmup_epochs=1",
    ]
    cut = f"home={tmp_path / 'cut'}"
    lines = []
    with running("tune", *line, cut, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for text in process.stdout:
            lines.append(text)
            if len(lines) == 5:
                time.sleep(0.3)
                process.send_signal(signal.SIGINT)
                pressed = time.monotonic()
    assert process.returncode == 130
    assert time.monotonic() - pressed < 10 * LATE
    assert lines[-1] == f"to resume: overnight tune {' '.join(line)} {cut}\n"
    stopped = records(tmp_path / "cut")
    assert stopped.state == "paused"
    assert 5 <= stopped.count("complete", "pruned") < 12
    whole, other = tune(*line, f"home={home}").records, tune(*line, cut).records
    assert len(whole) == 12
    facts = [[(r.number, r.state, r.params, r.objective, [e.metrics for e in r.history]) for r in rs]
             for rs in (whole, other)]  # fmt: skip
    assert facts[0] == facts[1]


def test_a_complete_study_says_so_and_exits_0(overnight: Overnight, finished_home: Path) -> None:
    line = (
        "study.trials=6",
        "trainer.max_epochs=6",
        "scheduler=median",
        "scheduler.startup_trials=2",
        "scheduler.warmup_epochs=1",
    )
    done = overnight("tune", *line, f"home={finished_home}")
    assert done.returncode == 0
    assert "digits-mlp is complete" in done.stdout
    assert "6 of 6 trials done" in done.stdout


@pytest.mark.long
def test_a_changed_study_under_the_same_name_is_refused_with_a_remedy(
    overnight: Overnight, finished_home: Path
) -> None:
    done = overnight("tune", "study.metric=val/loss", "study.direction=minimize", f"home={finished_home}")
    assert done.returncode == 2
    assert "study.metric: was val/accuracy, is val/loss" in done.stderr
    assert "study.name=" in done.stderr


def test_status_prints_one_json_object(overnight: Overnight, finished_home: Path, finished: StudyView) -> None:
    done = overnight("status", "--json", f"home={finished_home}")
    assert finished.best is not None
    assert json.loads(done.stdout) == {
        "study": "digits-mlp",
        "state": "complete",
        "budget": 6,
        "trials": {
            "complete": finished.count("complete"),
            "pruned": finished.count("pruned"),
            "failed": 0,
            "running": 0,
            "waiting": 0,
        },
        "epochs": {"trained": sum(len(r.history) for r in finished.records), "budget": None},
        "best": {
            "trial": finished.best.number,
            "objective": finished.best.objective,
            "params": finished.best.params,
        },
        "confirmation": {"done": 0, "budget": 0},
        "deadline": None,
        "limit_notes": [],
        "forecast": None,
        "experiment_id": finished.experiment_id,
        "parent_run_id": finished.parent_run_id,
    }
    assert "digits-mlp: complete, 6 of 6" in overnight("status", "digits-mlp", f"home={finished_home}").stdout


def test_status_and_tune_print_the_best_trial_alike(finished: StudyView, capsys: pytest.CaptureFixture[str]) -> None:
    output.print_status(finished)
    status = capsys.readouterr().out
    output.print_result(Result(finished.name, StopReason.COMPLETE, (), None, finished.records, finished.plan))
    (best,) = (line for line in capsys.readouterr().out.splitlines() if line.startswith("best: "))
    assert best in status.splitlines()


def test_a_trial_that_was_marked_bad_has_no_traceback_to_name(
    finished: StudyView, capsys: pytest.CaptureFixture[str]
) -> None:
    marked = dataclasses.replace(finished.records[1], state="failed", reason="marked bad", detail="")
    records = (finished.records[0], marked, *finished.records[2:])
    output.print_result(Result(finished.name, StopReason.COMPLETE, (), None, records, finished.plan))
    assert "trial-0001 failed (marked bad)\n" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["status"], "study: there is no study in"),
        (["status", "nope"], "study: must be a study in"),
        (["stop", "nope"], "study: must be a study in"),
        (["logs", "digits-mlp"], "trial: must be STUDY/NUMBER"),
        (["logs", "nope/3"], "nope/3: must be a study in"),
        (["ui"], "study: there is no study in"),
        (["doctor"], "study: there is no study in"),
        (["status", "home="], "home: must name a folder"),
    ],
)
def test_a_missing_study_or_trial_is_reported_with_a_remedy(
    overnight: Overnight, arguments: list[str], words: str
) -> None:
    done = overnight(*arguments)
    assert done.returncode == 2
    assert words in done.stderr
    assert not list(overnight.folder.rglob("*"))  # type: ignore[attr-defined]


def test_the_config_is_printed_and_nothing_started(overnight: Overnight) -> None:
    for spelling in (["--cfg"], ["--cfg", "job"]):
        done = overnight("tune", *spelling, "model.dropout=0.25")
        assert done.returncode == 0
        assert "dropout: 0.25" in done.stdout
    assert not list(overnight.folder.rglob("*"))  # type: ignore[attr-defined]


def test_a_dry_run_shows_the_space_three_samples_and_a_forecast_and_starts_nothing(overnight: Overnight) -> None:
    done = overnight("tune", "--dry-run", "study.trials=8")
    assert done.returncode == 0, done.stderr
    assert len(re.findall(r"^  .*optimizer\.lr=", done.stdout, re.M)) == 3
    sizes = r"^search: about [\d to]+ epochs, for 8 configurations, of which about [\d to]+ train to the end$"
    assert re.search(sizes, done.stdout, re.M)
    assert re.search(r"^time: [\d:]+( s)? to [\d:]+( s)? for the search in \d+ slots?, ", done.stdout, re.M)
    assert "20 epochs per trial (smallest configuration" in done.stdout
    assert re.search(r"disk: about \d+\.\d MB", done.stdout)
    assert not list(overnight.folder.rglob("*"))  # type: ignore[attr-defined]


@pytest.mark.long
def test_train_tracks_one_configuration_and_equals_trial_0_of_a_study(
    overnight: Overnight, finished: StudyView, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setenv("MLFLOW_REGISTRY_URI", "sqlite:///elsewhere.db")
        done = overnight("train", "trainer.max_epochs=6")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("ignored environment variables: MLFLOW_REGISTRY_URI; ")
    assert f"train/trial-0000: complete, val/accuracy {finished.records[0].objective:.2%}\n" in done.stdout
    home = overnight.folder / "mlruns"  # type: ignore[attr-defined]
    api.run_one(build_plan([f"home={home}", "optimizer.lr=0.01", "trainer.max_epochs=2"], searching=False))
    status = json.loads(overnight("status", "train", "--json", f"home={home}").stdout)
    assert status["trials"]["complete"] == status["budget"] == 2
    assert "printed nothing" in overnight("logs", "train/1").stderr
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=f"sqlite:///{home}/mlflow.db")
    runs = client.search_runs([status["experiment_id"]])
    assert [(r.data.params["trainer.max_epochs"], r.data.params["optimizer.lr"]) for r in runs] == [
        ("2", "0.01"),
        ("6", "0.001"),
    ]


@pytest.mark.long
def test_stop_saves_the_trials_and_pauses_the_study(overnight: Overnight, home: Path) -> None:
    line = [f"home={home}", "study.trials=40", "trainer.max_epochs=40"]
    with running("tune", *line) as process:
        while (now := read_study(home)) is None or not now.count("running"):
            assert process.poll() is None
            time.sleep(0.1)
        assert now.state == "running"
        second = overnight("tune", *line)
        assert second.returncode == 2
        assert f"process {process.pid} " in second.stderr
        stopped_at = time.monotonic()
        done = overnight("stop", "digits-mlp", f"home={home}")
        assert (done.returncode, process.wait()) == (0, 0)
    assert time.monotonic() - stopped_at < 10 * LATE
    stopped = records(home)
    assert stopped.state == "paused"
    assert stopped.count("running") == 0
    assert "not running" in overnight("stop", "digits-mlp", f"home={home}").stdout


def _all_in_training(home: Path) -> bool:
    found = read_study(home)
    return found is not None and found.count("running") == 2 and all(len(r.history) > 2 for r in found.records)


@pytest.mark.parametrize(
    ("number", "code", "in_training"),
    [(signal.SIGINT, 130, False), (signal.SIGTERM, 143, True), (signal.SIGHUP, 129, True)],
    ids=["Ctrl-C while it still imports", "systemd", "the terminal was closed"],
)
@pytest.mark.long
def test_a_signal_to_every_process_saves_and_pauses_trials_and_sets_the_exit_code(
    tmp_path: Path, number: int, code: int, in_training: bool
) -> None:
    line = [f"home={tmp_path}", "study.trials=40", "trainer.max_epochs=999", "slots=2", "scheduler=none"]
    line += [] if in_training else ["preflight=never"]  # the preflight waits for imports before the study exists
    with running("tune", *line, start_new_session=True) as process:
        while read_study(tmp_path) is None:
            time.sleep(0.05)
        while in_training and not _all_in_training(tmp_path):
            time.sleep(0.2)
        os.killpg(process.pid, number)
        sent = time.monotonic()
        assert process.wait() == code
        # An import is not interrupted. All of them take 10 s, and several times that beside other tests.
        assert time.monotonic() - sent < (10 if in_training else 60) * LATE
    found = records(tmp_path)
    assert found.count("running") == 0
    # A fast machine may have started trials already.
    assert found.count("paused") in ((2,) if in_training else (0, 1, 2))
    for record in found.records:
        state = tmp_path / "checkpoints" / "digits-mlp" / f"trial-{record.number:04d}" / "state.ckpt"
        assert state.exists() == bool(record.history), "complete epochs are saved"


@pytest.mark.long
def test_a_second_interrupt_exits_at_once(home: Path) -> None:
    bare = ["~model.hidden_sizes", "~model.activation", "~model.dropout", "~model.batch_norm", "search=none"]
    line = [f"home={home}", "study.trials=2", "slots=2", "scheduler=none", "model._target_=user_networks.Sleeps", *bare]
    with running("tune", *line) as process:
        while not _all_in_training(home):
            time.sleep(0.2)
        process.send_signal(signal.SIGINT)
        time.sleep(1)
        assert process.poll() is None, "it waits for a trial in the middle of a batch"
        process.send_signal(signal.SIGINT)
        pressed = time.monotonic()
        assert process.wait() == 130
        assert time.monotonic() - pressed < 2 * LATE
    assert records(home).count("paused") == 2


@pytest.mark.long
def test_a_terminal_shows_a_live_table(home: Path) -> None:
    main, side = pty.openpty()
    env = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "120", "LINES": "40"}
    # Long enough for the table to be drawn.
    line = [f"home={home}", "study.trials=3", "trainer.max_epochs=100", "scheduler=none"]
    process = start("tune", *line, stdin=side, stdout=side, stderr=side, env=env)
    os.close(side)
    seen = b""
    while True:
        try:
            data = os.read(main, 4096)
        except OSError:
            break
        if not data:
            break
        seen += data
    os.close(main)
    assert process.wait() == 0
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", seen.decode(errors="replace"))
    for words in ("of 3 trials", "epoch", "trial-0000", "val/accuracy", "best"):
        assert words in text
    assert "digits-mlp: 3 of 3 trials done (3 complete)" in text


def seconds(command: list[str], runs: int = 3) -> float:
    """Return the median CPU seconds of a command and its children, which other load on the machine does not change."""
    took = []
    for _ in range(runs):
        process = psutil.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        before = os.times()
        process.wait()
        after = os.times()
        took.append(after.children_user + after.children_system - before.children_user - before.children_system)
    return statistics.median(took)


@pytest.mark.long
def test_help_takes_under_half_a_second_and_status_under_two(finished_home: Path) -> None:
    # For a machine that imports torch in two seconds; a slower one gets proportionally more time.
    slower = max(1.0, seconds([sys.executable, "-c", "import torch"]) / 2.0)
    overnight = [sys.executable, "-m", "overnight"]
    assert seconds([*overnight, "--help"]) < 0.5 * slower
    assert seconds([*overnight, "status", f"home={finished_home}"]) < 2.0 * slower


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys; from overnight.cli.main import cli; cli.main(['--help'], standalone_mode=False); "
        "print([m for m in ('torch', 'optuna', 'mlflow', 'hydra', 'rich', 'pandas') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.endswith("[]\n")


def test_every_command_has_a_help_text_with_an_example() -> None:
    for name, command in cli.commands.items():
        result = CliRunner().invoke(cli, [name, "--help"])
        assert result.exit_code == 0
        assert command.help
        assert "Example" in result.output
