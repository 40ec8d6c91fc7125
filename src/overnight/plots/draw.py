"""Draw the plots of a trained network."""

from __future__ import annotations

import contextlib
import io
import math
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from overnight.plots import figures
from overnight.plots.figures import Plot
from overnight.plots.process import DRAWN, IN_WORDS
from overnight.protocol import DrawSpec
from overnight.system.files import write_atomically
from overnight.trial import lightning_packages
from overnight.trial.components import build
from overnight.trial.fit import silence_lightning

MAX_ROWS = 20_000  # validation rows that the network predicts
MAX_MISTAKES = 12
_MIN_IMAGE_SIDE = 4  # in pixels
_MAX_MATRIX_INPUTS = 32  # of a layer whose weights are drawn as a matrix


def draw(spec: DrawSpec) -> None:
    """Write the plots to spec.folder as PNG, their descriptions to IN_WORDS, and at last spec.stamp to DRAWN.

    A plot that can't be drawn becomes a line of IN_WORDS. The other plots are still drawn.
    """
    torch.set_num_threads(1)
    silence_lightning()
    lines = [f"# Pictures of {spec.title}", ""]

    def add(plot: Plot) -> None:
        _save(spec.folder, plot)
        lines.append(f"- {plot.name}.png: {plot.description}")

    def attempt(what: str, draw_plot: Callable[[], None]) -> None:
        try:
            draw_plot()
        except Exception as error:
            lines.append(f"- no {what}: {str(error).splitlines()[0] if str(error) else type(error).__name__}")
            if not isinstance(error, NotDrawable):
                traceback.print_exc()

    wanted = set(spec.which)
    if "curves" in wanted:
        attempt("curves", lambda: add(figures.curves(_series(spec.history), spec.metric, spec.title, spec.unit)))
    if wanted - {"curves"}:
        attempt("plot of weights and predictions", lambda: _draw_network(spec, wanted, add, attempt))
    (spec.folder / IN_WORDS).write_text("\n".join(lines) + "\n", "utf-8")
    write_atomically(spec.folder / DRAWN, spec.stamp)


class NotDrawable(ValueError):
    """A plot can't be drawn. The message says why."""


def _draw_network(
    spec: DrawSpec,
    wanted: set[str],
    add: Callable[[Plot], None],
    attempt: Callable[[str, Callable[[], None]], None],
) -> None:
    if spec.weights is None:
        raise NotDrawable("its weights were not kept")
    title = spec.title
    kept = torch.load(spec.weights, map_location="cpu", weights_only=True)
    torch.manual_seed(kept["overnight"]["seed"])
    data, model = build(kept["overnight"]["config"], locks=spec.locks)
    model.load_state_dict(kept["state_dict"])
    predictions = _Predictions(getattr(data, "task", None))
    failed: Exception | None = None
    try:
        _predict(data, model, predictions)
    except Exception as error:  # the plot of weights needs at most the shape of an input
        failed = error
        traceback.print_exc()

    def with_predictions(drawing: Callable[[], Plot]) -> Callable[[], None]:
        def run() -> None:
            if failed is not None:
                raise NotDrawable(f"the network could not predict: {type(failed).__name__}: {failed}")
            add(drawing())

        return run

    if "weights" in wanted:
        shape = getattr(data, "input_shape", None) or predictions.input_shape
        attempt("weights", lambda: add(first_weights(model, shape, title, spec.look)))
    names = [str(n) for n in getattr(data, "class_names", ())]
    if predictions.kind == "regression":
        if "predictions" in wanted:
            attempt("predictions", with_predictions(lambda: figures.regression(*predictions.values(), title)))
        return
    if "confusion" in wanted:
        attempt("confusion matrix", with_predictions(lambda: predictions.confusion(names, title)))
    if "mistakes" in wanted:
        attempt("mistakes", with_predictions(lambda: predictions.mistakes(names, title)))


