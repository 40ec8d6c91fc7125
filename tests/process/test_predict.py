"""The use of a winner: its config, its model in MLflow's registry, and its predictions for new rows."""

from __future__ import annotations

import csv
import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from sklearn.datasets import load_digits
from user_package.with_loaders import DigitsData

from overnight import api
from overnight.cli.main import cli
from overnight.config.compose import study_location
from overnight.config.paths import StudyLocation
from overnight.config.problems import ConfigError
from overnight.data.images import MNIST
from overnight.protocol import Exported, ExportSpec, PredictSpec
from overnight.report import report, winner, winner_config
from overnight.report.live import NullScreen
from overnight.runner import trial_process
from overnight.search.build_plan import build_plan
from overnight.search.plan import random_point
from overnight.search.record import TrialRecord, config_of
from overnight.study.snapshot import StudyView, view
from overnight.system import forkserver
from overnight.tracking import registry
from overnight.trial.export import export
from overnight.trial.fit import fit
from overnight.trial.predict import predict
from support.mlflow_store import children, client_of
from support.picture_files import write_idx
from support.trial_links import KEYS, ListLink, spec_for

WON = (
    "study.name=won", "study.trials=4", "trainer.max_epochs=3", "study.confirm.top=1", "study.confirm.seeds=2",
    "optimizer.lr=tag(log,interval(3e-3,3e-2))", "pictures.when=never", "preflight=never", "scheduler=none",
)  # fmt: skip


@pytest.fixture(scope="module")
def home_of_won(tmp_path_factory: pytest.TempPathFactory, empty_store: Path) -> Path:
    """Return the home of a confirmed study, which has a config and a model of its winner."""
    home = tmp_path_factory.mktemp("won")
    shutil.copy(empty_store, home / "mlflow.db")
    result = api.run(build_plan([f"home={home}", *WON]), screen=NullScreen())
    assert (result.stop_reason, result.mlflow_error, result.winner_notes) == (
        "complete",
        None,
        ("model: models:/won@champion",),
    )
    return home


@pytest.fixture
def won(home_of_won: Path) -> StudyView:
    found, _ = view(study_location([f"home={home_of_won}"]))
    assert found is not None
    return found


def draw_pictures(folder: Path, rows: np.ndarray, size: int = 64) -> Path:
    """Write a picture of each row of digits, 0 to 16, white on black and enlarged; return the folder."""
    folder.mkdir()
    for i, row in enumerate(rows):
        bytes_ = (row.reshape(8, 8) / 16 * 255).round().astype(np.uint8)
        Image.fromarray(bytes_).resize((size, size), Image.Resampling.NEAREST).save(folder / f"{i:03}.png")
    return folder


def predicted_by_hand(weights: Path, rows: torch.Tensor) -> torch.Tensor:
    """Predict raw digits with a checkpoint's network: normalise by hand, forward, softmax."""
    from overnight.trial.components import build

    kept = torch.load(weights, weights_only=True)
    data, model = build(kept["overnight"]["config"])
    data.setup("fit")
    model.load_state_dict(kept["state_dict"])
    images, _ = load_digits(return_X_y=True)
    train = torch.from_numpy(images).float()[data._parts["train"].rows]
    low, high = train.min(), train.max()
    with torch.no_grad():
        return model.eval()((rows - low) / (high - low)).softmax(1)


# The config -----------------------------------------------------------------------------------------------------------


@pytest.mark.long
def test_the_winner_is_trained_again_by_its_experiment_name(home_of_won: Path, won: StudyView) -> None:
    best = winner.finding.from_view(won).best
    assert best is not None
    line = [f"home={home_of_won}", "+experiment=best_won"]
    again = build_plan(line, searching=False)
    assert again.config({}) == config_of(best, won.plan)
    assert again.settings.seed == won.plan.settings.seed
    assert set(build_plan(line).space.keys()) == set(won.plan.space.keys()) - {"optimizer", "optimizer.momentum"}
    shown = CliRunner().invoke(cli, ["train", "--cfg", *line])
    assert shown.exit_code == 0
    with pytest.raises(ConfigError, match="experiment: must be one of"):
        build_plan(["home=/elsewhere", "+experiment=best_won"])


