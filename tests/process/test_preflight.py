"""Mistakes that would fail every trial are reported before a study starts."""

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
from overnight.runner import launch, preflight
from overnight.search.build_plan import build_plan
from overnight.search.plan import Plan
from overnight.system import forkserver
from overnight.trial import dry_run
from overnight.trial.dry_run import ProgressBars, dry_run_batch, prepare_data
from support.commands import running
from support.paths import python_path

_KEYS = ("hidden_sizes", "activation", "dropout", "batch_norm")
OF_SPLIT = tuple(f"~data.{key}" for key in ("split_seed", "normalise", "subset", "augment"))
CONV = ("model._target_=user_mistakes.Conv", *(f"~model.{key}" for key in _KEYS))


def planned(*overrides: str) -> Plan:
    return build_plan(overrides)


def problems_of(study: Plan) -> list[str]:
    """Return what a dry run of the largest configuration reports, in this process."""
    attempt = preflight.dry_runs_for(study)[0]
    result = dry_run_batch(
        preflight.dry_run_spec(study, 0, attempt, "cpu"), preflight.configs_to_build(study, [attempt])
    )
    return [*dict.fromkeys((*preflight.problems_in(study, result), *result.built_problems))]


def test_a_choice_between_the_ends_is_reported_with_the_others() -> None:
    problems = problems_of(planned("search=none", "data.batch_size=16,0,-3"))
    assert problems == ["data.batch_size: must be at least 1, got 0", "data.batch_size: must be at least 1, got -3"]


def test_a_configuration_that_trains_has_no_problem_and_reports_its_metrics_and_memory() -> None:
    study = planned()
    result = dry_run_batch(preflight.dry_run_spec(study, 0, preflight.dry_runs_for(study)[0], "cpu"), [])
    assert result.problems == ()
    assert result.metrics == ("train/loss", "val/accuracy", "val/f1", "val/loss")
    assert result.private_bytes > 1e6


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (["model._target_=overnight.models.mlp.MLPP"], "model._target_: must name something that exists"),
        (["model._target_=overnight.models.mlp.MLPP"], "did you mean MLP?"),
        (["model.activation=tahn"], "model.activation: must be one of relu, "),
        (["model.activation=relu,tahn"], "model.activation: must be one of relu, "),
        (["study.metric=val/acc"], "got 'val/acc'; it logged train/loss, val/accuracy, val/f1, val/loss; did you mean"),
        (["data._target_=user_mistakes.NineClasses"], "model.classes: a label must be from 0 to 8, as the network"),
        (["data._target_=user_mistakes.Missing"], "data.root: put train-images.gz into /nowhere"),
        (
            [*CONV, "search=none", "+model.blocks=4"],
            "model: the image must be larger than its convolutions and pooling",
        ),
        (["schedule=one_cycle", "schedule.warmup=2.0"], "schedule.warmup: must be above 0 and below 1, got 2.0"),
        (["model=cnn", "model.channels=[4,4,4,4]", "search=none"], "model.channels: each block halves the image"),
        (["+model.colour=red"], "model.colour: must be an argument of overnight.models.mlp.MLP, got 'red'; it takes "),
        (["+optimizer.wieght_decay=0", "search=none"], "got 0; did you mean weight_decay?"),
        (
            ["study.folds=3", "data._target_=user_package.with_loaders.DigitsData", *OF_SPLIT],
            "data._target_: must name fold and folds in its constructor for study.folds=3, got "
            "user_package.with_loaders.DigitsData without fold and folds; add them, or leave study.folds out",
        ),
    ],
)
def test_a_mistake_is_one_line_that_names_its_key(line: list[str], words: str) -> None:
    (problem,) = problems_of(planned(*line))
    assert words in problem
    assert "\n" not in problem


