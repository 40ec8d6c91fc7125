"""Mistakes that would fail every trial are told before there is a study."""

from __future__ import annotations

import io
import multiprocessing
import os
from collections.abc import Callable
from pathlib import Path
from subprocess import PIPE, CompletedProcess

import pytest
import user_downloads
from click.testing import CliRunner
from pytorch_lightning import LightningDataModule
from torchvision import datasets

from overnight.cli.main import cli
from overnight.config.problems import ConfigError
from overnight.protocol import DataSpec, DryRunResult
from overnight.runner import preflight
from overnight.search import plan
from overnight.search.plan import Plan
from overnight.system import forkserver
from overnight.trial import dry_run
from overnight.trial.dry_run import Bars, dry_run_batch, get_ready
from support.commands import running
from support.paths import python_path

_KEYS = ("hidden_sizes", "activation", "dropout", "batch_norm")
CONV = ("model._target_=user_mistakes.Conv", *(f"~model.{key}" for key in _KEYS))


def planned(*overrides: str) -> Plan:
    return plan.make(overrides)


def told(study: Plan) -> list[str]:
    """What one rehearsal of the largest configuration says, in this process."""
    attempt = preflight.attempts_of(study)[0]
    result = dry_run_batch(preflight._spec(study, 0, attempt, "cpu"), preflight._builds(study, [attempt]))
    return preflight._problems(study, result)


def test_what_trains_has_no_problem_and_says_what_it_logs_and_takes() -> None:
    study = planned()
    result = dry_run_batch(preflight._spec(study, 0, preflight.attempts_of(study)[0], "cpu"), [])
    assert result.problems == ()
    assert result.metrics == ("train/loss", "val/accuracy", "val/f1", "val/loss")
    assert result.own_bytes > 1e6


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (["model._target_=overnight.models.mlp.MLPP"], "model._target_: must name something that exists"),
        (["model._target_=overnight.models.mlp.MLPP"], "did you mean MLP?"),
        (["model.activation=tahn"], "model.activation: must be one of relu, "),
        (["model.activation=relu,tahn"], "model.activation: must be one of relu, "),
        (["trainer.precision=33-true"], "trainer.precision: must be one that Lightning's Trainer takes"),
        (["study.metric=val/acc"], "got 'val/acc'; it logged train/loss, val/accuracy, val/f1, val/loss; did you mean"),
        (["data._target_=user_mistakes.NineClasses"], "model.classes: a label must be from 0 to 8, as the network"),
        (["data._target_=user_mistakes.Missing"], "data.root: put train-images.gz into /nowhere"),
        (
            [*CONV, "search=none", "+model.blocks=4"],
            "model: the image must be larger than its convolutions and pooling",
        ),
        (["schedule=one_cycle", "schedule.warmup=2.0"], "schedule.warmup: must be above 0 and below 1, got 2.0"),
        (["model=cnn", "model.channels=[4,4,4,4]", "search=none"], "model.channels: each block halves the image"),
        (["+model.colour=red"], "conf: must train; TypeError: "),
    ],
)
def test_a_mistake_is_one_line_that_names_its_key(line: list[str], words: str) -> None:
    (problem,) = told(planned(*line))
    assert words in problem
    assert "\n" not in problem


def test_every_option_of_a_config_group_is_tried_at_an_end_of_the_space(tmp_path: Path) -> None:
    for group in ("model", "search"):
        (tmp_path / group).mkdir()
    (tmp_path / "model" / "mine.yaml").write_text("_target_: user_mistakes.Conv\nblocks: 1\n")
    (tmp_path / "search" / "mine.yaml").write_text("model.blocks: int(interval(1, 3))\n")
    study = plan.make(["model=mlp,mine", "model.activation=relu,tanh"], tmp_path)
    attempts = preflight.attempts_of(study)
    tried = [(a.values["model"], a.name.split()[0], a.values.get("model.blocks")) for a in attempts]
    assert tried == [
        ("mlp", "largest", None),
        ("mine", "largest", 3),
        ("mlp", "smallest", None),
        ("mine", "smallest", 1),
    ]
    assert attempts[0].values["model.hidden_sizes"] == [256, 256, 256]
    assert attempts[2].values["model.hidden_sizes"] == [16]
    assert len(preflight.attempts_of(planned("search=none"))) == 1, "what is alike is tried once"


def test_memory_that_the_machine_does_not_have_is_told_with_what_would_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preflight, "machine_memory", lambda: 10 * 2**30)
    (problem,) = preflight._too_much(planned("slots=4"), 3 * 2**30)
    assert problem == (
        "slots: 4 trials of the largest configuration must fit into the machine's 10 GiB, and each takes 3; take "
        "slots=3, or a smaller space"
    )
    assert preflight._too_much(planned("slots=3"), 3 * 2**30) == []
    assert "trial.memory_gib: must hold" in preflight._too_much(planned("trial.memory_gib=1"), 3 * 2**30)[0]


