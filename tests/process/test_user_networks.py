"""Networks and data of users, which import nothing of overnight, in the common ways to write them."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from overnight import api
from overnight.protocol import Decision, Resumed, StateSaved
from overnight.runner.supervisor import Supervisor
from overnight.search.build_plan import build_plan
from overnight.study.open import open_study
from overnight.system import forkserver
from overnight.tracking.sync import MlflowSync
from overnight.trial import lightning_packages, targets, trial_callback
from overnight.trial.components import build
from overnight.trial.fit import fit
from support.trial_links import ListLink, weights
from support.user_trials import HABITS, MANUAL, USER_PACKAGE, needs_lightning, spec_for

# Lightning's warning for a schedule that monitors a metric which no epoch has logged yet.
UNAVAILABLE = pytest.mark.filterwarnings("ignore:ReduceLROnPlateau conditioned on metric:RuntimeWarning")


CASES = {
    "DataLoaders and a schedule": {"model": f"{USER_PACKAGE}Classifier"},
    "workers": {"model": f"{USER_PACKAGE}Classifier", "of_data": {"num_workers": 2, "noise": 0.3}, "epochs": 4},
    "a schedule that asks for the number of steps": {"model": f"{USER_PACKAGE}OneCycle", "epochs": 3},
    "manual optimisation, two optimizers": {"model": MANUAL},
    "early stopping": {"model": f"{HABITS}StopsEarly", "epochs": 9},
    "validation in every second epoch": {"model": f"{HABITS}ValidatesEverySecondEpoch", "arguments": {"lr": 0.1}},
    "a DictConfig kept": {
        "model": f"{HABITS}TakesAConfig",
        "arguments": {"cfg": {"layers": [[64, 10]], "lr": 0.01}, "_convert_": "none"},
    },
    "lightning.pytorch": {"model": "user_package.modern.Net", "data": "user_package.modern.Data"},
    "lightning.pytorch on the bundled digits": {
        "model": "user_package.modern.Net",
        "data": "overnight.data.digits.Digits",
    },
}


@UNAVAILABLE
@pytest.mark.parametrize(
    "case",
    [
        "DataLoaders and a schedule",
        *(
            pytest.param(n, marks=[pytest.mark.long, *[needs_lightning] * ("lightning." in n)])
            for n in CASES
            if n != "DataLoaders and a schedule"
        ),
    ],
)
def test_a_users_network_stopped_anywhere_resumes_to_the_same_bits(
    tmp_path: Path, case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = CASES[case]
    whole = ListLink()
    assert fit(spec_for(tmp_path / "whole", **options), whole).outcome == "complete"
    assert all("val/accuracy" in e.metrics for e in whole.epochs) or "second epoch" in case

    monkeypatch.setattr(trial_callback, "POLL_EVERY_S", 0.0)
    folder, last = tmp_path / "cut", len(whole.epochs) - 1
    first = ListLink({last - 1: Decision.SAVE_AND_STOP}, stop_in_epoch=min(2, last - 1) or None)
    assert fit(spec_for(folder, **options), first).outcome == "saved"
    second = ListLink({last - 1: Decision.SAVE_AND_STOP})
    assert fit(spec_for(folder, **options), second).outcome == "saved" or last == 1
    assert fit(spec_for(folder, **options), third := ListLink()).outcome == "complete"
    assert isinstance(third.messages[0], Resumed) or last == 1
    assert first.curve + second.curve + third.curve == whole.curve
    ours, uncut = weights(folder), weights(tmp_path / "whole")
    assert uncut
    assert all(torch.equal(ours[name], uncut[name]) for name in uncut)


@pytest.mark.long
def test_a_users_network_is_pruned_and_saved_periodically(tmp_path: Path) -> None:
    for model in (f"{USER_PACKAGE}Classifier", MANUAL):
        link, folder = ListLink({2: Decision.STOP}), tmp_path / model
        assert fit(spec_for(folder, model, every_s=0), link).outcome == "stopped"
        assert [m.index for m in link.messages if isinstance(m, StateSaved)] == [0, 1]
        assert not (folder / "weights.ckpt").exists()


def test_saved_hyperparameters_are_kept_if_they_are_plain_data(tmp_path: Path) -> None:
    from user_package.with_loaders import Classifier

    spec = spec_for(tmp_path, f"{USER_PACKAGE}Classifier", arguments={"layers": [[64, 5], [5, 10]]}, epochs=1)
    fit(spec, ListLink())
    kept = torch.load(tmp_path / "weights.ckpt", weights_only=True)["hyper_parameters"]
    assert kept == {"layers": [[64, 5], [5, 10]], "lr": 0.01, "dropout": 0.2, "gamma": 0.7}, "without the class of ReLU"
    model = Classifier.load_from_checkpoint(tmp_path / "weights.ckpt", weights_only=True)
    assert model.model[2].weight.shape == (5, 64)


@pytest.mark.parametrize(("model", "epochs"), [("StopsEarly", 4), ("SetsShouldStop", 2)])
def test_a_network_that_stops_by_itself_is_complete(tmp_path: Path, model: str, epochs: int) -> None:
    assert fit(spec_for(tmp_path, f"{HABITS}{model}"), link := ListLink()).outcome == "complete"
    assert len(link.epochs) == epochs
    assert [p.name for p in tmp_path.iterdir()] == ["weights.ckpt"], "a user's ModelCheckpoint writes nothing"


@UNAVAILABLE
def test_a_metric_is_reported_in_the_epochs_that_logged_it_and_no_other(tmp_path: Path) -> None:
    fit(spec_for(tmp_path, f"{HABITS}ValidatesEverySecondEpoch"), link := ListLink())
    assert ["val/accuracy" in e.metrics for e in link.epochs] == [False, True] * 3
    assert all("train/loss_epoch" in e.metrics for e in link.epochs)


def test_a_network_without_validation_is_scored_by_a_training_metric(tmp_path: Path) -> None:
    spec = spec_for(tmp_path, f"{HABITS}NeverValidates", f"{HABITS}NoValidationData", metric="train/loss_epoch")
    assert fit(spec, link := ListLink()).outcome == "complete"
    assert all(set(e.metrics) == {"train/loss", "train/loss_step", "train/loss_epoch"} for e in link.epochs)


def test_each_of_several_validation_sets_has_its_own_metric(tmp_path: Path) -> None:
    fit(
        spec_for(tmp_path, f"{HABITS}SeesTwoValidationSets", f"{HABITS}TwoValidationSets", epochs=1), link := ListLink()
    )
    names = set(link.epochs[0].metrics)
    assert {"val/accuracy/dataloader_idx_0", "val/accuracy/dataloader_idx_1"} <= names


# The two Lightning packages


@needs_lightning
def test_a_trial_is_trained_by_the_lightning_package_of_its_model(tmp_path: Path) -> None:
    spec = spec_for(tmp_path, "user_package.modern.Net", "user_package.modern.Data")
    data, model = build(spec.config)
    assert lightning_packages.lightning_of(data, model).__name__ == "lightning.pytorch"
    data, model = build(spec_for(tmp_path, f"{USER_PACKAGE}Classifier").config)
    assert lightning_packages.lightning_of(data, model).__name__ == "pytorch_lightning"


@needs_lightning
def test_a_model_of_one_lightning_with_data_of_the_other_is_refused_with_what_to_do(tmp_path: Path) -> None:
    spec = spec_for(tmp_path, "user_package.modern.Net")
    with pytest.raises(TypeError) as error:
        fit(spec, ListLink())
    assert str(error.value) == (
        "data._target_: must be of the model's Lightning, whose classes do not mix with the other's, got "
        "user_package.with_loaders.DigitsData of pytorch_lightning and user_package.modern.Net of lightning.pytorch; "
        "import the same one in both"
    )


# Targets that cannot be imported


def test_a_target_that_cannot_be_imported_is_refused_with_the_searched_folders_and_a_remedy(tmp_path: Path) -> None:
    (tmp_path / "broken_at_import.py").write_text("import no_such_package_at_all\n")
    sys.path.insert(0, str(tmp_path))
    try:
        messages = {}
        for target in ("nowhere.Net", "user_package.nothing.Net", f"{USER_PACKAGE}Clasifier", "broken_at_import.Net"):
            with pytest.raises(ImportError) as error:
                fit(spec_for(tmp_path, target), ListLink())
            messages[target] = str(error.value)
    finally:
        sys.path.remove(str(tmp_path))
    assert all(m.startswith("model._target_: must ") and repr(t) in m for t, m in messages.items())
    missing = messages["nowhere.Net"]
    assert f"there is no module nowhere in {tmp_path}, " in missing
    assert "start overnight in the folder that holds nowhere.py, or put that folder on PYTHONPATH" in missing
    assert re.search(r"user_package \(.*__init__.py\) has no nothing", messages["user_package.nothing.Net"])
    assert "has no Clasifier; did you mean Classifier?" in messages[f"{USER_PACKAGE}Clasifier"]
    assert "raised ModuleNotFoundError: No module named 'no_such_package_at_all'" in messages["broken_at_import.Net"]


def test_a_nested_target_is_checked_too() -> None:
    config = {"data": {"_target_": "torch.nn.Identity", "transforms": [{"_target_": "torchvision.tansforms.ToTensor"}]}}
    with pytest.raises(
        ImportError, match=r"^data\.transforms\.0\._target_: .* has no tansforms; did you mean transforms"
    ):
        targets.find_all(config, "data")


# In a study


def conf_of(folder: Path, model: dict[str, Any], search: dict[str, str]) -> Path:
    """Write a user's config folder."""
    files = {"model": model, "data": {"_target_": f"{USER_PACKAGE}DigitsData", "batch_size": 50}, "search": search}
    for group, content in files.items():
        (folder / "conf" / group).mkdir(parents=True)
        (folder / "conf" / group / "custom.yaml").write_text(yaml.safe_dump(content))
    return folder / "conf"