def test_mistakes_in_settings_and_in_classes_are_reported_together(
    overnight: Callable[..., CompletedProcess[str]],
) -> None:
    classes = ("model._target_=overnight.models.mlp.MLPP", "+optimizer.wieght_decay=0")
    done = overnight("tune", "study.trials=-1", *classes, "optimizer=adam", "search=none", "home=made")
    assert done.returncode == 2
    assert [line.split(":")[0] for line in done.stderr.splitlines()] == [
        "study.trials",
        "model._target_",
        "optimizer.wieght_decay",
    ]


def test_each_class_with_a_mistake_is_reported_even_if_another_stops_the_check() -> None:
    line = ("+data.foo=1", "+model.colour=red", "+optimizer.momentun=0", "search=none", "optimizer=sgd")
    assert [p.split(":")[0] for p in problems_of(planned(*line))] == ["data.foo", "model.colour", "optimizer.momentun"]
    line = ("model._target_=overnight.models.mlp.MLPP", "data._target_=nowhere.Data", "search=none")
    assert [p.split(":")[0] for p in problems_of(planned(*line))] == ["data._target_", "model._target_"]


def test_mistakes_in_the_sampler_and_in_the_network_are_reported_together(tmp_path: Path) -> None:
    line = ("sampler._target_=user_mistakes.Nope", "model._target_=overnight.models.mlp.MLPP", "search=none")
    with pytest.raises(ConfigError) as refused:
        launch.check_configurations(planned(*line, "data.batch_size=16,32", f"home={tmp_path}"))
    assert [p.split(":")[0] for p in refused.value.problems] == ["sampler._target_", "model._target_"]


def test_arguments_that_a_decorated_constructor_takes_are_no_mistake() -> None:
    line = ("model._target_=user_mistakes.Decorated", *CONV[1:], "+model.extra=1", "search=none")
    assert problems_of(planned(*line, "study.metric=val/loss", "study.direction=minimize")) == []


def test_every_option_of_a_config_group_is_tried_at_both_ends_of_the_space(tmp_path: Path) -> None:
    for group in ("model", "search"):
        (tmp_path / group).mkdir()
    (tmp_path / "model" / "mine.yaml").write_text("_target_: user_mistakes.Conv\nblocks: 1\n")
    (tmp_path / "search" / "mine.yaml").write_text("model.blocks: int(interval(1, 3))\n")
    study = build_plan(["model=mlp,mine", "model.activation=relu,tanh"], tmp_path)
    attempts = preflight.dry_runs_for(study)
    tried = [(a.values["model"], a.name.split()[0], a.values.get("model.blocks")) for a in attempts]
    assert tried == [
        ("mlp", "largest", None),
        ("mine", "largest", 3),
        ("mlp", "smallest", None),
        ("mine", "smallest", 1),
    ]
    assert attempts[0].values["model.hidden_sizes"] == [256, 256, 256]
    assert attempts[2].values["model.hidden_sizes"] == [16]
    assert len(preflight.dry_runs_for(planned("search=none"))) == 1, "equal configurations are tried once"


def test_too_little_memory_is_reported_with_what_would_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preflight, "machine_memory", lambda: 10 * 2**30)
    (problem,) = preflight.memory_problems(planned("slots=4"), 3 * 2**30)
    assert problem == (
        "slots: 4 trials of the largest configuration must fit into the machine's 10 GiB, and each takes 3; take "
        "slots=3, or a smaller space"
    )
    assert not preflight.memory_problems(planned("slots=3"), 3 * 2**30)
    assert "trial.memory_gib: must hold" in preflight.memory_problems(planned("trial.memory_gib=1"), 3 * 2**30)[0]


def test_the_names_that_mlflow_shows_otherwise_are_told_before_the_study(tmp_path: Path) -> None:
    study = planned(f"home={tmp_path}")
    result = DryRunResult(0, ("val/AP@50", "val/loss"), (), 0)
    (note,) = preflight.notes_on_names(study, [result, None, result])
    assert note.startswith("MLflow shows the metric 'val/AP@50' as 'val/AP:at:50'")


