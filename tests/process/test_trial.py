"""One trial with a list as its pipe: it reports, follows decisions, and resumes with the same results."""

from __future__ import annotations

import hashlib
import pickle
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch

from overnight.models.mlp import MLP
from overnight.protocol import Decision, Finished, Progress, Resumed, StateSaved, TrialSpec
from overnight.search.build_plan import build_plan
from overnight.trial import checkpoint
from overnight.trial.fit import fit
from support.trial_links import USER_MODEL, ListLink, spec_for, weights

QUIET: dict[str, Any] = {
    "accelerator": "cpu",
    "devices": 1,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "num_sanity_val_steps": 0,
}


MIDDLE = "in the middle of an epoch"
BUNDLED, OF_A_USER = "the bundled mlp", "a user's network, plateau schedule"
RESUME_CASES = {
    BUNDLED: ["model.dropout=0.3"],
    OF_A_USER: USER_MODEL,
    "cosine, augmented": ["schedule=cosine", "data.augment.shift=1", "data.augment.rotate=9", "data.augment.flip=true"],
    "one cycle, batch norm": ["schedule=one_cycle", "model.batch_norm=true", "trainer.gradient_clip_val=0.5"],
    "cnn": ["model=cnn", "model.channels=[4]", "model.dropout=0.2", "schedule=one_cycle", "optimizer=sgd"],
}


