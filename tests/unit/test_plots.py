"""The plots of a trained network's weights, curves, predictions and errors are correct."""

from __future__ import annotations

import json
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib import colors
from torch import nn

from overnight.data.digits import Digits
from overnight.models.mlp import MLP
from overnight.plots import draw as drawing
from overnight.plots import figures
from overnight.plots.draw import NotDrawable, _Predictions, draw, first_weights
from overnight.protocol import DrawSpec
from overnight.trial.fit import fit
from support.trial_links import ListLink, spec_for
from support.user_trials import HABITS, MANUAL, USER_PACKAGE, needs_lightning
from support.user_trials import spec_for as user_spec

ALL = ("weights", "curves", "confusion", "mistakes", "predictions")


def draw_spec(folder: Path, weights: Path | None, link: ListLink, look: str = "white_zero") -> DrawSpec:
    history = tuple((e.index, e.metrics) for e in link.epochs)
    return DrawSpec("digits-mlp trial-0003", folder, weights, history, "val/accuracy", ALL, look, stamp="complete")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ListLink]:
    folder = tmp_path_factory.mktemp("trained")
    fit(spec_for(folder, "model.hidden_sizes=[12]", "optimizer.lr=0.01"), link := ListLink())
    return folder / "weights.ckpt", link


@pytest.fixture(scope="module")
def drawn(trained: tuple[Path, ListLink], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("drawn")
    draw(draw_spec(folder, *trained))
    return folder


def descriptions_of(folder: Path) -> dict[str, str]:
    lines = (folder / "in-words.md").read_text().splitlines()[2:]
    return {name: text for name, _, text in (line.removeprefix("- ").partition(": ") for line in lines)}


def test_a_digits_network_has_its_weights_curves_confusion_and_mistakes_drawn(drawn: Path) -> None:
    names = {"weights.png", "curves.png", "confusion.png", "mistakes.png"}
    assert {p.name for p in drawn.iterdir()} == {*names, "in-words.md", "drawn.json"}
    assert (drawn / "drawn.json").read_text() == "complete"
    assert set(descriptions_of(drawn)) == names
    for name in names:
        width, height = struct.unpack(">II", (drawn / name).read_bytes()[16:24])
        assert 300 <= width <= 1400
        assert 300 <= height <= 1400


def test_the_plotted_predictions_are_those_that_the_trial_was_scored_by(
    drawn: Path, trained: tuple[Path, ListLink]
) -> None:
    words = descriptions_of(drawn)
    right, _, rows = words["confusion.png"].split()[:3]
    assert int(right) / int(rows) == pytest.approx(trained[1].epochs[-1].metrics["val/accuracy"])
    model = MLP.load_from_checkpoint(trained[0], weights_only=True).eval()
    data = Digits()
    data.setup("fit")
    ((inputs, targets),) = list(data.val_dataloader())
    shares = model(inputs).detach().softmax(1)
    wrong = (shares.argmax(1) != targets).nonzero()[:, 0]
    worst = wrong[shares.max(1).values[wrong].argmax()]
    true, predicted, probability = int(targets[worst]), int(shares[worst].argmax()), float(shares[worst].max())
    assert f"first: a {true} taken for a {predicted} with {probability:.1%}" in words["mistakes.png"]


def test_each_plot_has_a_text_description(drawn: Path) -> None:
    for name, words in descriptions_of(drawn).items():
        data, location, texts = (drawn / name).read_bytes(), 8, {}
        while location < len(data):
            (size,), kind = struct.unpack(">I", data[location : location + 4]), data[location + 4 : location + 8]
            if kind in (b"tEXt", b"iTXt"):
                key, _, value = data[location + 8 : location + 8 + size].partition(b"\0")
                texts[key.decode()] = value
            location += 12 + size
        described = texts["Description"]
        plain = described.decode("latin-1") if described.isascii() else zlib.decompress(described[2:]).decode()
        assert plain == words


def test_a_sheet_has_one_tile_a_neuron_and_one_coloured_square_a_weight() -> None:
    tiles = np.random.default_rng(0).normal(size=(6, 4, 5))
    picture = figures.weights(tiles, "net.1", "a trial")
    picture.figure.canvas.draw()
    pixels = np.asarray(picture.figure.canvas.buffer_rgba())[..., :3]  # type: ignore[attr-defined]
    (image,) = picture.figure.axes[0].images
    sheet = image.get_array()
    assert int(np.isfinite(sheet.filled(np.nan)).sum()) == tiles.size
    colour = np.asarray(image.cmap(image.norm(sheet)))[..., :3]
    box = picture.figure.axes[0].get_window_extent()
    zoom = round(box.width / sheet.shape[1])
    top, left = round(pixels.shape[0] - box.y1), round(box.x0)
    for row, column in ((0, 0), (2, 3), (sheet.shape[0] - 1, sheet.shape[1] - 1)):
        square = pixels[top + row * zoom : top + (row + 1) * zoom, left + column * zoom : left + (column + 1) * zoom]
        assert np.abs(square / 255 - colour[row, column]).max() < 0.01, "neighbouring pixels are not blended"


@pytest.mark.parametrize(("look", "brightness"), [("white_zero", (0.95, 1.0)), ("black_zero", (0.0, 0.0))])
def test_zero_is_in_the_middle_of_the_scale_and_has_the_configured_colour(
    look: str, brightness: tuple[float, float]
) -> None:
    lopsided = np.abs(np.random.default_rng(0).normal(size=(4, 8, 8)))
    (image,) = figures.weights(lopsided, "net.1", "a trial", look).figure.axes[0].images
    assert image.norm.vmin == -image.norm.vmax
    # An even number of colours has two in its middle.
    zero = colors.to_rgb(image.cmap(127))
    assert all(brightness[0] - 0.02 <= c <= brightness[1] + 0.02 for c in zero)


def test_of_many_neurons_those_with_the_largest_weights_are_drawn_and_the_title_says_so() -> None:
    tiles = np.ones((150, 8, 8)) * np.linspace(1, 2, 150)[:, None, None]
    picture = figures.weights(tiles, "net.1", "a trial")
    assert "150 neurons of 8x8, the 100 with the largest weights" in picture.figure.texts[0].get_text()
    (image,) = picture.figure.axes[0].images
    assert image.get_array().min() == pytest.approx(tiles[50, 0, 0])


def test_training_and_validation_share_a_panel_and_the_studys_metric_comes_first() -> None:
    history = {name: [(0, 1.0), (1, 0.5)] for name in ("train_loss", "val/loss", "loss_step", "val/f1", "val/accuracy")}
    axes = figures.curves(history, "val/f1", "a trial").figure.axes
    assert [a.get_ylabel() for a in axes] == ["f1", "loss", "accuracy"]
    assert {line.get_label() for line in axes[1].lines} == {"train_loss", "val/loss"}
    assert len({(str(line.get_color()), str(line.get_linestyle())) for line in axes[1].lines}) == 2


def test_the_names_of_metrics_are_drawn_as_they_are() -> None:
    names = ("$\\frac$", "_hidden", "a$b$c")
    axes = figures.curves({name: [(0, 1.0)] for name in names}, names[0], "a trial").figure.axes
    for panel in axes:
        panel.figure.canvas.draw()
    assert {panel.get_ylabel().replace("\\$", "$").strip() for panel in axes} == set(names)
    assert all(panel.get_legend().texts for panel in axes)


# Networks of users


@pytest.mark.parametrize(
    ("model", "options", "absent"),
    [
        (f"{USER_PACKAGE}Classifier", {}, set()),
        (f"{HABITS}SeesTwoValidationSets", {"data": f"{HABITS}TwoValidationSets"}, set()),
        (MANUAL, {}, {"confusion.png", "mistakes.png"}),
        (f"{HABITS}NeverValidates", {"data": f"{HABITS}NoValidationData"}, {"confusion.png", "mistakes.png"}),
        pytest.param("user_package.modern.Net", {"data": "user_package.modern.Data"}, set(), marks=needs_lightning),
    ],
    ids=["DataLoaders", "two validation sets", "adversaries", "no validation", "lightning.pytorch"],
)
def test_a_users_network_gets_the_possible_plots_and_a_note_for_each_other_one(
    tmp_path: Path, model: str, options: dict[str, object], absent: set[str]
) -> None:
    fit(user_spec(tmp_path, model, epochs=1, **options), link := ListLink())  # type: ignore[arg-type]
    draw(draw_spec(tmp_path, tmp_path / "weights.ckpt", link))
    names = {"weights.png", "curves.png", "confusion.png", "mistakes.png"}
    assert {p.name for p in tmp_path.glob("*.png")} == names - absent
    notes = [name for name in descriptions_of(tmp_path) if name.startswith("no ")]
    assert len(notes) == len(absent)
    assert (tmp_path / "drawn.json").exists()


def test_without_weights_the_curves_are_still_plotted(tmp_path: Path, trained: tuple[Path, ListLink]) -> None:
    draw(draw_spec(tmp_path, None, trained[1]))
    assert [p.name for p in tmp_path.glob("*.png")] == ["curves.png"]
    assert "its weights were not kept" in (tmp_path / "in-words.md").read_text()


@pytest.mark.parametrize(
    ("model", "shape", "words"),
    [
        (nn.Linear(784, 60), (1, 28, 28), "60 of the 60 neurons"),
        (nn.Linear(784, 60), None, "60 of the 60 neurons"),  # a flattened square
        (nn.Sequential(nn.Conv2d(3, 8, 5), nn.Flatten(), nn.Linear(8, 2)), (3, 32, 32), "8 of the 8 kernels of 0"),
        (nn.Linear(3 * 8 * 8, 5), (3, 8, 8), "5 of the 5 neurons"),
        (nn.Linear(2, 6), (2,), "a row for each of 6 neurons, a column for each of 2 inputs"),
    ],
)
def test_the_first_layer_is_plotted_in_the_shape_of_its_input(
    model: nn.Module, shape: tuple[int, ...] | None, words: str
) -> None:
    assert words in first_weights(model, shape, "a trial", "white_zero").description


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (nn.Embedding(5, 3), "no linear or two-dimensional convolutional layer"),
        (nn.Linear(50, 3), "the 50 inputs of .*, the first layer, are no image"),
        (nn.Conv2d(1, 4, 1), "the kernels of .* are single pixels"),
    ],
)
def test_a_missing_plot_has_a_reason(model: nn.Module, words: str) -> None:
    with pytest.raises(NotDrawable, match=words):
        first_weights(model, (50,), "a trial", "white_zero")


