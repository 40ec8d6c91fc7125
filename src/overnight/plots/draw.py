"""Draws a trained network's pictures."""

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

from overnight.config.paths import trial_name
from overnight.plots import figures
from overnight.plots.figures import Picture
from overnight.protocol import DrawSpec
from overnight.system.files import write_atomically
from overnight.trial import lightning_packages
from overnight.trial.components import build
from overnight.trial.fit import silence_lightning

DRAWN, IN_WORDS = "drawn.json", "in-words.md"
MOST_ROWS = 20_000  # of the validation set, that the answers are asked of
MOST_MISTAKES = 12
_TINIEST_IMAGE = 4  # pixels a side
_FEW_INPUTS = 32  # of a layer whose weights are shown as numbers


def draw(spec: DrawSpec) -> None:
    """Write the pictures as PNG into spec.folder, what they show in words beside them, and DRAWN last of all.

    What can't be drawn is a line in the words, and keeps nothing else from being drawn.
    """
    torch.set_num_threads(1)
    silence_lightning()
    whose = f"{spec.study} {trial_name(spec.number)}"
    words = [f"# Pictures of {whose}", ""]

    def add(made: Picture) -> None:
        _save(spec.folder, made)
        words.append(f"- {made.name}.png: {made.words}")

    def attempt(what: str, drawing: Callable[[], None]) -> None:
        try:
            drawing()
        except Exception as error:
            words.append(f"- no {what}: {str(error).splitlines()[0] if str(error) else type(error).__name__}")
            if not isinstance(error, NoPicture):
                traceback.print_exc()

    wanted = set(spec.which)
    if "curves" in wanted:
        attempt("curves", lambda: add(figures.curves(_series(spec.history), spec.metric, whose)))
    if wanted - {"curves"}:
        attempt("picture of weights and answers", lambda: _draw_network(spec, whose, wanted, add, attempt))
    (spec.folder / IN_WORDS).write_text("\n".join(words) + "\n")
    write_atomically(spec.folder / DRAWN, spec.stamp)


class NoPicture(ValueError):
    """There is nothing to draw here; the message says why."""


def _draw_network(
    spec: DrawSpec,
    whose: str,
    wanted: set[str],
    add: Callable[[Picture], None],
    attempt: Callable[[str, Callable[[], None]], None],
) -> None:
    if spec.weights is None:
        raise NoPicture("its weights were not kept")
    kept = torch.load(spec.weights, map_location="cpu", weights_only=True)
    torch.manual_seed(kept["overnight"]["seed"])
    data, model = build(kept["overnight"]["config"])
    model.load_state_dict(kept["state_dict"])
    answers = _Answers(getattr(data, "task", None))
    failed: Exception | None = None
    try:
        _ask(data, model, answers)
    except Exception as error:  # the weights need no answers, but for the shape of an input
        failed = error
        traceback.print_exc()

    def of_answers(drawing: Callable[[], Picture]) -> Callable[[], None]:
        def run() -> None:
            if failed is not None:
                raise NoPicture(f"the network could not be asked: {type(failed).__name__}: {failed}")
            add(drawing())

        return run

    if "weights" in wanted:
        shape = getattr(data, "input_shape", None) or answers.input_shape
        attempt("weights", lambda: add(first_weights(model, shape, whose, spec.look)))
    names = [str(n) for n in getattr(data, "class_names", ())]
    if answers.kind == "regression":
        if "predictions" in wanted:
            attempt("predictions", of_answers(lambda: figures.regression(*answers.values(), whose)))
        return
    if "confusion" in wanted:
        attempt("confusion matrix", of_answers(lambda: answers.confusion(names, whose)))
    if "mistakes" in wanted:
        attempt("mistakes", of_answers(lambda: answers.mistakes(names, whose)))