@pytest.mark.long
@pytest.mark.parametrize(
    "line",
    [
        ["optimizer=adam,sgd", "data.augment.shift=2"],
        ["model=mlp,cnn", "schedule=one_cycle"],
        ["search=none", *(f"~model.{key}" for key in KEYS), "+model.lr=choice(0.1,0.03)", "model._target_=a.Net"],
        ["data=purchase", "model.hidden_sizes=[3],[4,5]", "seed=7", "trainer.max_epochs=3"],
    ],
    ids=["groups", "models", "keys removed and added", "lists"],
)
def test_a_winners_config_composes_to_the_configuration_of_its_trial(tmp_path: Path, line: list[str]) -> None:
    home = tmp_path / "a home, with 'signs"
    study = build_plan([*line, "study.name=s"])
    study = study.relocated(StudyLocation(str(home)))
    for seed in range(2):
        values = random_point(study, random.Random(seed))
        best = TrialRecord(3, "complete", values, (), 0.9, None, "", 0.0, 1.0, values=values)
        assert winner_config.write(study, best) == ()
        escaped = str(home).replace("'", "\\'")
        again = build_plan([f"home='{escaped}'", "+experiment=best_s"])
        assert again.config({}) == config_of(best, study)
        rest = set(study.space.keys()) - set(study.choices)
        assert set(again.space.keys()) <= rest
        assert again.settings.trainer == study.settings.trainer


def test_a_winners_config_that_a_user_changed_is_not_overwritten(tmp_path: Path) -> None:
    study = build_plan(["study.name=s"]).relocated(StudyLocation(str(tmp_path)))
    best = TrialRecord(0, "complete", {}, (), 0.9, None, "", 0.0, 1.0, values={})
    assert winner_config.write(study, best) == ()
    assert winner_config.write(study, best) == (), "an unchanged file is overwritten"
    file = tmp_path / "winners" / "experiment" / "best_s.yaml"
    file.write_text(file.read_text().replace("lr: 0.001", "lr: 0.002") + "# mine\n")
    mine = file.read_text()
    assert winner_config.write(study, best) == (file,)
    assert file.read_text() == mine
    assert winner_config.written_files(study.settings.location, "s") == []
    file.write_bytes(mine.encode("utf-16"))
    assert winner_config.write(study, best) == (file,), "an editor has saved it in another encoding"


# The model ------------------------------------------------------------------------------------------------------------


@pytest.mark.long
def test_mlflows_champion_predicts_raw_rows_as_the_checkpoint_does_and_contains_no_pickle(
    home_of_won: Path, won: StudyView
) -> None:
    images, _ = load_digits(return_X_y=True)
    rows = torch.from_numpy(images[:7]).float().reshape(-1, 1, 8, 8)
    expected = predicted_by_hand(winner.find_checkpoint(won).path, rows).numpy()
    mlflow.set_tracking_uri(f"sqlite:///{home_of_won}/mlflow.db")
    try:
        model = mlflow.pyfunc.load_model("models:/won@champion")
        network = mlflow.pytorch.load_model("models:/won@champion")
        assert np.allclose(model.predict(rows.numpy()), expected, atol=1e-5)
        assert np.allclose(network(rows).detach(), expected, atol=1e-5)
        assert [tuple(i.shape) for i in model.metadata.signature.inputs] == [(-1, 1, 8, 8)]
        assert [tuple(o.shape) for o in model.metadata.signature.outputs] == [(-1, 10)]
        example = model.input_example
        assert model.predict(example).shape == (2, 10)
    finally:
        mlflow.set_tracking_uri(None)
    assert not list(home_of_won.rglob("*.pkl"))
    assert not list((home_of_won / "artifacts").rglob("*.pth"))
    version = client_of(home_of_won).get_model_version_by_alias("won", "champion")
    parent = client_of(home_of_won).get_run(won.parent_run_id)
    assert version.run_id == parent.info.run_id
    assert version.tags["overnight.winner"] == parent.data.tags["overnight.winner"]


