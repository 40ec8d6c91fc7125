"""A person's own pictures, or the rows of a CSV file, put to a trained network."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from overnight.config.problems import ConfigError
from overnight.models.supervised import Supervised
from overnight.protocol import Predicted, Prediction, PredictSpec
from overnight.system.errors import one_line
from overnight.trial.trained_model import Served, TrainedModel, take

PICTURES = (".png", ".jpg", ".jpeg")
_AT_ONCE = 256  # rows
_TOLD = 10  # mistakes, of a file that may be wrong in every line
_LIGHT = 0.5  # of full brightness: a picture whose border is lighter is taken for dark on light


def predict(spec: PredictSpec) -> Predicted:
    """The network's answer to every row of spec.path. Raises ConfigError, with all mistakes, before it answers any."""
    taken = take(spec.weights, spec.cache)
    shape = tuple(getattr(taken.data, "input_shape", ()))
    name = f"{type(taken.data).__module__}.{type(taken.data).__name__}"
    if taken.prepared is None or len(shape) not in (1, 3):
        missing = "input_shape of (C, H, W) or (features,)" if taken.prepared else "method prepared(inputs)"
        raise ConfigError(
            [
                f"data: {name} must say how raw rows become the network's inputs, and has no {missing}; add it, "
                f"or load the checkpoint {spec.weights} yourself"
            ]
        )
    notes: tuple[str, ...] = ()
    if len(shape) == 3:
        files = _pictures(spec.path)
        sources = [str(f.relative_to(spec.path)) if spec.path.is_dir() else f.name for f in files]
        rows = _read_pictures(files, shape, spec.invert)
        if shape[0] == 1 and not spec.invert:
            notes = _seems_inverted(rows)
        rows = rows * float(getattr(taken.data, "brightest", 255.0))
    else:
        if spec.invert:
            raise ConfigError(["--invert: is for pictures, and the study's data is a table; leave it out"])
        rows = _read_table(spec.path, tuple(getattr(taken.data, "columns", ())), shape[0])
        sources = [str(number) for number in range(1, len(rows) + 1)]
    served, told = Served(taken).eval(), list[Prediction]()
    certain = not isinstance(taken.model, Supervised) and taken.task != "regression"  # looks like probabilities so far
    with torch.no_grad():
        for batch, named in zip(rows.split(_AT_ONCE), _split(sources), strict=True):
            try:
                answers = served(batch)
            except Exception as error:  # somebody's forward raises any kind
                raise ConfigError([f"model: {type(taken.model).__name__} can't be asked: {one_line(error)}"]) from error
            certain = certain and bool(((answers >= 0) & (answers <= 1)).all())
            told += _answers(taken, answers, named)
    if certain:
        notes += ("every output lies between 0 and 1: forward must return logits, not probabilities, to be read right",)
    return Predicted(tuple(told), notes)


def _answers(taken: TrainedModel, outputs: Tensor, sources: Sequence[str]) -> list[Prediction]:
    outputs = outputs.detach().double().reshape(len(sources), -1)
    if taken.task == "regression" or (taken.task is None and outputs.shape[1] == 1):
        return [Prediction(s, value, None) for s, value in zip(sources, outputs[:, 0].tolist(), strict=True)]
    shares = outputs
    if not isinstance(taken.model, Supervised):  # which has said its probabilities already
        shares = outputs.softmax(1) if outputs.shape[1] > 1 else outputs.sigmoid()
    if shares.shape[1] == 1:
        shares = torch.cat([1 - shares, shares], 1)
    sure, said = shares.max(1)
    names = [str(n) for n in getattr(taken.data, "class_names", ())]
    classes: list[Any] = names if len(names) == shares.shape[1] else list(range(shares.shape[1]))
    return [Prediction(s, classes[k], p) for s, k, p in zip(sources, said.tolist(), sure.tolist(), strict=True)]


def _split(sources: Sequence[str]) -> Iterator[list[str]]:
    left = iter(sources)
    while part := list(islice(left, _AT_ONCE)):
        yield part


# Pictures -------------------------------------------------------------------------------------------------------------