def test_a_process_that_dies_says_how() -> None:
    study = planned(*CONV, "model._target_=user_mistakes.Dies", "search=none", "+model.blocks=1")
    assert preflight.mistakes(study) == ["conf: must train; its process ended by signal 9, as where memory runs out"]
    assert preflight._problems(study, None) == []
    assert preflight._problems(study, DryRunResult(0, (), (), 0))[0].endswith("it logged none")


def test_tune_and_a_dry_run_say_the_same_and_leave_nothing(
    overnight: Callable[..., CompletedProcess[str]], tmp_path: Path
) -> None:
    line = ("study.metric=val/acc", "model.activation=relu,tahn")
    real = overnight("tune", *line, "home=made")
    assert real.returncode == 2
    assert [p.split(":")[0] for p in real.stderr.splitlines()] == ["study.metric", "model.activation"]
    assert not list((tmp_path / "cwd").iterdir())
    dry = CliRunner().invoke(cli, ["tune", *line, f"home={tmp_path / 'made'}", "--dry-run"])
    assert isinstance(dry.exception, ConfigError)
    assert dry.exception.problems == real.stderr.splitlines()
    assert not (tmp_path / "made").exists()


@pytest.mark.long
def test_a_download_is_seen_as_it_goes_and_nothing_else_that_a_rehearsal_prints(tmp_path: Path) -> None:
    with user_downloads.server(chunk_s=0.3) as mirror:
        line = ["data=mnist", "data._target_=user_downloads.Pictures", f"data.root={tmp_path / 'data'}"]
        line += ["study.trials=1", "trainer.max_epochs=1", f"home={tmp_path}", "slots=2", "pictures.when=never"]
        environment = {**os.environ, user_downloads.MIRROR: mirror, "PYTHONPATH": python_path()}
        with running("tune", *line, stderr=PIPE, text=True, env=environment) as process:
            said = process.communicate()[1]
    assert process.returncode == 0, said
    bars = [text for text in said.splitlines() if "%|" in text]
    assert sum(text.startswith("100%|") for text in bars) == 4, "each file once, though two rehearsals want it"
    assert "B/s" in bars[0]
    assert "GPU available" not in said


def test_of_a_rehearsal_that_takes_too_long_somebody_hears(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(preflight, "PATIENCE_S", 0.0)
    monkeypatch.setattr(preflight, "LONGEST_S", 0.1)
    said: list[str] = []
    assert preflight.mistakes(planned("slots=1", "search=none", "data._target_=user_mistakes.Slow"), said.append) == []
    assert said[-1] == "one batch takes more than 0 s: the study starts, and its trials will tell"


def test_a_rehearsal_that_nobody_wants_any_more_ends_without_a_word() -> None:
    """Its process is forked once the stack is imported, and somebody may have pressed Ctrl-C meanwhile."""
    ours, theirs = multiprocessing.Pipe()
    process = forkserver.fork(dry_run.main, theirs)
    ours.close()
    theirs.close()
    process.join(60)
    assert process.exitcode == 0, "an error's would be 1, and its traceback on somebody's terminal"


def test_a_bar_on_a_terminal_is_drawn_as_it_moves_and_its_line_ends() -> None:
    terminal, moved = Terminal(), []
    bars = Bars(terminal, lambda: moved.append(1))
    for text in ("a warning\n", "\r  0%|  | 0/9", "\r 50%|# | 5/9", "\n", "another\n"):
        print(text, end="", file=bars)
    assert terminal.getvalue() == "\r  0%|  | 0/9\r 50%|# | 5/9\n"
    assert len(moved) == 1, "once a second"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class WantsATrainer(LightningDataModule):
    """Somebody's own, which is set up by what a Trainer knows."""

    def setup(self, stage: str) -> None:  # noqa: ARG002
        assert self.trainer is not None
        self.share = 1 / self.trainer.world_size


def test_only_files_that_are_lacking_keep_a_worker_from_a_study(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(datasets.KMNIST, "mirrors", ["http://127.0.0.1:9/"])
    lacks = planned("data=kmnist", f"data.root={tmp_path}").config({})
    has = planned().config({})
    theirs = {**has, "data": {"_target_": "test_preflight.WantsATrainer"}}
    assert get_ready(DataSpec((has, theirs), None)).problems == ()
    (why,) = get_ready(DataSpec((has, lacks, theirs), None)).problems
    assert why.startswith(f"data.root: {tmp_path / 'KMNIST' / 'raw'} must hold train-images-idx3-ubyte, ")
