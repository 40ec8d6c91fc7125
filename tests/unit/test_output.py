"""What `status` prints of a study, and what commands say about an option that is a setting."""

from __future__ import annotations

import dataclasses
import sys

import pytest

from overnight.api import Result
from overnight.cli import main, output
from overnight.runner.stop_state import StopReason
from overnight.search.plan import TRAIN_STUDY
from support.planted_study import record, view_of


def test_a_paused_study_names_the_epochs_of_its_trials_and_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    paused = [record(0, {"optimizer.lr": 0.001}, 0.9, "paused"), record(1, {"optimizer.lr": 0.1}, None, "paused")]
    output.print_status(view_of(paused))
    lines = capsys.readouterr().out.splitlines()
    assert lines[1:] == [
        "  trial-0000 (lr=0.001): paused, 5 of 20 epochs",
        "  trial-0001 (lr=0.1): paused, no epoch yet",
        "the same `overnight tune` command resumes it",
    ]


def test_a_paused_training_is_resumed_by_train(capsys: pytest.CaptureFixture[str]) -> None:
    view = view_of([record(0, {}, 0.9, "paused")])
    output.print_status(dataclasses.replace(view, name=TRAIN_STUDY))
    assert capsys.readouterr().out.splitlines()[1:] == [
        "  trial-0000: paused, 5 of 20 epochs",
        "the same `overnight train` command resumes it",
    ]


@pytest.mark.parametrize(
    ("option", "last"),
    [
        ("--trials", "Settings are overrides: study.trials=VALUE"),
        ("--max-epochs", "Settings are overrides: trainer.max_epochs=VALUE"),
        ("--seed", "Settings are overrides: seed=VALUE"),
        ("--foo", "Error: No such option '--foo'. Did you mean '--cfg'?"),
    ],
)
def test_an_option_that_is_a_setting_is_answered_with_its_override(
    option: str, last: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["overnight", "tune", option, "5"])
    with pytest.raises(SystemExit) as ended:
        main._run()
    assert (ended.value.code, capsys.readouterr().err.splitlines()[-1]) == (2, last)


@pytest.mark.parametrize(
    ("given", "more"),
    [
        (("study.trials=5", "study.budget=2"), "study.trials=10 study.budget=4"),
        (("study.trials=5",), "study.trials=10"),
        (("study.trials=null", "study.budget=2.5"), "study.budget=5"),
        (("scheduler=none", "study.trials=5"), "study.trials=10"),
        (("scheduler=none", "study.trials=5", "study.budget=2"), "study.trials=10"),
    ],
)
def test_a_complete_study_names_each_limit_that_has_to_be_raised(
    given: tuple[str, ...], more: str, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = view_of([], *given).plan
    output.print_result(Result(plan.name, StopReason.COMPLETE, (), None, (), plan, did_work=False))
    assert f"is complete; to search more, set {more} or a new study.name" in capsys.readouterr().out