def _pictures(path: Path) -> list[Path]:
    """The picture, or those of a folder and the folders in it, by name."""
    if path.is_dir():
        found = sorted(p for p in path.rglob("*") if p.suffix.lower() in PICTURES and p.name[:2] != "._")
        if not found:
            raise ConfigError(
                [f"{path}: must hold pictures ({', '.join(PICTURES)}), and there is none; name another folder"]
            )
        return found
    if path.suffix.lower() not in PICTURES:
        raise ConfigError(
            [
                f"{path}: the study's data is pictures, so it must be one ({', '.join(PICTURES)}) or a folder of them; "
                f"name one"
            ]
        )
    return [path]


def _read_pictures(files: Sequence[Path], shape: tuple[int, ...], invert: bool) -> Tensor:
    """(N, C, H, W), 0 to 1: scaled to the data's size, grey where it has one channel, on white where transparent."""
    import numpy as np
    from PIL import Image, ImageOps

    channels, height, width = shape
    if channels not in (1, 3):
        raise ConfigError([f"data.input_shape: pictures have 1 or 3 channels, and the study's data {channels}"])
    rows, problems = torch.empty(len(files), *shape), []
    for index, file in enumerate(files):
        try:
            with Image.open(file) as opened:
                if opened.mode.startswith("I") or opened.mode == "F":
                    raise ValueError(f"it has more than 8 bits a pixel (mode {opened.mode}): save it with 8")
                picture = ImageOps.exif_transpose(opened).convert("RGBA")
            flat = Image.new("RGBA", picture.size, "white")
            flat.alpha_composite(picture)
            # A mean over each pixel's area where it shrinks, as scanned digits were made small: nothing is smeared.
            shrinks = picture.size[0] >= width and picture.size[1] >= height
            how = Image.Resampling.BOX if shrinks else Image.Resampling.BILINEAR
            small = flat.convert("L" if channels == 1 else "RGB").resize((width, height), how)
            values = torch.from_numpy(np.array(small)).float() / 255
            rows[index] = values.reshape(height, width, channels).permute(2, 0, 1)
        except Exception as error:  # Pillow raises many kinds
            problems.append(f"{file}: must be a picture that can be read, and is not ({one_line(error)}); replace it")
    if problems:
        raise ConfigError(_few(problems))
    return 1 - rows if invert else rows


def _seems_inverted(rows: Tensor) -> tuple[str, ...]:
    """What to say where most pictures have a light border. rows: (N, 1, H, W), 0 to 1."""
    border = torch.cat([rows[..., 0, :], rows[..., -1, :], rows[..., 0], rows[..., -1]], -1).mean((1, 2))
    light = int((border > _LIGHT).sum())
    if 2 * light <= len(rows):
        return ()
    return (
        f"{light} of {len(rows)} pictures are dark on light; digits and clothes as these networks learn them are light "
        f"on dark: --invert turns pictures around",
    )


# Tables ---------------------------------------------------------------------------------------------------------------


def _read_table(path: Path, columns: tuple[str, ...], features: int) -> Tensor:
    """(N, features): the columns that the data names, wherever they stand; without names, or a line of them, in order.

    Columns that nobody asks for are left alone where all have names.
    """
    if path.is_dir() or path.suffix.lower() != ".csv":
        raise ConfigError([f"{path}: the study's data is a table, so it must be a .csv file; name one"])
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            lines = [(n, line) for n, line in enumerate(csv.reader(file), 1) if any(cell.strip() for cell in line)]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ConfigError(
            [f"{path}: must be a CSV file in UTF-8, and is not ({one_line(error)}); save it so"]
        ) from error
    wanted = ", ".join(columns) or f"{features} numbers"
    heads = [cell.strip() for cell in lines[0][1]] if lines else []
    # A first row of data may lack a number; of a data module without names, one with any number is data.
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
        f"{path}, line {n}: must have {len(heads)} cells, got {len(line)}; a decimal comma is written as a point"
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
        raise ConfigError(_few(problems))
    return torch.tensor(rows, dtype=torch.float32)


def _number(text: str) -> float | None:
    """The finite number that a cell holds, or None."""
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _few(problems: list[str]) -> list[str]:
    more = len(problems) - _TOLD
    return [*problems[:_TOLD], *([f"and {more} more such"] if more > 0 else [])]