def test_the_death_of_a_process_is_reported_with_its_signal() -> None:
    study = planned(*CONV, "model._target_=user_mistakes.Dies", "search=none", "+model.blocks=1")
    assert [*preflight.find_mistakes(study)] == [
        "conf: must train; its process ended by signal 9, as when memory runs out"
    ]
    assert not preflight.problems_in(study, None)
    assert preflight.problems_in(study, DryRunResult(0, (), (), 0))[0].endswith("it logged none")


@pytest.mark.long
def test_tune_and_its_option_dry_run_report_the_same_and_write_nothing(
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
def test_the_progress_of_a_download_is_shown_and_nothing_else_that_a_dry_run_prints(tmp_path: Path) -> None:
    with user_downloads.server(chunk_s=0.3) as mirror:
        line = ["data=mnist", "data._target_=user_downloads.Pictures", f"data.root={tmp_path / 'data'}"]
        line += ["study.trials=1", "trainer.max_epochs=1", f"home={tmp_path}", "slots=2", "pictures.when=never"]
        environment = {**os.environ, user_downloads.MIRROR: mirror, "PYTHONPATH": python_path()}
        with running("tune", *line, stderr=PIPE, text=True, env=environment) as process:
            printed = process.communicate()[1]
    assert process.returncode == 0, printed
    bars = [text for text in printed.splitlines() if "%|" in text]
    assert sum(text.startswith("100%|") for text in bars) == 4, "each file once, though two dry runs want it"
    assert "B/s" in bars[0]
    assert "GPU available" not in printed


def test_a_dry_run_that_takes_too_long_is_reported(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(preflight, "ANNOUNCED_AFTER_S", 0.0)
    monkeypatch.setattr(preflight, "TIMEOUT_S", 0.1)
    messages: list[str] = []
    assert not preflight.find_mistakes(
        planned("slots=1", "search=none", "data._target_=user_mistakes.Slow"), messages.append
    )
    assert messages[-1] == "one batch takes more than 0 s: the study starts without waiting for it"


def test_a_dry_run_whose_supervisor_has_ended_ends_quietly() -> None:
    """Its process is forked once the stack is imported. The user may have pressed Ctrl-C by then."""
    parent_end, child_end = multiprocessing.Pipe()
    process = forkserver.fork(dry_run.main, child_end)
    parent_end.close()
    child_end.close()
    process.join(60)
    assert process.exitcode == 0, "1 would mean an error with a traceback on the terminal"


def test_a_bar_on_a_terminal_is_drawn_as_it_moves_and_its_line_ends() -> None:
    terminal, moved = Terminal(), []
    bars = ProgressBars(terminal, lambda: moved.append(1))
    for text in ("a warning\n", "\r  0%|  | 0/9", "\r 50%|# | 5/9", "\n", "another\n"):
        print(text, end="", file=bars)
    assert terminal.getvalue() == "\r  0%|  | 0/9\r 50%|# | 5/9\n"
    assert len(moved) == 1, "once a second"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class WantsATrainer(LightningDataModule):
    """A user's data module whose setup needs a Trainer."""

    def setup(self, stage: str) -> None:  # noqa: ARG002
        assert self.trainer is not None
        self.share = 1 / self.trainer.world_size


def test_a_worker_refuses_a_study_only_for_missing_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.KMNIST, "mirrors", ["http://127.0.0.1:9/"])
    lacks = planned("data=kmnist", f"data.root={tmp_path}").config({})
    has = planned().config({})
    own = {**has, "data": {"_target_": "test_preflight.WantsATrainer"}}
    assert prepare_data(DataSpec((has, own), None)).problems == ()
    (why,) = prepare_data(DataSpec((has, lacks, own), None)).problems
    assert why.startswith(f"data.root: {tmp_path / 'KMNIST' / 'raw'} must hold train-images-idx3-ubyte, ")