def first_weights(model: nn.Module, input_shape: Any, whose: str, look: str) -> Picture:
    """The weights of the first linear or convolutional layer, as images where its inputs are one.

    input_shape: of one row, (H, W), (C, H, W) or flat; None where that is unknown. Raises NoPicture.
    """
    layers = ((n, m) for n, m in model.named_modules() if isinstance(m, nn.Linear | nn.Conv2d))
    name, layer = next(layers, ("", None))
    if layer is None:
        raise NoPicture("the network has no linear or two-dimensional convolutional layer")
    values = layer.weight.detach().float().cpu().numpy()
    if isinstance(layer, nn.Conv2d):
        channels, height, width = values.shape[1:]
        if height * width == 1:
            raise NoPicture(f"the kernels of {name} are single pixels")
        tiles = values if channels == 3 else values[:, 0]
        of = "" if channels in (1, 3) else f" (on the first of {channels} channels)"
        return figures.weights(tiles, f"{name}{of}", whose, look, "kernels")
    shape = _image_shape(input_shape, layer.in_features)
    if shape is not None:
        tiles = values.reshape(-1, *shape)
        return figures.weights(tiles[:, 0] if shape[0] == 1 else tiles, name, whose, look)
    if layer.in_features > _FEW_INPUTS:
        raise NoPicture(f"the {layer.in_features} inputs of {name}, the first layer, are no image")
    return figures.matrix(values[: figures.MOST_TILES], name, whose, look)


def _image_shape(input_shape: Any, features: int) -> tuple[int, int, int] | None:
    """(C, H, W) of the image that a layer of so many inputs sees, C of 1 or 3; None where it sees none."""
    shape = tuple(int(n) for n in input_shape) if input_shape is not None else ()
    shape = (1, *shape) if len(shape) == 2 else shape
    if len(shape) == 3:
        fits = math.prod(shape) == features and shape[0] in (1, 3) and min(shape[1:]) >= _TINIEST_IMAGE
        return (shape[0], shape[1], shape[2]) if fits else None
    side = math.isqrt(features)
    if side * side == features and side >= 8:  # a flattened square, like MNIST's 784
        return (1, side, side)
    return None


class _Enough(Exception):
    """Leaves Lightning's validation: so many rows are enough."""


class _Looking:
    """A LightningModule whose validation only looks at what the network answers."""

    def __init__(self, model: Any, answers: _Answers) -> None:
        super().__init__()
        self.model, self._answers = model, answers

    def validation_step(self, batch: Any, index: int, dataloader_idx: int = 0) -> None:  # noqa: ARG002
        if dataloader_idx or self._answers.rows >= MOST_ROWS:
            raise _Enough
        if not (isinstance(batch, list | tuple) and len(batch) >= 2 and isinstance(batch[0], Tensor)):
            raise NoPicture("the validation batches are no pairs of inputs and targets")
        self._answers.input_shape = tuple(batch[0].shape[1:])
        self._answers.add(batch[0], self.model(batch[0]), batch[1])