def test_the_same_winner_is_registered_once(home_of_won: Path, won: StudyView) -> None:
    assert winner.register(won) == "model: models:/won@champion"
    assert len(client_of(home_of_won).search_model_versions("name = 'won'")) == 1
    assert registry.count(won.plan.settings.location, "won", [won.uid])[1] == 1


def test_a_failed_export_is_reported_in_one_line(tmp_path: Path) -> None:
    overrides = ["model._target_=user_networks.Plain", *(f"~model.{key}" for key in KEYS), "trainer.max_epochs=1"]
    assert fit(spec_for(tmp_path, *overrides), ListLink()).outcome == "complete"
    forkserver.warm_up()
    made = trial_process.run_one_shot(ExportSpec(tmp_path / "weights.ckpt", tmp_path), tmp_path / "log", 120)
    assert isinstance(made, Exported)
    assert made.file is None
    assert made.error.startswith("torch.export can't write it: NotImplementedError: ")
    assert "\n" not in made.error


# Predictions ----------------------------------------------------------------------------------------------------------


def test_enlarged_pictures_of_digits_get_the_predictions_of_the_digits(won: StudyView, tmp_path: Path) -> None:
    images, _ = load_digits(return_X_y=True)
    folder = draw_pictures(tmp_path / "drawn", images[:20])
    out = tmp_path / "answers.csv"
    line = ["predict", "won", str(folder), f"home={won.plan.settings.home}", "--out", str(out), "--json"]
    done = CliRunner().invoke(cli, line)
    assert done.exit_code == 0, done.output
    output = json.loads(done.stdout.splitlines()[-1])
    expected = predicted_by_hand(
        winner.find_checkpoint(won).path, torch.from_numpy(images[:20]).float().reshape(-1, 1, 8, 8)
    )
    assert [p["source"] for p in output["predictions"]] == [f"{i:03}.png" for i in range(20)]
    # A picture has 256 shades and the digits have 17, so that a probability may differ slightly.
    assert [p["answer"] for p in output["predictions"]] == expected.argmax(1).tolist()
    assert [p["probability"] for p in output["predictions"]] == pytest.approx(expected.max(1).values.tolist(), abs=0.01)
    with open(out, newline="") as file:
        rows = list(csv.DictReader(file))
    assert [float(r["probability"]) for r in rows] == [p["probability"] for p in output["predictions"]]


def test_inverted_pictures_are_noticed_and_can_be_inverted(won: StudyView, tmp_path: Path) -> None:
    images, _ = load_digits(return_X_y=True)
    weights = winner.find_checkpoint(won).path
    right = predict(PredictSpec(weights, draw_pictures(tmp_path / "right", images[:5])))
    folder = draw_pictures(tmp_path / "dark on light", 16 - images[:5])
    assert right.notes == ()
    (note,) = predict(PredictSpec(weights, folder)).notes
    assert note.startswith("5 of 5 images are dark on light")
    assert "--invert" in note
    turned = predict(PredictSpec(weights, folder, invert=True))
    assert [r.answer for r in turned.rows] == [r.answer for r in right.rows]
    assert turned.notes == ()


class SmallMNIST(MNIST):
    validation_rows = 20


