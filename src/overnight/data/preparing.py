"""From raw rows to what a network is fed: augmented and normalised, on tensors, a batch at a time."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from overnight.data.tensors import Part

NORMALISATIONS = ("none", "minmax", "standard")
# Rows of a training split that are turned into numbers at a time, to see how they are spread.
_CHUNK = 2048


@dataclass(frozen=True)
class Normalise:
    """inputs -> (inputs - shift) * scale, as float; shift and scale broadcast over a batch."""

    shift: Tensor
    scale: Tensor

    def __call__(self, inputs: Tensor) -> Tensor:
        if inputs.is_floating_point():
            return (inputs - self.shift).mul_(self.scale)
        return inputs.float().sub_(self.shift).mul_(self.scale)  # what is made there is nobody else's


def normalise(part: Part, how: str) -> Normalise | None:
    """How to normalise, by what `part` holds and nothing else; None for "none".

    minmax takes it to 0 to 1, standard to mean 0 and standard deviation 1; of images (N, C, H, W) each channel for
    itself, else each feature. What is the same in every row is moved, not scaled.
    """
    if how not in NORMALISATIONS:
        raise ValueError(f"data.normalise: must be one of {', '.join(NORMALISATIONS)}, got {how!r}")
    if how == "none":
        return None
    bytes_of_pictures = part.inputs.ndim == 4 and part.inputs.dtype == torch.uint8
    shift, spread = (_spread_of_bytes if bytes_of_pictures else _spread)(part, how)
    scale = torch.where(spread > 0, 1 / spread, 1.0)
    shape = (-1, 1, 1) if part.inputs.ndim == 4 else (-1,)
    return Normalise(shift.float().view(shape), scale.float().view(shape))


def _spread(part: Part, how: str) -> tuple[Tensor, Tensor]:
    """Least and range, or mean and standard deviation, as double: of each channel (C,), or of each feature."""
    over = (0, 2, 3) if part.inputs.ndim == 4 else (0,)
    chunks = part.rows.split(_CHUNK)
    if how == "minmax":
        found = [part.inputs.index_select(0, rows) for rows in chunks]
        least = torch.stack([c.amin(over) for c in found]).amin(0).double()
        return least, torch.stack([c.amax(over) for c in found]).amax(0).double() - least
    sums, squares, count = torch.zeros(()), torch.zeros(()), 0
    for rows in chunks:
        values = part.inputs.index_select(0, rows).double()
        sums, squares = sums + values.sum(over), squares + values.square().sum(over)
        count += values.numel() // sums.numel()
    mean = sums / count
    return mean, (squares / count - mean.square()).clamp(min=0).sqrt()


def _spread_of_bytes(part: Part, how: str) -> tuple[Tensor, Tensor]:
    """The same of pictures of bytes, exactly: counting how often each value comes is a quarter of the work."""
    channels = part.inputs.shape[1]
    counts = torch.zeros(channels, 256, dtype=torch.long)
    for rows in part.rows.split(_CHUNK):
        values = part.inputs.index_select(0, rows)
        for channel in range(channels):
            counts[channel] += torch.bincount(values[:, channel].flatten(), minlength=256)
    if how == "minmax":
        present = counts > 0
        least = present.int().argmax(1)
        most = 255 - present.flip(1).int().argmax(1)
        return least.double(), (most - least).double()
    value, share = torch.arange(256).double(), counts.double() / counts.sum(1, keepdim=True)
    mean = share @ value
    return mean, (share * (value - mean.view(-1, 1)).square()).sum(1).sqrt()


@dataclass(frozen=True)
class Augment:
    """Moves each image of a batch by chance, with 0 where it comes from outside: (B, C, H, W) -> the same, as float.

    shift: pixels, up to so many in each direction. rotate: degrees, up to so many either way. flip: left and right,
    every other time. Chance comes from torch's global generator, which is part of a trial's saved state.
    """

    shift: int = 0
    rotate: float = 0.0
    flip: bool = False

    def __post_init__(self) -> None:
        if self.shift < 0 or self.shift != int(self.shift):
            raise ValueError(f"data.augment.shift: must be a whole number of pixels, 0 or more, got {self.shift!r}")
        if not 0 <= self.rotate <= 180:
            raise ValueError(f"data.augment.rotate: must be from 0 to 180 degrees, got {self.rotate!r}")

    @staticmethod
    def of(options: Mapping[str, Any]) -> Augment | None:
        """From a config's mapping; None where it asks for nothing. Raises ValueError for a word it does not know."""
        known = [f.name for f in fields(Augment)]
        for name in options:
            if name not in known:
                raise ValueError(f"data.augment.{name}: no such key; there are {', '.join(known)}")
        asked = Augment(**options)
        return asked if asked != Augment() else None

    def __call__(self, images: Tensor) -> Tensor:
        if self.flip:
            flipped = torch.rand(len(images)) < 0.5
            images = torch.where(flipped.view(-1, 1, 1, 1), images.flip(-1), images)
        if self.rotate:
            return self._turned(images.float())
        return self._moved(images).float() if self.shift else images.float()

    def _moved(self, images: Tensor) -> Tensor:
        """Each image's window out of the image with a border around it."""
        count, _, height, width = images.shape
        by = torch.randint(0, 2 * self.shift + 1, (2, count))
        windows = functional.pad(images, [self.shift] * 4).unfold(2, height, 1).unfold(3, width, 1)
        return windows[torch.arange(count), :, by[0], by[1]]  # of (B, C, 2s+1, 2s+1, H, W)

    def _turned(self, images: Tensor) -> Tensor:
        """Turned around its middle, and shifted, in one bilinear sampling of each image."""
        count, _, height, width = images.shape
        angle = (torch.rand(count, 1) * 2 - 1) * math.radians(self.rotate)
        move = torch.randint(-self.shift, self.shift + 1, (2, count, 1))
        cos, sin = angle.cos(), angle.sin()
        # In pixels from the middle, then as grid_sample has them: -1 to 1 from edge to edge.
        y, x = (t.reshape(1, -1) for t in torch.meshgrid(_centred(height), _centred(width), indexing="ij"))
        grid = torch.empty(count, height * width, 2)
        grid[..., 0] = (cos * x - sin * y + move[0]) * (2 / width)
        grid[..., 1] = (sin * x + cos * y + move[1]) * (2 / height)
        return functional.grid_sample(images, grid.view(count, height, width, 2), align_corners=False)


def _centred(size: int) -> Tensor:
    """Where the pixels of a row lie, from its middle."""
    return torch.arange(size) - (size - 1) / 2
