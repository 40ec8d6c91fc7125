"""Trials whose progress is counted in validations: cut at any of them, they resume to the same bits."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from overnight import api
from overnight.protocol import Decision, Finished, Progress, Resumed, StateSaved, TrialSpec
from overnight.runner.supervisor import Supervisor
from overnight.runner.trial_process import ForkedProcesses, TrialProcess
from overnight.search.build_plan import build_plan
from overnight.search.schedulers.study import progress_text
from overnight.study.open import open_study
from overnight.study.snapshot import StudyView, view
from overnight.system import forkserver
from overnight.tracking.run_update import metrics_of
from overnight.tracking.sync import MlflowSync
from overnight.trial.fit import fit
from support.trial_links import ListLink, spec_for, weights
from support.user_trials import spec_for as users_spec

VALIDATIONS = "user_package.validations."
LIGHTNING = "pytorch_lightning.callbacks."

CASES: dict[str, dict[str, Any]] = {
    "four times an epoch": {"trainer": {"max_epochs": 3, "val_check_interval": 0.25}},
    "a stream without an end": {
        "trainer": {"max_epochs": -1, "max_steps": 60, "val_check_interval": 7},
        "of_data": {"kind": "stream"},
    },
    "two optimizers, manual optimization": {
        "model": "Gan",
        "metric": "val/real",
        "trainer": {"max_epochs": -1, "max_steps": 110, "val_check_interval": 0.25},
    },
    "a stream with an end": {"trainer": {"max_epochs": 4, "val_check_interval": 4}, "of_data": {"kind": "finite"}},
    "steps alone": {"trainer": {"max_epochs": -1, "max_steps": 70}},
    "gradients gathered over a validation": {
        "trainer": {"max_epochs": 3, "val_check_interval": 6, "accumulate_grad_batches": 4}
    },
    "validations across epochs": {
        "trainer": {"max_epochs": 4, "val_check_interval": 13, "check_val_every_n_epoch": None}
    },
    "workers and a generator": {
        "trainer": {"max_epochs": 3, "val_check_interval": 0.5},
        "of_data": {"num_workers": 2, "own_generator": True},
    },
    "averaged weights and early stopping": {
        "trainer": {"max_epochs": 6, "val_check_interval": 0.5},
        "callbacks": {
            "ema": {"_target_": f"{LIGHTNING}EMAWeightAveraging", "decay": 0.9},
            "early": {"_target_": f"{LIGHTNING}EarlyStopping", "monitor": "val/loss", "patience": 3},
        },
    },
    "half of the batches": {
        "trainer": {"max_epochs": 2, "val_check_interval": 0.5, "limit_train_batches": 0.5, "num_sanity_val_steps": 2}
    },
}
QUICK = ("four times an epoch",)


def spec_of(
    folder: Path,
    trainer: dict[str, Any],
    model: str = "Net",
    of_data: dict[str, Any] | None = None,
    metric: str = "val/accuracy",
    every_s: float = 1e9,
    callbacks: dict[str, Any] | None = None,
) -> TrialSpec:
    spec = users_spec(
        folder, VALIDATIONS + model, VALIDATIONS + "Data", of_data=of_data, metric=metric, every_s=every_s
    )
    return replace(spec, config={**spec.config, "trainer": trainer, **({"callbacks": callbacks} if callbacks else {})})


@pytest.mark.parametrize("case", [pytest.param(n, marks=[pytest.mark.long] * (n not in QUICK)) for n in CASES])
def test_a_trial_cut_at_a_validation_resumes_to_the_same_bits(tmp_path: Path, case: str) -> None:
    whole = ListLink()
    assert fit(spec_of(tmp_path / "whole", **CASES[case]), whole) == Finished(7, "complete")
    last = len(whole.epochs) - 1
    for cut in (5,) if case in QUICK else sorted({0, 1, 2, last // 2, last - 1}):
        if cut >= last:
            continue  # to finish takes less time than to save
        spec = spec_of(tmp_path / str(cut), **CASES[case])
        first, second = ListLink({cut: Decision.SAVE_AND_STOP}), ListLink()
        assert fit(spec, first) == Finished(7, "saved")
        assert [m.index for m in first.messages if isinstance(m, StateSaved)] == [cut]
        assert fit(spec, second) == Finished(7, "complete")
        (resumed,) = [m for m in second.messages if isinstance(m, Resumed)]
        assert [e.index for e in resumed.history] == list(range(cut + 1))
        assert first.curve + second.curve == whole.curve
        assert [e.step for e in (*first.epochs, *second.epochs)] == [e.step for e in whole.epochs]
        assert {e.total for e in whole.epochs} <= {None, len(whole.epochs)}, "a stream may not tell its length"
        for name, tensor in weights(tmp_path / "whole").items():
            assert torch.equal(weights(spec.checkpoint_folder)[name], tensor), f"{name} after a cut at {cut}"


@pytest.mark.long
def test_a_trial_that_is_cut_at_every_validation_in_turn_resumes_to_the_same_bits(tmp_path: Path) -> None:
    whole, curve = ListLink(), []
    fit(spec_of(tmp_path / "whole", **CASES["four times an epoch"]), whole)
    for cut in range(1, 12, 2):
        link = ListLink({cut: Decision.SAVE_AND_STOP})
        fit(spec_of(tmp_path / "cut", **CASES["four times an epoch"]), link)
        curve += link.curve
    assert curve == whole.curve
    assert torch.equal(*(torch.cat([t.flatten() for t in weights(tmp_path / n).values()]) for n in ("whole", "cut")))


@pytest.mark.long
def test_our_own_network_validates_within_an_epoch_and_resumes_to_the_same_bits(tmp_path: Path) -> None:
    line = ["model.dropout=0.2", "schedule=cosine", "trainer.max_epochs=2", "trainer.val_check_interval=0.5"]
    whole, first, second = ListLink(), ListLink({2: Decision.SAVE_AND_STOP}), ListLink()
    assert fit(spec_for(tmp_path / "whole", *line), whole) == Finished(7, "complete")
    fit(spec_for(tmp_path / "cut", *line), first)
    assert fit(spec_for(tmp_path / "cut", *line), second) == Finished(7, "complete")
    assert first.curve + second.curve == whole.curve
    assert len(whole.curve) == 4
    for name, tensor in weights(tmp_path / "whole").items():
        assert torch.equal(weights(tmp_path / "cut")[name], tensor)


def test_the_steps_of_validations_are_those_at_which_lightning_logs_them(tmp_path: Path) -> None:
    link = ListLink()
    fit(spec_of(tmp_path, {"max_epochs": 2, "val_check_interval": 0.25}), link)
    assert [e.step for e in link.epochs] == [4, 9, 14, 19, 24, 29, 34, 39]
    assert {e.total for e in link.epochs} == {8}


def test_a_validation_at_the_end_of_an_epoch_has_what_is_logged_there(tmp_path: Path) -> None:
    link = ListLink()
    fit(spec_of(tmp_path, {"max_epochs": 1, "val_check_interval": 0.5}), link)
    within, at_end = (set(e.metrics) for e in link.epochs)
    assert "val/accuracy" in within & at_end
    assert "train/accuracy" in at_end - within


def test_a_training_without_a_validation_is_reported_with_the_rule(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="ended without a validation"):
        fit(spec_of(tmp_path, {"max_epochs": -1, "max_steps": 9}, of_data={"kind": "stream"}), ListLink())


def test_a_trial_that_the_pruner_stops_at_a_validation_ends_there(tmp_path: Path) -> None:
    link = ListLink({2: Decision.STOP})
    assert fit(spec_of(tmp_path, {"max_epochs": 3, "val_check_interval": 0.25}), link) == Finished(7, "stopped")
    assert [m.index for m in link.messages if isinstance(m, Progress)] == [0, 1, 2]


# Killed, in this process and as a process of a study ----------------------------------------------------------------


@pytest.mark.long
@pytest.mark.parametrize("case", ["a stream without an end", "two optimizers, manual optimization"])
def test_a_trial_that_is_killed_between_two_checkpoints_resumes_to_the_same_bits(tmp_path: Path, case: str) -> None:
    class Kill(BaseException):
        pass

    class KillLink(ListLink):
        def ask(self, message: Progress) -> Decision:
            if message.index == 4:
                raise Kill
            return super().ask(message)

    whole, first, second = ListLink(), KillLink(), ListLink()
    fit(spec_of(tmp_path / "whole", **CASES[case]), whole)
    with pytest.raises(Kill):
        fit(spec_of(tmp_path / "cut", **CASES[case], every_s=0), first)
    assert [m.index for m in first.messages if isinstance(m, StateSaved)] == [0, 1, 2, 3]
    fit(spec_of(tmp_path / "cut", **CASES[case]), second)
    assert first.curve[:4] + second.curve == whole.curve
    for name, tensor in weights(tmp_path / "whole").items():
        assert torch.equal(weights(tmp_path / "cut")[name], tensor)


@pytest.mark.long
def test_a_study_whose_trials_are_killed_at_validations_has_the_same_values_and_steps(home: Path) -> None:
    def run(name: str, kills: tuple[int, ...]) -> StudyView:
        lines = [f"home={home}", f"study.name={name}", *STUDY]
        study, left = build_plan(lines, conf_of(home / name)), list(kills)

        class Killed(ForkedProcesses):
            """Kills trials when they report the validations in `left`."""

            def start(self, spec: TrialSpec, log: Path) -> TrialProcess:
                trial = super().start(spec, log)
                note = trial.note

                def note_and_kill(done: Progress) -> None:
                    note(done)
                    if left and done.index >= left[0]:
                        left.pop(0)
                        with contextlib.suppress(ProcessLookupError):  # it has just ended
                            os.kill(trial.process.pid or 0, signal.SIGKILL)

                trial.note = note_and_kill  # type: ignore[method-assign]
                return trial

        session, _ = open_study(study)
        with contextlib.closing(session):
            Supervisor(session, MlflowSync(study, session.attributes.uid), processes=Killed()).run()
        assert not left
        found, _ = view(study.settings.location, name)
        assert found is not None
        return found

    forkserver.warm_up()
    whole, killed = run("whole", ()), run("killed", (1, 3, 6))
    assert [r.state for r in killed.records] == ["complete"] * 2
    for one, other in zip(whole.records, killed.records, strict=True):
        assert [(e.index, e.step, e.metrics) for e in one.history] == [
            (e.index, e.step, e.metrics) for e in other.history
        ]
        assert (one.objective, one.params) == (other.objective, other.params)
    steps = {m.step for m in metrics_of(killed.records[0]) if m.name == "val/accuracy"}
    assert steps == {4, 9, 14, 19, 24, 29, 34, 39, 44, 49}


@pytest.mark.long
def test_the_pruner_ends_trials_at_a_validation(tune: Callable[..., api.Result], tmp_path: Path) -> None:
    conf = conf_of(tmp_path / "mine", lrs="0.05, 1e-9")
    result = tune(
        *STUDY,
        "study.trials=5",
        "scheduler=median",
        "scheduler.startup_trials=1",
        "scheduler.warmup_epochs=3",
        config_dir=conf,
    )
    lengths = {(r.state, r.params["model.lr"]): len(r.history) for r in result.records if r.number > 0}
    assert lengths == {("complete", 0.05): 10, ("pruned", 1e-9): 3}


@pytest.mark.parametrize(
    ("share", "expected", "whole"),
    [(0.25, 8, 8), pytest.param(0.12, 16, 20, marks=pytest.mark.long)],  # a validation after 2 of 20 batches, not 2.4
)
def test_halving_pauses_trials_at_validations_and_they_resume_to_the_same_bits(
    share: float, expected: int, whole: int, tune: Callable[..., api.Result], tmp_path: Path
) -> None:
    conf = conf_of(tmp_path / "mine", lrs=", ".join(str(n / 1000) for n in range(1, 30)))
    line = ["model=custom", "data=custom", "data.kind=rows", "slots=1", "pictures.when=never", "preflight=never"]
    line += ["trainer.max_epochs=2", f"trainer.val_check_interval={share}", "sampler=random", "study.confirm.seeds=0"]
    paused = tune(*line, "study.budget=3", "scheduler.min_epochs=1", config_dir=conf)
    trials = f"study.trials={len(paused.records)}"
    at_once = tune(*line, "study.name=at-once", "scheduler=none", trials, config_dir=conf)

    lengths = [len(r.history) for r in paused.records]
    assert progress_text(paused.records, paused.plan) == f"{sum(lengths)} of {3 * expected} validations"
    assert {1, 2, whole} <= set(lengths)  # validations 1 and 2 are within the first epoch
    assert {len(r.history) for r in paused.records if r.state == "complete"} == {whole}
    for one, other in zip(paused.records, at_once.records, strict=True):
        assert one.params == other.params
        assert [(e.step, e.metrics) for e in one.history] == [
            (e.step, e.metrics) for e in other.history[: len(one.history)]
        ]


STUDY = (
    *("model=custom", "data=custom", "slots=1", "study.trials=2", "pictures.when=never", "preflight=never"),
    *("trainer.max_epochs=-1", "trainer.max_steps=50", "trainer.val_check_interval=5", "checkpoint.every_s=0"),
)


def conf_of(folder: Path, lrs: str = "0.02, 0.05") -> Path:
    files = {
        "model": f"_target_: {VALIDATIONS}Net\nlr: 0.02\n",
        "data": f"_target_: {VALIDATIONS}Data\nkind: stream\n",
        "search": f"model.lr: choice({lrs})\n",
    }
    for group, text in files.items():
        (folder / "conf" / group).mkdir(parents=True)
        (folder / "conf" / group / "custom.yaml").write_text(text)
    return folder / "conf"
