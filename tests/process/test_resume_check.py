"""`overnight doctor --resume` trains with and without interruptions and compares."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from overnight.cli.main import cli
from overnight.runner.resume_check import TrainingFailed, check_resume
from overnight.search.build_plan import build_plan
from overnight.search.plan import Plan
from overnight.search.record import TrialRecord
from support.trial_links import KEYS

BASELINE = TrialRecord(0, "complete", {}, (), None, None, "", None, None, values={})


def plan_of(home: Path, network: str, *overrides: str) -> Plan:
    keys = [f"~model.{key}" for key in KEYS]
    return build_plan([f"home={home}", f"model._target_=user_networks.{network}", *keys, "search=none", *overrides])


def test_a_network_that_resumes_exactly_is_the_same_bit_for_bit(finished_home: Path) -> None:
    arguments = ["doctor", "--resume", "digits-mlp/0", "--epochs", "2", f"home={finished_home}"]
    done = CliRunner().invoke(cli, arguments, catch_exceptions=False)
    words = "digits-mlp/0: trained for 2 epochs with and without interruptions: the result is the same, bit for bit\n"
    assert (done.exit_code, done.output) == (0, words)
    assert not [*finished_home.rglob("resume-check-*")]


def test_what_only_a_closure_holds_makes_metrics_and_weights_differ(tmp_path: Path) -> None:
    messages: list[str] = []
    check = check_resume(plan_of(tmp_path, "CountsInAClosure"), BASELINE, 3, messages.append)
    assert check.reports == 3
    assert messages == [
        "training 3 epochs without an interruption ...",
        *(f"training epoch {n} of 3 in a process of its own ..." for n in (1, 2, 3)),
    ]
    first, *others = check.differences
    assert first.split(" of ")[1].startswith("epoch 2: "), "the first epoch is not resumed"
    assert any(line.startswith("weights: ") for line in others)
    assert any(line.startswith("optimizer states: ") for line in others)


@pytest.mark.long
def test_a_trial_that_ends_before_the_last_epoch_is_compared_by_its_weights(tmp_path: Path) -> None:
    check = check_resume(plan_of(tmp_path, "Plain", "trainer.max_epochs=2"), BASELINE, 3, lambda _: None)
    assert (check.reports, check.differences) == (2, ())


def test_a_network_that_cannot_be_trained_is_no_difference(tmp_path: Path) -> None:
    with pytest.raises(TrainingFailed, match="the user's own mistake"):
        check_resume(plan_of(tmp_path, "Raises"), BASELINE, 2, lambda _: None)


@pytest.mark.parametrize(
    ("arguments", "mistake"),
    [
        (["--resume", "digits-mlp"], "--resume: must be STUDY/NUMBER, e.g. digits-mlp/7, got 'digits-mlp'"),
        (["--resume", "digits-mlp/99"], "--resume: must be one of digits-mlp's trials, 0 to 5, got 99"),
        (["digits-mlp", "--resume", "digits-mlp/0"], "--resume: names the study itself; leave out digits-mlp"),
    ],
)
def test_a_reference_that_names_no_trial_is_reported(finished_home: Path, arguments: list[str], mistake: str) -> None:
    done = CliRunner().invoke(cli, ["doctor", *arguments, f"home={finished_home}"])
    assert (done.exit_code, done.stderr) == (2, f"{mistake}\n")
