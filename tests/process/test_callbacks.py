"""Callbacks from the configuration: in trials, over cuts, and what a dry run says about them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from overnight.protocol import Decision, TrialSpec
from overnight.trial.dry_run import dry_run_batch
from overnight.trial.fit import fit
from support.trial_links import ListLink, weights
from support.trial_links import spec_for as own_spec
from support.user_trials import needs_lightning, spec_for

pytestmark = [
    pytest.mark.filterwarnings("ignore:Found 1 module\\(s\\) in eval mode"),
    pytest.mark.filterwarnings("ignore:Swapping scheduler"),
]
PARTS = "user_package.parts."
LIGHTNING = "pytorch_lightning.callbacks."


def user_spec(folder: Path, callbacks: dict[str, Any], epochs: int = 5) -> TrialSpec:
    spec = spec_for(folder, f"{PARTS}Net", f"{PARTS}Data", epochs=epochs, metric="val/loss")
    return replace(spec, direction="minimize", config={**spec.config, "callbacks": callbacks})


def ready(folder: Path, options: str, *overrides: str, **changes: Any) -> TrialSpec:
    """A trial of the digits with callbacks that come with overnight."""
    return own_spec(folder, f"callbacks={options}", "model.hidden_sizes=[8]", *overrides, **changes)


READY = {
    "early_stopping": ("callbacks.early_stopping.patience=3",),
    "learning_rate_monitor": ("schedule=cosine",),
    "stochastic_weight_averaging": ("callbacks.stochastic_weight_averaging.swa_epoch_start=2",),
    "ema": ("callbacks.ema.decay=0.9",),
    "gradient_accumulation": (),
    "timer": (),
    "[early_stopping,learning_rate_monitor,ema]": ("schedule=one_cycle",),
}


@pytest.mark.long
@pytest.mark.parametrize("options", READY)
def test_a_trial_with_ready_callbacks_that_is_cut_goes_on_to_the_same_bits(tmp_path: Path, options: str) -> None:
    def spec(name: str) -> TrialSpec:
        return ready(tmp_path / name, options, "model.batch_norm=true", *READY[options])

    whole, first, second = ListLink(), ListLink({3: Decision.SAVE_AND_STOP}), ListLink()
    assert fit(spec("whole"), whole).outcome == "complete"
    assert fit(spec("cut"), first).outcome == "saved"
    assert fit(spec("cut"), second).outcome == "complete"
    assert first.curve + second.curve == whole.curve
    of_whole, of_cut = weights(tmp_path / "whole"), weights(tmp_path / "cut")
    assert all(torch.equal(of_whole[name], of_cut[name]) for name in of_whole)


@pytest.mark.long
def test_each_ready_callback_changes_what_it_is_for(tmp_path: Path) -> None:
    def curve(options: str, *overrides: str) -> list[Any]:
        link = ListLink()
        fit(ready(tmp_path / options, options, *overrides), link)
        return link.curve

    plain = curve("none")
    assert "lr-Adam" in curve("learning_rate_monitor")[0][1]
    for options in ("stochastic_weight_averaging", "ema", "gradient_accumulation"):
        assert curve(options)[-1] != plain[-1], options
    assert 0 < len(curve("timer", "callbacks.timer.duration='00:00:00:01'", "trainer.max_epochs=9999")) < 9999


def test_a_trial_that_early_stopping_ends_is_complete(tmp_path: Path) -> None:
    link = ListLink()
    finished = fit(ready(tmp_path, "early_stopping", "callbacks.early_stopping.min_delta=100"), link)
    assert finished.outcome == "complete"
    assert len(link.epochs) == 6
    link = ListLink()
    spec = ready(tmp_path / "2", "early_stopping", "callbacks.early_stopping.min_delta=100",
                 "callbacks.early_stopping.patience=2")  # fmt: skip
    assert fit(spec, link).outcome == "complete"
    assert len(link.epochs) == 3


@pytest.mark.parametrize("least", ["trainer.min_epochs=5", "trainer.min_steps=170"])
def test_a_trial_that_trains_on_after_early_stopping_is_saved_and_keeps_the_best_weights(
    tmp_path: Path, least: str
) -> None:
    def trained(name: str, *decisions: int) -> tuple[list[str], ListLink]:
        options = ("callbacks.early_stopping.min_delta=100", "callbacks.early_stopping.patience=1")
        spec = ready(tmp_path / name, "early_stopping", *options, f"+{least}", objective="best")
        link, outcomes = ListLink(), []
        for decision in (*decisions, None):
            link.decisions = {} if decision is None else {decision: Decision.SAVE_AND_STOP}
            outcomes.append(fit(spec, link).outcome)
        return outcomes, link

    whole_outcomes, whole = trained("whole")
    assert (whole_outcomes, len(whole.epochs)) == (["complete"], 5), "without the least number, it ends after two"
    outcomes, cut = trained("cut", 2, 3)
    assert (outcomes, cut.curve) == (["saved", "saved", "complete"], whole.curve)
    best = max(whole.epochs, key=lambda e: e.metrics["val/accuracy"])
    assert best.index > 1, "the best epoch is one after the callback wanted to stop"
    only_best = ready(tmp_path / "best", "none", f"trainer.max_epochs={best.index + 1}")
    assert fit(only_best, ListLink()).outcome == "complete"
    expected = weights(tmp_path / "best")
    for name in ("whole", "cut"):
        assert all(torch.equal(kept, expected[key]) for key, kept in weights(tmp_path / name).items())


def test_callbacks_of_a_person_write_no_checkpoints_and_know_the_best_score(tmp_path: Path) -> None:
    callbacks = {
        "model_checkpoint": {
            "_target_": f"{LIGHTNING}ModelCheckpoint", "dirpath": str(tmp_path / "theirs"), "monitor": "val/loss",
            "save_last": "link", "save_top_k": 2,
        },
        "bar": {"_target_": f"{LIGHTNING}RichProgressBar"},
        "summary": {"_target_": f"{LIGHTNING}RichModelSummary", "max_depth": 2},
        "looks": {"_target_": "user_package.callbacks.LooksAtTheBestScore"},
        "none": None,
    }  # fmt: skip
    link = ListLink()
    assert fit(user_spec(tmp_path / "trial", callbacks), link).outcome == "complete"
    assert not (tmp_path / "theirs").exists()
    assert [path.name for path in (tmp_path / "trial").iterdir()] == ["weights.ckpt"]
    best = [min(e.metrics["val/loss"] for e in link.epochs[: n + 1]) for n in range(5)]
    from user_package.callbacks import LooksAtTheBestScore

    assert LooksAtTheBestScore.seen == pytest.approx(best)
    assert dry_run_batch(user_spec(tmp_path / "dry", callbacks), []).notes == (
        "callbacks.bar, callbacks.summary: not used, because a trial has no terminal",
        "callbacks.model_checkpoint: writes no files, because overnight keeps the checkpoints",
    )


MISTAKES = {
    "callbacks.stop.monitor: must be a metric that the model logs, got 'val/los'; it logged": {
        "_target_": f"{LIGHTNING}EarlyStopping", "monitor": "val/los",
    },
    "callbacks.stop.monitor: must be a metric that the model logs, got 'val_accuracy'; it logged train/loss": {
        "_target_": f"{LIGHTNING}ModelCheckpoint", "monitor": "val_accuracy",
    },
    "callbacks.stop.patienc: must be an argument of pytorch_lightning.callbacks.EarlyStopping, got 3; did you mean": {
        "_target_": f"{LIGHTNING}EarlyStopping", "monitor": "val/loss", "patienc": 3,
    },
    "callbacks.stop._target_: must name something that exists, got 'pytorch_lightning.callbacks.EarlyStop'": {
        "_target_": f"{LIGHTNING}EarlyStop",
    },
    "callbacks.stop._target_: must be a Callback of the model's Lightning": {"_target_": "torch.nn.ReLU"},
    "callbacks.stop._target_: must not be LearningRateFinder": {"_target_": f"{LIGHTNING}LearningRateFinder"},
}  # fmt: skip


@pytest.mark.parametrize("message", MISTAKES)
def test_a_dry_run_reports_a_callback_that_cannot_work_in_one_line(tmp_path: Path, message: str) -> None:
    problems = dry_run_batch(user_spec(tmp_path, {"stop": MISTAKES[message]}), []).problems
    assert len(problems) == 1, problems
    assert problems[0].startswith(message)
    assert "\n" not in problems[0]


@needs_lightning
def test_a_callback_of_the_other_lightning_package_is_built_from_that_of_the_model(tmp_path: Path) -> None:
    callbacks = {"stop": {"_target_": "lightning.pytorch.callbacks.EarlyStopping", "monitor": "val/loss"}}
    assert fit(user_spec(tmp_path, callbacks), ListLink()).outcome == "complete"
