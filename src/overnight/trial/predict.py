"""Predict for a user's images, or for the rows of a CSV file, with a trained network."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from overnight.config.problems import ConfigError
from overnight.data.split import PIXEL_MAX
from overnight.models.supervised import Supervised
from overnight.protocol import Prediction, Predictions, PredictSpec
from overnight.system.errors import one_line
from overnight.trial import dataset_transform
from overnight.trial.trained_model import ServedModel, TrainedModel, load_trained_model

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg")
_BATCH_ROWS = 256
_MOST_PROBLEMS = 10  # that are listed of a file, which may be wrong in every line
_LIGHT = 0.5  # mean brightness of the border, 0 to 1, above which an image counts as dark on light


def predict(spec: PredictSpec) -> Predictions:
    """Return the network's prediction for every row of spec.path.

    Raises:
        ConfigError: with all mistakes of the input, before any prediction is made.
    """
    trained = load_trained_model(spec.weights, spec.cache, spec.locks)
    shape = tuple(getattr(trained.data, "input_shape", ()))
    if trained.prepare is None and (found := dataset_transform.find(trained.data)) is not None:
        shape, prepare = found
        trained = replace(trained, prepare=prepare)
    name = f"{type(trained.data).__module__}.{type(trained.data).__name__}"
    if trained.prepare is None or len(shape) not in (1, 3):
        missing = "input_shape of (C, H, W) or (features,)" if trained.prepare else "method prepare_inputs(inputs)"
        raise ConfigError(
            [
                f"data: {name} must say how raw rows become the network's inputs, and has no {missing}, nor a "
                f"torchvision dataset of images with a transform; add one, "
                f"or load the checkpoint {spec.weights} yourself"
            ]
        )
    notes: tuple[str, ...] = ()
    if len(shape) == 3:
        files = _image_files(spec.path)
        sources = [str(f.relative_to(spec.path)) if spec.path.is_dir() else f.name for f in files]
        rows = _read_images(files, shape, spec.invert)
        if shape[0] == 1 and not spec.invert:
            notes = _inversion_notes(rows)
        rows = rows * float(getattr(trained.data, "pixel_max", PIXEL_MAX))
    else:
        if spec.invert:
            raise ConfigError(["--invert: is for images, and the study's data is a table; leave it out"])
        rows = _read_table(spec.path, tuple(getattr(trained.data, "columns", ())), shape[0])
        sources = [str(number) for number in range(1, len(rows) + 1)]
    served, predictions = ServedModel(trained).eval(), list[Prediction]()
    # Whether all outputs so far could be probabilities, which a user's forward should not return.
    look_like_probabilities = not isinstance(trained.model, Supervised) and trained.task != "regression"
    with torch.no_grad():
        for batch, names in zip(rows.split(_BATCH_ROWS), _batches(sources), strict=True):
            try:
                outputs = served(batch)
            except Exception as error:  # a user's forward raises any kind
                name = type(trained.model).__name__
                problem = f"model: {name}'s forward must take the prepared rows, and raised {one_line(error)}"
                raise ConfigError([problem]) from error
            look_like_probabilities = look_like_probabilities and bool(((outputs >= 0) & (outputs <= 1)).all())
            predictions += _predictions(trained, outputs, names)
    if look_like_probabilities:
        notes += ("every output lies between 0 and 1: forward must return logits, not probabilities, to be read right",)
    return Predictions(tuple(predictions), notes)


def _predictions(trained: TrainedModel, outputs: Tensor, sources: Sequence[str]) -> list[Prediction]:
    outputs = outputs.detach().double().reshape(len(sources), -1)
    if trained.task == "regression" or (trained.task is None and outputs.shape[1] == 1):
        return [Prediction(s, value, None) for s, value in zip(sources, outputs[:, 0].tolist(), strict=True)]
    probabilities = outputs
    if not isinstance(trained.model, Supervised):  # ours returns probabilities already
        probabilities = outputs.softmax(1) if outputs.shape[1] > 1 else outputs.sigmoid()
    if probabilities.shape[1] == 1:
        probabilities = torch.cat([1 - probabilities, probabilities], 1)
    highest, predicted = probabilities.max(1)
    names = [str(n) for n in getattr(trained.data, "class_names", ())]
    classes: list[Any] = names if len(names) == probabilities.shape[1] else list(range(probabilities.shape[1]))
    return [Prediction(s, classes[k], p) for s, k, p in zip(sources, predicted.tolist(), highest.tolist(), strict=True)]


def _batches(sources: Sequence[str]) -> Iterator[list[str]]:
    remaining = iter(sources)
    while batch := list(islice(remaining, _BATCH_ROWS)):
        yield batch


# Images ---------------------------------------------------------------------------------------------------------------


def _image_files(path: Path) -> list[Path]:
    """Return the image itself, or all images of a folder and its subfolders, sorted by name."""
    if path.is_dir():
        found = sorted(p for p in path.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES and p.name[:2] != "._")
        if not found:
            known = ", ".join(IMAGE_SUFFIXES)
            raise ConfigError([f"{path}: must hold images ({known}), and there is none; name another folder"])
        return found
    if path.suffix.lower() not in IMAGE_SUFFIXES:
        raise ConfigError(
            [
                f"{path}: the study's data is images, so it must be one ({', '.join(IMAGE_SUFFIXES)}) or a folder of "
                f"them; name one"
            ]
        )
    return [path]


def _read_images(files: Sequence[Path], shape: tuple[int, ...], invert: bool) -> Tensor:
    """Read images as (N, C, H, W) with values from 0 to 1.

    They are scaled to the size of the data and become grey if it has one channel. Transparent pixels become white.
    """
    import numpy as np
    from PIL import Image, ImageOps

    channels, height, width = shape
    if channels not in (1, 3):
        raise ConfigError([f"data.input_shape: images have 1 or 3 channels, and the study's data {channels}"])
    rows, problems = torch.empty(len(files), *shape), []
    for index, file in enumerate(files):
        try:
            with Image.open(file) as opened:
                if opened.mode.startswith("I") or opened.mode == "F":
                    raise ValueError(f"it has more than 8 bits a pixel (mode {opened.mode}): save it with 8")
                image = ImageOps.exif_transpose(opened).convert("RGBA")
            flat = Image.new("RGBA", image.size, "white")
            flat.alpha_composite(image)
            # To shrink, average over the area of each pixel, as scanned digits were made small.
            shrinks = image.size[0] >= width and image.size[1] >= height
            resampling = Image.Resampling.BOX if shrinks else Image.Resampling.BILINEAR
            small = flat.convert("L" if channels == 1 else "RGB").resize((width, height), resampling)
            values = torch.from_numpy(np.array(small)).float() / 255
            rows[index] = values.reshape(height, width, channels).permute(2, 0, 1)
        except Exception as error:  # Pillow raises many kinds
            problems.append(f"{file}: must be an image that can be read, and is not ({one_line(error)}); replace it")
    if problems:
        raise ConfigError(_limited(problems))
    return 1 - rows if invert else rows


def _inversion_notes(rows: Tensor) -> tuple[str, ...]:
    """Return a note if most images have a light border. rows: (N, 1, H, W), from 0 to 1."""
    border = torch.cat([rows[..., 0, :], rows[..., -1, :], rows[..., 0], rows[..., -1]], -1).mean((1, 2))
    light = int((border > _LIGHT).sum())
    if 2 * light <= len(rows):
        return ()
    return (
        f"{light} of {len(rows)} images are dark on light; digits and clothes as these networks learn them are light "
        f"on dark: --invert inverts the images",
    )


# Tables ---------------------------------------------------------------------------------------------------------------


def _read_table(path: Path, columns: tuple[str, ...], features: int) -> Tensor:
    """Read a CSV file as (N, features).

    Columns are found by name and further columns are ignored. If the data has no names for its columns, or the file no
    line of names, the columns are taken in order.
    """
    if path.is_dir() or path.suffix.lower() != ".csv":
        raise ConfigError([f"{path}: the study's data is a table, so it must be a .csv file; name one"])
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            lines = [(n, line) for n, line in enumerate(csv.reader(file), 1) if any(cell.strip() for cell in line)]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        problem = f"{path}: must be a CSV file in UTF-8, and is not ({one_line(error)}); save it so"
        raise ConfigError([problem]) from error
    wanted = ", ".join(columns) or f"{features} numbers"
    heads = [cell.strip() for cell in lines[0][1]] if lines else []
    # A first row of data may lack a number. If the data has no column names, a row with any number is data.
    named = any(_number(c) is None for c in heads) and (bool(columns) or all(_number(c) is None for c in heads))
    lines = lines[1:] if named else lines
    if not lines:
        raise ConfigError([f"{path}: must hold rows of {wanted}, and has none; add some"])
    missing = [c for c in columns if c not in heads] if named else []
    if missing or (not (named and columns) and len(heads) != features):
        lacks = f"it lacks {', '.join(missing)}: name them so in its first line" if missing else "one for each feature"
        raise ConfigError([f"{path}: must have the columns {wanted}, got {', '.join(heads)}; {lacks}"])
    places = [heads.index(c) for c in columns] if named and columns else list(range(features))
    rows: list[list[float | None]] = []
    problems = [
        f"{path}, line {n}: must have {len(heads)} cells, got {len(line)}; write a decimal comma as a point"
        for n, line in lines
        if any(cell.strip() for cell in line[len(heads) :])
    ]
    for number, line in lines:
        cells = [line[p].strip() if p < len(line) else "" for p in places]
        rows.append([_number(cell) for cell in cells])
        problems += [
            f"{path}, line {number}, {heads[p] if named else f'column {p + 1}'}: must be a finite number, got {cell!r}"
            for p, cell in zip(places, cells, strict=True)
            if _number(cell) is None
        ]
    if problems:
        raise ConfigError(_limited(problems))
    return torch.tensor(rows, dtype=torch.float32)


def _number(text: str) -> float | None:
    """Return the finite number in a cell, or None."""
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _limited(problems: list[str]) -> list[str]:
    more = len(problems) - _MOST_PROBLEMS
    return [*problems[:_MOST_PROBLEMS], *([f"and {more} more such"] if more > 0 else [])]