def first_weights(model: nn.Module, input_shape: Any, title: str, look: str) -> Plot:
    """Draw the weights of the first linear or convolutional layer, as images if its input is an image.

    Args:
        model: the network.
        input_shape: of one row, (H, W), (C, H, W) or flat; None if unknown.
        title: name of the trial.
        look: white_zero or black_zero, the colour of zero.

    Raises:
        NotDrawable: if there is no such layer, or its inputs are many and no image.
    """
    layers = ((n, m) for n, m in model.named_modules() if isinstance(m, nn.Linear | nn.Conv2d))
    name, layer = next(layers, ("", None))
    if layer is None:
        raise NotDrawable("the network has no linear or two-dimensional convolutional layer")
    values = layer.weight.detach().float().cpu().numpy()
    if isinstance(layer, nn.Conv2d):
        channels, height, width = values.shape[1:]
        if height * width == 1:
            raise NotDrawable(f"the kernels of {name} are single pixels")
        tiles = values if channels == 3 else values[:, 0]
        of = "" if channels in (1, 3) else f" (on the first of {channels} channels)"
        return figures.weights(tiles, f"{name}{of}", title, look, "kernels")
    shape = _image_shape(input_shape, layer.in_features)
    if shape is not None:
        tiles = values.reshape(-1, *shape)
        return figures.weights(tiles[:, 0] if shape[0] == 1 else tiles, name, title, look)
    if layer.in_features > _MAX_MATRIX_INPUTS:
        raise NotDrawable(f"the {layer.in_features} inputs of {name}, the first layer, are no image")
    return figures.matrix(values[: figures.MAX_TILES], name, title, look)


def _image_shape(input_shape: Any, features: int) -> tuple[int, int, int] | None:
    """Return (C, H, W), with C of 1 or 3, of the image that is a layer's input; None if it is no image."""
    shape = tuple(int(n) for n in input_shape) if input_shape is not None else ()
    shape = (1, *shape) if len(shape) == 2 else shape
    if len(shape) == 3:
        fits = math.prod(shape) == features and shape[0] in (1, 3) and min(shape[1:]) >= _MIN_IMAGE_SIDE
        return (shape[0], shape[1], shape[2]) if fits else None
    side = math.isqrt(features)
    if side * side == features and side >= 8:  # a flattened square, like MNIST's 784
        return (1, side, side)
    return None


class _EnoughRows(Exception):
    """Raised to leave Lightning's validation early."""


class _PredictionCollector:
    """A LightningModule whose validation collects the predictions of a network."""

    def __init__(self, model: Any, predictions: _Predictions) -> None:
        super().__init__()
        self.model, self._predictions = model, predictions

    def validation_step(self, batch: Any, index: int, dataloader_idx: int = 0) -> None:  # noqa: ARG002
        if dataloader_idx or self._predictions.rows >= MAX_ROWS:
            raise _EnoughRows
        if not (isinstance(batch, list | tuple) and len(batch) >= 2 and isinstance(batch[0], Tensor)):
            raise NotDrawable("the validation batches are no pairs of inputs and targets")
        self._predictions.input_shape = tuple(batch[0].shape[1:])
        self._predictions.add(batch[0], self.model(batch[0]), batch[1])