def test_a_network_predicts_without_its_training_data(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    root = tmp_path / "data" / "SmallMNIST"  # a data set's folder is named after its class in torchvision
    for part, count in (("train", 100), ("t10k", 10)):
        write_idx(root.parent / "MNIST" / "raw" / f"{part}-images-idx3-ubyte", rng.integers(0, 200, (count, 28, 28)))
        write_idx(root.parent / "MNIST" / "raw" / f"{part}-labels-idx1-ubyte", np.arange(count) % 10)
    line = ["data=mnist", f"data.root={root.parent}", "data._target_=test_predict.SmallMNIST", "trainer.max_epochs=1"]
    assert fit(spec_for(tmp_path, *line), ListLink()).outcome == "complete"
    picture = rng.integers(0, 200, (28, 28)).astype(np.uint8)
    Image.fromarray(picture).save(tmp_path / "one.png")
    with_data = predict(PredictSpec(tmp_path / "weights.ckpt", tmp_path / "one.png"))
    shutil.rmtree(root.parent)
    assert predict(PredictSpec(tmp_path / "weights.ckpt", tmp_path / "one.png")) == with_data


def test_all_wrong_pictures_are_listed_in_one_error(won: StudyView, tmp_path: Path) -> None:
    weights = winner.find_checkpoint(won).path
    (tmp_path / "none").mkdir()
    for path, words in ((tmp_path / "none", "must hold images"), (tmp_path / "a.csv", "must be one (.png, .jpg")):
        with pytest.raises(ConfigError, match=words.replace("(", r"\(")):
            predict(PredictSpec(weights, path))
    folder = draw_pictures(tmp_path / "some", load_digits(return_X_y=True)[0][:2])
    (folder / "torn.png").write_bytes((folder / "000.png").read_bytes()[:40])
    (folder / "text.jpg").write_text("no picture")
    with pytest.raises(ConfigError) as refused:
        predict(PredictSpec(weights, folder))
    assert [Path(p.split(":")[0]).name for p in refused.value.problems] == ["text.jpg", "torn.png"]


def test_a_trial_without_weights_is_refused_with_a_remedy(
    won: StudyView, overnight: Callable[..., Any], tmp_path: Path
) -> None:
    lost = next(r.number for r in won.records if r.number != won.best.number)
    with pytest.raises(ConfigError, match=r"has no weights: study.keep_checkpoints keeps those of the best 1"):
        winner.find_checkpoint(won, lost)
    with pytest.raises(ConfigError, match="must be one of won's, got 99; it has trials 0 to 3"):
        winner.find_checkpoint(won, 99)
    done = overnight("predict", "won", str(tmp_path / "gone.png"), f"home={won.plan.settings.home}", "--out", "a.txt")
    assert (done.returncode, done.stderr) == (2, "--out: must end in .csv, got 'a.txt'; rename it\n")
    done = overnight("predict", "won", "gone.png", f"home={won.plan.settings.home}")
    assert done.returncode == 2
    assert done.stderr.startswith("FILE: must be an image, a folder of images or a .csv file, got 'gone.png'")


@pytest.mark.long
def test_a_users_network_is_exported_and_predicts_once_its_data_has_prepare_inputs(
    tmp_path: Path,
) -> None:
    there = "user_package.with_loaders."
    line = [
        f"model._target_={there}Classifier", *(f"~model.{key}" for key in KEYS), f"data._target_={there}DigitsData",
        "~data.split_seed", "~data.normalise", "~data.subset", "~data.augment", "~data.task", "trainer.max_epochs=1",
    ]  # fmt: skip
    assert fit(spec_for(tmp_path, *line), ListLink()).outcome == "complete"
    made = export(ExportSpec(tmp_path / "weights.ckpt", tmp_path))
    assert made.error == ""
    assert (made.input_description, made.output_description) == (
        "rows as the data module hands them over",
        "what the network's forward returns",
    )
    assert np.array(made.example_outputs).shape == (2, 10)
    image = draw_pictures(tmp_path / "one", load_digits(return_X_y=True)[0][:1])
    with pytest.raises(ConfigError, match=r"DigitsData must say how raw .* has no method prepare_inputs\(inputs\)"):
        predict(PredictSpec(tmp_path / "weights.ckpt", image))
    prepared = [*line[:-1], "trainer.max_epochs=1", "data._target_=test_predict.DigitsWithInputs"]
    assert fit(spec_for(tmp_path / "prepared", *prepared), ListLink()).outcome == "complete"
    (row,) = predict(PredictSpec(tmp_path / "prepared" / "weights.ckpt", image)).rows
    assert row.answer in [f"digit {i}" for i in range(10)]
    assert row.probability is not None
    assert 0.1 <= row.probability <= 1


class DigitsWithInputs(DigitsData):
    """What a user adds to a data module so that its networks can predict."""

    input_shape, pixel_max = (1, 8, 8), 16
    class_names = tuple(f"digit {i}" for i in range(10))

    def prepare_inputs(self, inputs: torch.Tensor) -> torch.Tensor:
        return inputs / 16


# The test set --------------------------------------------------------------------------------------------------------


@pytest.mark.long
def test_the_test_set_is_asked_of_a_trial_with_weights_and_the_report_says_so(
    home_of_won: Path, won: StudyView, tmp_path: Path
) -> None:
    home = tmp_path / "home"
    shutil.copytree(home_of_won, home)
    kept = next(r.number for r in won.records if won.plan.paths.checkpoint(r.number).joinpath("weights.ckpt").exists())
    shown = CliRunner().invoke(cli, ["test", f"won/{kept}", f"home={home}"])
    assert shown.exit_code == 0, shown.output
    assert f"won/{kept}: test/accuracy" in shown.output
    assert "no longer unseen" in shown.output

    found, _ = view(study_location([f"home={home}"]))
    assert found is not None
    scores = found.tested_by_hand[kept]["metrics"]
    assert found.tested_by_hand.keys() == {kept}
    run = children(home)[kept]
    assert run.data.metrics["test/accuracy"] == scores["test/accuracy"]
    assert "overnight.tested" in run.data.tags
    (line,) = (c for c in report.build_report(found).caveats if "no longer unseen" in c)
    assert f"trial-{kept:04}" in line
    assert not any("unseen" in c for c in report.build_report(won).caveats)
    assert_equal_without_tests(home, found)

    answer = CliRunner().invoke(cli, ["test", "won", f"home={home}"])
    assert "measured for the study's answer; not asked again" in answer.output
    assert view(study_location([f"home={home}"]))[0].tested_by_hand.keys() == {kept}  # type: ignore[union-attr]

    other = next(r.number for r in won.records if r.number != kept)
    refused = CliRunner().invoke(cli, ["test", f"won/{other}", f"home={home}"])
    assert isinstance(refused.exception, ConfigError)
    assert "--test` trains it again" in str(refused.exception)

    (home / "optuna.db").unlink()
    assert CliRunner().invoke(cli, ["doctor", f"home={home}"]).exit_code == 0
    rebuilt, _ = view(study_location([f"home={home}"]))
    assert rebuilt is not None
    assert rebuilt.tested_by_hand[kept]["metrics"] == scores
    assert [len(r.history) for r in rebuilt.records] == [len(r.history) for r in won.records]


def assert_equal_without_tests(home: Path, found: StudyView) -> None:
    """Assert that a run has all epochs of its trial, with the scores on the test set beside them."""
    client, runs = client_of(home), children(home)
    for r in found.records:
        curve = client.get_metric_history(runs[r.number].info.run_id, "val/accuracy")
        assert [m.value for m in curve] == [e.metrics["val/accuracy"] for e in r.history]


@pytest.mark.long
def test_train_evaluates_its_network_on_the_test_set_if_asked(tmp_path: Path, empty_store: Path) -> None:
    shutil.copy(empty_store, tmp_path / "mlflow.db")
    line = ["train", "--test", f"home={tmp_path}", "trainer.max_epochs=1"]
    shown = CliRunner().invoke(cli, line)
    assert shown.exit_code == 0, shown.output
    assert "train/0: test/accuracy" in shown.output
    assert "no longer unseen" in shown.output