@pytest.mark.parametrize(
    ("what", "how"),
    [
        (BUNDLED, "killed after a save"),
        (OF_A_USER, MIDDLE),
        *(
            pytest.param(what, how, marks=pytest.mark.long)
            for what in RESUME_CASES
            for how in ("at an epoch's end", MIDDLE, "killed after a save")
            if (what, how) not in ((BUNDLED, "killed after a save"), (OF_A_USER, MIDDLE))
        ),
    ],
)
def test_a_resumed_trial_ends_with_the_same_bits(
    tmp_path: Path, what: str, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    overrides = RESUME_CASES[what]
    whole = ListLink()
    assert fit(spec_for(tmp_path / "whole", *overrides), whole).outcome == "complete"

    monkeypatch.setattr("overnight.trial.trial_callback.POLL_EVERY_S", 0.0)
    folder = tmp_path / "cut"
    if how == "killed after a save":

        class Kill(BaseException):
            pass

        class KillLink(ListLink):
            def ask(self, message: Progress) -> Decision:
                if message.index == 3:
                    raise Kill
                return super().ask(message)

        first: ListLink = KillLink()
        with pytest.raises(Kill):
            fit(spec_for(folder, *overrides, every_s=0), first)
        assert [m.index for m in first.messages if isinstance(m, StateSaved)] == [0, 1, 2]
    else:
        first = ListLink(stop_in_epoch=3) if "middle" in how else ListLink({2: Decision.SAVE_AND_STOP})
        assert fit(spec_for(folder, *overrides), first).outcome == "saved"
        assert len(first.epochs) == 3
    second = ListLink()
    assert fit(spec_for(folder, *overrides), second).outcome == "complete"
    assert isinstance(second.messages[0], Resumed)
    assert list(second.messages[0].history) == first.epochs[:3]
    assert first.curve[:3] + second.curve == whole.curve
    ours, uncut = weights(folder), weights(tmp_path / "whole")
    assert all(torch.equal(ours[name], uncut[name]) for name in uncut)
    assert [p.name for p in folder.iterdir()] == ["weights.ckpt"], "a complete trial has no state"


@pytest.mark.long
@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_a_trial_stopped_again_soon_after_it_resumed_ends_with_the_same_bits(
    tmp_path: Path, optimizer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("overnight.trial.trial_callback.POLL_EVERY_S", 0.0)

    class StopSoon(ListLink):
        batches = 0

        def stop_wanted(self) -> bool:
            self.batches += 1
            return self.batches == 20

    line = f"optimizer={optimizer}"
    fit(spec_for(tmp_path / "whole", line), whole := ListLink())
    fit(spec_for(tmp_path / "cut", line), first := ListLink(stop_in_epoch=3))
    assert fit(spec_for(tmp_path / "cut", line), second := StopSoon()).outcome == "saved"
    assert second.epochs == []
    fit(spec_for(tmp_path / "cut", line), third := ListLink())
    assert first.curve + third.curve == whole.curve


BY_CLOSURE = [
    *("optimizer=sgd", "~optimizer.momentum", "~optimizer.weight_decay", "~optimizer.fused"),
    *("optimizer.lr=0.1", "schedule=cosine"),
]
OPTIMIZERS = {
    "adam": ["schedule=one_cycle"],
    "lbfgs, several losses a step": [*BY_CLOSURE, "optimizer._target_=torch.optim.LBFGS", "+optimizer.max_iter=3"],
    "a user's optimizer, two losses a step": [*BY_CLOSURE, "optimizer._target_=user_networks.Twice"],
}


@pytest.mark.parametrize(
    "optimizer",
    [pytest.param(line, id=name, marks=[pytest.mark.long] * (name != "adam")) for name, line in OPTIMIZERS.items()],
)
def test_several_batches_per_step_train_the_same_network_as_the_trainer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, optimizer: list[str]
) -> None:
    line = ["model.dropout=0.2", *optimizer, "trainer.gradient_clip_val=0.5", "trainer.max_epochs=3"]
    assert fit(spec_for(tmp_path / "batched", *line), batched := ListLink()).outcome == "complete"
    monkeypatch.setattr("overnight.trial.fast_steps.possible", lambda *_: False)
    assert fit(spec_for(tmp_path / "trainer", *line), trainer_link := ListLink()).outcome == "complete"
    assert batched.curve == trainer_link.curve
    assert all(torch.equal(w, weights(tmp_path / "trainer")[n]) for n, w in weights(tmp_path / "batched").items())


def test_a_users_own_training_step_gets_one_batch_at_a_time(tmp_path: Path) -> None:
    spec = spec_for(tmp_path, "model._target_=user_networks.OwnStep", "trainer.max_epochs=1")
    assert fit(spec, link := ListLink()).outcome == "complete"
    assert link.epochs[0].metrics["train/batches"] == 34


@pytest.mark.parametrize(
    ("target", "name", "values"),
    [("HalvesEachEpoch", "rate", [0.05, 0.025, 0.0125]), ("CountsCalls", "calls", [3 * 34, 6 * 34, 9 * 34])],
)
def test_what_a_user_overrides_is_called_as_in_the_usual_loop(
    tmp_path: Path, target: str, name: str, values: list[float]
) -> None:
    spec = spec_for(tmp_path, f"model._target_=user_networks.{target}", "trainer.max_epochs=3")
    assert fit(spec, link := ListLink()).outcome == "complete"
    assert [e.metrics[name] for e in link.epochs] == pytest.approx(values)


def test_another_seed_trains_another_network(tmp_path: Path) -> None:
    one, two = spec_for(tmp_path / "1"), spec_for(tmp_path / "2")
    fit(one, first := ListLink())
    fit(TrialSpec(**{**vars(two), "seed": 12}), second := ListLink())
    assert first.curve != second.curve


def test_a_pruned_trial_ends_at_once_and_keeps_its_state_until_the_outcome_is_recorded(tmp_path: Path) -> None:
    link = ListLink({1: Decision.STOP})
    assert fit(spec_for(tmp_path / "t", every_s=0), link).outcome == "stopped"
    assert len(link.epochs) == 2
    state, _ = checkpoint.load(tmp_path / "t")
    assert state is not None
    assert len(state["overnight"]["history"]) == 1


def test_a_trial_killed_between_its_end_and_its_last_message_is_not_trained_again(tmp_path: Path) -> None:
    fit(spec_for(tmp_path), first := ListLink())
    assert fit(spec_for(tmp_path), second := ListLink()).outcome == "complete"
    assert second.messages == [Resumed(7, tuple(first.epochs))]
    (tmp_path / "weights.ckpt").write_bytes(b"torn")
    fit(spec_for(tmp_path), third := ListLink())
    assert third.curve == first.curve


@pytest.mark.parametrize("ending", [Decision.CONTINUE, Decision.SAVE_AND_STOP], ids=["weights", "state"])
def test_a_state_or_weights_of_another_configuration_are_not_resumed(tmp_path: Path, ending: Decision) -> None:
    fit(spec_for(tmp_path), ListLink({2: ending}))
    finished = fit(spec_for(tmp_path, "optimizer.lr=0.02"), link := ListLink())
    assert len(link.epochs) == 6
    refused = ("state.ckpt: of another study's trial, or of another configuration",)
    assert finished.notes == (refused if ending is Decision.SAVE_AND_STOP else ())


def test_a_stop_before_the_first_boundary_has_nothing_to_save(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("overnight.trial.trial_callback.POLL_EVERY_S", 0.0)
    assert fit(spec_for(tmp_path / "t"), ListLink(stop_in_epoch=0)) == Finished(7, "saved")
    assert checkpoint.load(tmp_path / "t") == (None, [])


def test_a_stop_in_the_last_epoch_lets_it_complete(tmp_path: Path) -> None:
    assert fit(spec_for(tmp_path), ListLink({5: Decision.SAVE_AND_STOP})).outcome == "complete"


def test_it_reports_every_epoch_with_the_usual_metrics(tmp_path: Path) -> None:
    fit(spec_for(tmp_path), link := ListLink())
    assert [e.index for e in link.epochs] == list(range(6))
    assert all(set(e.metrics) == {"train/loss", "val/loss", "val/accuracy", "val/f1"} for e in link.epochs)
    assert link.epochs[-1].metrics["train/loss"] < link.epochs[0].metrics["train/loss"]


def test_the_kept_weights_load_without_overnight_running_and_predict(tmp_path: Path) -> None:
    fit(spec_for(tmp_path), link := ListLink())
    model = MLP.load_from_checkpoint(tmp_path / "weights.ckpt", weights_only=True)
    from overnight.data.digits import Digits

    data = Digits()
    data.setup("fit")
    ((inputs, targets),) = list(data.val_dataloader())
    model.eval()
    accuracy = (model(inputs).argmax(1) == targets).float().mean().item()
    assert accuracy == pytest.approx(link.epochs[-1].metrics["val/accuracy"])


def test_the_kept_weights_are_those_of_the_epoch_that_gives_the_objective(tmp_path: Path) -> None:
    # A learning rate that is too high, so that the best epoch is not the last.
    overrides = ["optimizer=sgd", "optimizer.lr=2.0", "trainer.max_epochs=8"]
    fit(spec_for(tmp_path / "best", *overrides, objective="best"), link := ListLink())
    values = [e.metrics["val/accuracy"] for e in link.epochs]
    assert max(values) > values[-1]
    from overnight.data.digits import Digits

    data = Digits()
    data.setup("fit")
    ((inputs, targets),) = list(data.val_dataloader())
    model = MLP.load_from_checkpoint(tmp_path / "best" / "weights.ckpt", weights_only=True)
    model.eval()
    assert (model(inputs).argmax(1) == targets).float().mean().item() == pytest.approx(max(values))


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["+model.classes=9"], r"model\.classes: a label must be from 0 to 8, .* got 9"),
        (["data.task=regression"], r"data\.task: must be multiclass, as the data module says, got regression"),
        (["model=cnn", "model.channels=[4,4,4,4]"], r"model\.channels: each block halves the image"),
        (["data.normalise=zscore"], r"data\.normalise: must be one of none, minmax, standard"),
        (["schedule=one_cycle", "schedule.warmup=2.0"], r"schedule\.warmup: must be above 0 and below 1"),
    ],
)
def test_a_setting_that_does_not_fit_the_data_is_refused_with_its_key(
    tmp_path: Path, overrides: list[str], words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        fit(spec_for(tmp_path, *overrides), ListLink())


def test_a_schedule_reaches_the_optimizer_and_ends_with_the_trial(tmp_path: Path) -> None:
    spec = spec_for(tmp_path, "schedule=cosine", "trainer.max_epochs=2", "optimizer.lr=0.01")
    from overnight.trial.components import build

    data, model = build(spec.config)
    trainer = pl.Trainer(max_epochs=2, logger=False, enable_checkpointing=False, **QUIET)
    trainer.fit(model, datamodule=data)
    assert trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(0, abs=1e-12)


def test_trainer_test_gives_the_test_figures_and_a_confusion_matrix(tmp_path: Path) -> None:
    from overnight.trial.components import build

    fit(spec_for(tmp_path), ListLink())
    data, model = build(spec_for(tmp_path).config)
    model.load_state_dict(weights(tmp_path))
    ((found,)) = pl.Trainer(logger=False, **QUIET).test(model, datamodule=data, verbose=False)
    assert set(found) == {"test/loss", "test/accuracy", "test/f1"}
    counts = model.confusion_counts
    assert counts.sum() == 360
    assert counts.trace() / 360 == pytest.approx(found["test/accuracy"])


def test_data_with_a_cache_argument_gets_the_cache_of_the_home(tmp_path: Path) -> None:
    spec = spec_for(tmp_path / "t", "data=fake", "model.hidden_sizes=[4]", "trainer.max_epochs=1", cache=tmp_path / "c")
    fit(spec, link := ListLink())
    assert len(link.epochs) == 1
    assert (tmp_path / "c" / "fake" / "images.npy").exists()


def test_a_task_in_the_config_reaches_the_model_if_the_data_module_has_none() -> None:
    from overnight.trial.components import build

    config = build_plan(["search=none"]).config({})
    config["data"] = {"_target_": "user_networks.Yes", "task": "binary"}
    config["model"]["input_shape"] = [2]
    _, model = build(config)
    assert type(model.task).__name__ == "Binary"


def test_a_target_that_is_no_lightning_module_is_refused_by_name(tmp_path: Path) -> None:
    spec = spec_for(tmp_path)
    spec.config["model"] = {"_target_": "torch.nn.Identity"}
    with pytest.raises(TypeError, match=r"model\._target_: must be a LightningModule"):
        fit(spec, ListLink())


# Saved states


def test_of_two_states_the_newest_intact_one_is_loaded(tmp_path: Path) -> None:
    for step in range(3):
        checkpoint.save(tmp_path, {"step": step})
    assert checkpoint.load(tmp_path) == ({"step": 2}, [])
    (tmp_path / "state.ckpt").write_bytes((tmp_path / "state.ckpt").read_bytes()[:-1])
    state, refused = checkpoint.load(tmp_path)
    assert state == {"step": 1}
    assert refused == ["state.ckpt: its bytes are not the ones that were written"]


class Hostile:
    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.canary,))