def _predict(data: Any, model: Any, predictions: _Predictions) -> None:
    """Collect the network's predictions for the validation rows, in the batches of its own Lightning."""
    lightning = lightning_packages.lightning_of(data, model)
    setup = data.setup
    data.setup = lambda stage: setup("fit")  # noqa: ARG005 - many data modules have validation rows only in this stage
    trainer = lightning.Trainer(
        accelerator="cpu",
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    collector = lightning_packages.subclass(_PredictionCollector, lightning.LightningModule)(model, predictions)
    data.trainer = trainer
    with contextlib.suppress(_EnoughRows):
        trainer.validate(collector, datamodule=lightning_packages.adapt_data(lightning, data), verbose=False)
    if not predictions.rows:
        raise NotDrawable("there are no validation rows")


class _Predictions:
    """Predictions of a network for the validation rows.

    The kind follows from the data module's `task`. Without a task it follows from the shapes: several columns with
    integer targets are classes; one column is a class if every target is 0 or 1, otherwise a number.

    Args:
        task: binary, multiclass, regression or None.

    Attributes:
        kind: classes or regression; None before the first batch.
        rows: number of rows so far.
        input_shape: of one row; None before the first batch.
    """

    def __init__(self, task: str | None) -> None:
        self._task = task
        self.kind: str | None = None
        self.rows = 0
        self.input_shape: tuple[int, ...] | None = None
        self._classes = 0
        self._pairs: list[tuple[Tensor, Tensor]] = []  # (true, predicted) of every batch
        self._worst: list[tuple[float, int, int, Tensor]] = []  # (probability, true, predicted, row), worst first

    def add(self, inputs: Tensor, outputs: Any, targets: Any) -> None:
        """inputs: (B, ...). outputs: (B, K), (B, 1) or (B,). targets: (B,) or (B, 1)."""
        if not (isinstance(outputs, Tensor) and isinstance(targets, Tensor)):
            raise NotDrawable("the network's forward does not map inputs to one tensor")
        outputs, targets = outputs.detach().float(), targets.reshape(len(targets), -1)
        columns = outputs.shape[1] if outputs.ndim > 1 else 1
        if outputs.ndim > 2 or targets.shape[1] != 1:
            raise NotDrawable(f"outputs of shape {tuple(outputs.shape)} are neither classes nor one number")
        if self.kind is None:
            is_binary = bool(((targets == 0) | (targets == 1)).all())
            self.kind = "regression" if self._task == "regression" or (columns == 1 and not is_binary) else "classes"
            if self._task is None and columns > 1 and targets.is_floating_point():
                raise NotDrawable("several outputs a row and one number as target are no classes")
        self.rows += len(targets)
        if self.kind == "regression":
            self._pairs.append((targets[:, 0].float(), outputs.reshape(len(outputs))))
            return
        probabilities = _probabilities(outputs.reshape(len(outputs), columns))
        highest, predicted = probabilities.max(1)
        true = targets[:, 0].long()
        self._classes = probabilities.shape[1]
        self._pairs.append((true, predicted))
        for row in (predicted != true).nonzero()[:, 0].tolist():
            self._worst.append((float(highest[row]), int(true[row]), int(predicted[row]), inputs[row]))
        self._worst = [(*w[:3], w[3].clone()) for w in sorted(self._worst, key=lambda w: -w[0])[:MAX_MISTAKES]]

    def values(self) -> tuple[Any, Any]:
        """Return the true and the predicted value of every row."""
        true, predicted = (torch.cat(part).numpy() for part in zip(*self._pairs, strict=True))
        return true, predicted

    def confusion(self, names: list[str], title: str) -> Plot:
        true, predicted = self.values()
        counts = np.zeros((self._classes, self._classes), dtype=int)
        np.add.at(counts, (true, predicted), 1)
        return figures.confusion(counts, self._names(names), title)

    def mistakes(self, names: list[str], title: str) -> Plot:
        if not self._worst:
            raise NotDrawable("no validation row is predicted wrong")
        shape = tuple(self._worst[0][3].shape)
        image = _image_shape(shape, math.prod(shape))
        if image is None:
            raise NotDrawable(f"inputs of shape {shape} are no images")
        class_names = self._names(names)
        images = np.stack([row.reshape(image).float().numpy() for *_, row in self._worst])
        return figures.mistakes(
            images, [(class_names[t], class_names[p], prob) for prob, t, p, _ in self._worst], title
        )

    def _names(self, names: list[str]) -> list[str]:
        return names if len(names) == self._classes else [str(i) for i in range(self._classes)]


def _probabilities(outputs: Tensor) -> Tensor:
    """Return probabilities (B, K) for logits (B, K), (B, 2) for one logit (B, 1); keep probabilities."""
    in_unit_range = bool((outputs >= 0).all() and (outputs <= 1).all())
    if outputs.shape[1] == 1:
        yes = outputs if in_unit_range else outputs.sigmoid()
        return torch.cat([1 - yes, yes], 1)
    sums_to_one = bool((outputs.sum(1) - 1).abs().max() < 1e-3)
    return outputs if in_unit_range and sums_to_one else outputs.softmax(1)


def _series(history: tuple[tuple[int, Mapping[str, float]], ...]) -> dict[str, list[tuple[int, float]]]:
    """Turn (epoch, metrics) in order into metric name -> (epoch, value), with finite values only."""
    series: dict[str, list[tuple[int, float]]] = {}
    for epoch, metrics in history:
        for name, value in metrics.items():
            if math.isfinite(value):
                series.setdefault(name, []).append((epoch, value))
    if not series:
        raise NotDrawable("no metric was logged")
    return series


def _save(folder: Path, plot: Plot) -> None:
    png = io.BytesIO()
    plot.figure.savefig(png, format="png", metadata={"Title": plot.name, "Description": plot.description})
    write_atomically(folder / f"{plot.name}.png", png.getvalue())