CUSTOM = ("model=custom", "data=custom", "slots=1")


@pytest.mark.long
def test_a_network_with_loaders_is_tuned_from_its_own_configs_and_pruned(
    tune: Callable[..., api.Result], tmp_path: Path
) -> None:
    space = {"model.lr": "choice(1e-2, 1e-9)", "data.batch_size": "int(interval(20, 60))"}
    conf = conf_of(tmp_path, {"_target_": f"{USER_PACKAGE}Classifier", "lr": 1e-2}, space)
    pruner = ("scheduler=median", "scheduler.startup_trials=1", "scheduler.warmup_epochs=0")
    result = tune(*CUSTOM, *pruner, "study.trials=6", "trainer.max_epochs=3", "sampler=random", config_dir=conf)
    assert result.study_name == "custom-custom"
    ends = {(r.state, r.params["model.lr"]) for r in result.records}
    assert ends == {("complete", 1e-2), ("pruned", 1e-9)}
    assert result.best is not None
    assert result.best.objective is not None
    assert result.best.objective > 0.5


@pytest.mark.long
def test_a_network_with_manual_optimisation_is_stopped_in_a_study_and_resumed(
    tune: Callable[..., api.Result], home: Path, tmp_path: Path
) -> None:
    conf = conf_of(tmp_path, {"_target_": MANUAL, "lr": 2e-3}, {"model.lr": "tag(log, interval(1e-4, 1e-2))"})
    lines = (*CUSTOM, "study.trials=2", "trainer.max_epochs=60", "scheduler=none", "pictures.when=never")
    study = build_plan([f"home={home}", *lines], conf)

    def stop_in_trial_one(worker: Supervisor) -> None:
        if 1 in worker.slots.running and worker.slots.running[1].index >= 1:
            worker.stop()

    forkserver.warm_up()
    session, _ = open_study(study)
    worker = Supervisor(session, MlflowSync(study, session.attributes.uid))
    assert worker.run(stop_in_trial_one).stop_reason == "stopped"
    stopped = [(r.state, len(r.history)) for r in session.records()]
    session.close()
    assert stopped[0] == ("complete", 60)
    assert stopped[1][0] == "paused"
    assert 2 <= stopped[1][1] < 60
    result = tune(*lines, config_dir=conf)
    assert [r.state for r in result.records] == ["complete"] * 2
    assert [[e.index for e in r.history] for r in result.records] == [list(range(60))] * 2