@pytest.mark.parametrize("kind", ["empty", "truncated", "flipped", "foreign", "hostile"])
def test_a_damaged_or_foreign_state_is_refused(tmp_path: Path, kind: str) -> None:
    checkpoint.save(tmp_path, {"weights": torch.arange(1000.0)})
    path, canary = tmp_path / "state.ckpt", tmp_path / "canary"
    data = bytearray(path.read_bytes())
    if kind == "empty":
        data = bytearray()
    elif kind == "truncated":
        data = data[:-100]
    elif kind == "flipped":
        data[len(data) // 2] ^= 1
    elif kind == "foreign":
        torch.save({"a": 1}, path)
        data = bytearray(path.read_bytes())
    else:
        payload = pickle.dumps(Hostile(canary))
        data = bytearray(checkpoint._MAGIC + hashlib.sha256(payload).hexdigest().encode() + b"\n" + payload)
    path.write_bytes(bytes(data))
    with pytest.raises(checkpoint.UnusableCheckpoint, match=r"^state\.ckpt: "):
        checkpoint.read(path)
    assert not canary.exists()


def test_a_refused_state_is_noted_and_the_trial_starts_over(tmp_path: Path) -> None:
    fit(spec_for(tmp_path), ListLink({2: Decision.SAVE_AND_STOP}))
    (tmp_path / "state.ckpt").write_bytes(b"rubbish")
    finished = fit(spec_for(tmp_path), link := ListLink())
    assert finished.notes == ("state.ckpt: not a state that overnight wrote",)
    assert len(link.epochs) == 6