def _ask(data: Any, model: Any, answers: _Answers) -> None:
    """Have the network answer the validation rows, as its own Lightning hands them over."""
    lightning = lightning_packages.lightning_of(data, model)
    setup = data.setup
    data.setup = lambda stage: setup("fit")  # noqa: ARG005 - many know no other stage that has validation rows
    trainer = lightning.Trainer(
        accelerator="cpu",
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    looking = lightning_packages.subclass(_Looking, lightning.LightningModule)(model, answers)
    data.trainer = trainer
    with contextlib.suppress(_Enough):
        trainer.validate(looking, datamodule=lightning_packages.adapt_data(lightning, data), verbose=False)
    if not answers.rows:
        raise NoPicture("there are no validation rows")


class _Answers:
    """What a network said on the validation rows; kind: classes, regression, or None before the first batch.

    A data module's `task` decides; where it has none, the shapes do: several columns and whole-numbered targets are
    logits of classes; one column is a yes or no where every target is 0 or 1, and a number otherwise.
    """

    def __init__(self, task: str | None) -> None:
        self._task = task
        self.kind: str | None = None
        self.rows = 0
        self.input_shape: tuple[int, ...] | None = None
        self._classes = 0
        self._pairs: list[tuple[Tensor, Tensor]] = []  # (true, said) of every batch
        self._worst: list[tuple[float, int, int, Tensor]] = []  # (confidence, true, said, row), worst first

    def add(self, inputs: Tensor, outputs: Any, targets: Any) -> None:
        """inputs: (B, ...). outputs: (B, K), (B, 1) or (B,). targets: (B,) or (B, 1)."""
        if not (isinstance(outputs, Tensor) and isinstance(targets, Tensor)):
            raise NoPicture("the network's forward does not map inputs to one tensor")
        outputs, targets = outputs.detach().float(), targets.reshape(len(targets), -1)
        columns = outputs.shape[1] if outputs.ndim > 1 else 1
        if outputs.ndim > 2 or targets.shape[1] != 1:
            raise NoPicture(f"outputs of shape {tuple(outputs.shape)} are neither classes nor one number")
        if self.kind is None:
            yes_or_no = bool(((targets == 0) | (targets == 1)).all())
            self.kind = "regression" if self._task == "regression" or (columns == 1 and not yes_or_no) else "classes"
            if self._task is None and columns > 1 and targets.is_floating_point():
                raise NoPicture("several outputs a row and one number as target are no classes")
        self.rows += len(targets)
        if self.kind == "regression":
            self._pairs.append((targets[:, 0].float(), outputs.reshape(len(outputs))))
            return
        shares = _shares(outputs.reshape(len(outputs), columns))
        sure, said = shares.max(1)
        true = targets[:, 0].long()
        self._classes = shares.shape[1]
        self._pairs.append((true, said))
        for row in (said != true).nonzero()[:, 0].tolist():
            self._worst.append((float(sure[row]), int(true[row]), int(said[row]), inputs[row]))
        self._worst = [(*w[:3], w[3].clone()) for w in sorted(self._worst, key=lambda w: -w[0])[:MOST_MISTAKES]]

    def values(self) -> tuple[Any, Any]:
        """True and said, of every row."""
        true, said = (torch.cat(part).numpy() for part in zip(*self._pairs, strict=True))
        return true, said

    def confusion(self, names: list[str], whose: str) -> Picture:
        true, said = self.values()
        counts = np.zeros((self._classes, self._classes), dtype=int)
        np.add.at(counts, (true, said), 1)
        return figures.confusion(counts, self._names(names), whose)

    def mistakes(self, names: list[str], whose: str) -> Picture:
        if not self._worst:
            raise NoPicture("no validation row is predicted wrong")
        shape = tuple(self._worst[0][3].shape)
        image = _image_shape(shape, math.prod(shape))
        if image is None:
            raise NoPicture(f"inputs of shape {shape} are no images")
        called = self._names(names)
        images = np.stack([row.reshape(image).float().numpy() for *_, row in self._worst])
        return figures.mistakes(images, [(called[t], called[p], sure) for sure, t, p, _ in self._worst], whose)

    def _names(self, names: list[str]) -> list[str]:
        return names if len(names) == self._classes else [str(i) for i in range(self._classes)]


def _shares(outputs: Tensor) -> Tensor:
    """Probabilities (B, K) of logits (B, K), or (B, 2) of one logit (B, 1); of probabilities, themselves."""
    probable = bool((outputs >= 0).all() and (outputs <= 1).all())
    if outputs.shape[1] == 1:
        yes = outputs if probable else outputs.sigmoid()
        return torch.cat([1 - yes, yes], 1)
    sums_to_one = bool((outputs.sum(1) - 1).abs().max() < 1e-3)
    return outputs if probable and sums_to_one else outputs.softmax(1)


def _series(history: tuple[tuple[int, Mapping[str, float]], ...]) -> dict[str, list[tuple[int, float]]]:
    """(epoch, metrics) in order into metric name -> (epoch, value), finite values alone."""
    series: dict[str, list[tuple[int, float]]] = {}
    for epoch, metrics in history:
        for name, value in metrics.items():
            if math.isfinite(value):
                series.setdefault(name, []).append((epoch, value))
    if not series:
        raise NoPicture("no metric was logged")
    return series


def _save(folder: Path, made: Picture) -> None:
    png = io.BytesIO()
    made.figure.savefig(png, format="png", metadata={"Title": made.name, "Description": made.words})
    write_atomically(folder / f"{made.name}.png", png.getvalue())