def test_the_kind_of_outputs_follows_from_the_task_or_else_from_their_shapes() -> None:
    rows = torch.zeros(4, 2)
    logits, labels = torch.tensor([[2.0, 0], [0, 2], [2, 0], [0, 2]]), torch.tensor([0, 1, 1, 1])
    (classes := _Predictions(None)).add(rows, logits, labels)
    assert classes.kind == "classes"
    assert [v.tolist() for v in classes.values()] == [[0, 1, 1, 1], [0, 1, 0, 1]]
    for outputs in (torch.tensor([-1.0, 1, -1, 1]), torch.tensor([[0.2], [0.9], [0.4], [0.6]])):
        (binary := _Predictions(None)).add(rows, outputs, labels.float())
        assert binary.kind == "classes"
        assert [v.tolist() for v in binary.values()] == [[0, 1, 1, 1], [0, 1, 0, 1]]
    (numbers := _Predictions(None)).add(rows, torch.ones(4, 1), torch.tensor([0.5, 1, 2, 3]))
    assert numbers.kind == "regression"
    (known := _Predictions("regression")).add(rows, torch.ones(4, 1), labels)
    assert known.kind == "regression"
    with pytest.raises(NotDrawable, match="neither classes nor one number"):
        _Predictions(None).add(rows, torch.zeros(4, 2, 3), labels)


def test_predictions_are_plotted_over_the_true_values_with_their_error() -> None:
    true = np.array([1.0, 2.0, 3.0, 4.0])
    picture = figures.regression(true, true + 0.5, "a trial")
    assert "mean absolute error 0.5, R2 0.800" in picture.description
    assert picture.figure.axes[0].get_xlabel() == "true"


def test_the_stamp_is_written_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(drawing, "_save", fail)
    with pytest.raises(KeyboardInterrupt):
        draw(
            DrawSpec(
                "s trial-0000", tmp_path, None, ((0, {"a": 1.0}),), "a", ("curves",), "white_zero", json.dumps("x")
            )
        )
    assert not list(tmp_path.iterdir())
