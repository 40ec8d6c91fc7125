"""Normalisation and augmentation: from raw rows to the network's inputs, one batch at a time."""

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
_CHUNK_ROWS = 2048  # that are converted to numbers at a time to compute statistics


@dataclass(frozen=True)
class Normalisation:
    """Maps inputs to (inputs - shift) * scale, as float. Both tensors broadcast over a batch."""

    shift: Tensor
    scale: Tensor

    def __call__(self, inputs: Tensor) -> Tensor:
        if inputs.is_floating_point():
            return (inputs - self.shift).mul_(self.scale)
        return inputs.float().sub_(self.shift).mul_(self.scale)  # float() makes a copy, which may change in place


def fit_normalisation(part: Part, method: str) -> Normalisation | None:
    """Compute a normalisation from the rows of `part` alone.

    Images (N, C, H, W) are normalised by channel, other rows by feature. Constant features are shifted and not scaled.

    Args:
        part: the training part.
        method: minmax (to the range 0 to 1), standard (mean 0, standard deviation 1) or none.

    Returns:
        The normalisation, or None for "none".
    """
    if method == "none":
        return None
    byte_images = part.inputs.ndim == 4 and part.inputs.dtype == torch.uint8
    shift, spread = (_statistics_of_bytes if byte_images else _statistics)(part, method)
    scale = torch.where(spread > 0, 1 / spread, 1.0)
    shape = (-1, 1, 1) if part.inputs.ndim == 4 else (-1,)
    return Normalisation(shift.float().view(shape), scale.float().view(shape))


def _statistics(part: Part, method: str) -> tuple[Tensor, Tensor]:
    """Return minimum and range, or mean and standard deviation, as double, for each channel (C,) or feature (F,)."""
    dims = (0, 2, 3) if part.inputs.ndim == 4 else (0,)
    chunks = part.rows.split(_CHUNK_ROWS)
    if method == "minmax":
        values = [part.inputs.index_select(0, rows) for rows in chunks]
        minimum = torch.stack([v.amin(dims) for v in values]).amin(0).double()
        return minimum, torch.stack([v.amax(dims) for v in values]).amax(0).double() - minimum
    sums, squares, count = torch.zeros(()), torch.zeros(()), 0
    for rows in chunks:
        chunk = part.inputs.index_select(0, rows).double()
        sums, squares = sums + chunk.sum(dims), squares + chunk.square().sum(dims)
        count += chunk.numel() // sums.numel()
    mean = sums / count
    return mean, (squares / count - mean.square()).clamp(min=0).sqrt()


def _statistics_of_bytes(part: Part, method: str) -> tuple[Tensor, Tensor]:
    """Return the same for images of bytes, exactly, from the counts of the 256 values, in a quarter of the time."""
    channels = part.inputs.shape[1]
    counts = torch.zeros(channels, 256, dtype=torch.long)
    for rows in part.rows.split(_CHUNK_ROWS):
        values = part.inputs.index_select(0, rows)
        for channel in range(channels):
            counts[channel] += torch.bincount(values[:, channel].flatten(), minlength=256)
    if method == "minmax":
        present = counts > 0
        minimum = present.int().argmax(1)
        maximum = 255 - present.flip(1).int().argmax(1)
        return minimum.double(), (maximum - minimum).double()
    value, share = torch.arange(256).double(), counts.double() / counts.sum(1, keepdim=True)
    mean = share @ value
    return mean, (share * (value - mean.view(-1, 1)).square()).sum(1).sqrt()


@dataclass(frozen=True)
class Augmentation:
    """Changes each image of a batch at random, (B, C, H, W) -> the same shape as float. Pixels from outside are 0.

    Random numbers come from torch's global generator, which is part of a trial's saved state.

    Attributes:
        shift: maximum shift in each direction, in pixels.
        rotate: maximum rotation to either side, in degrees.
        flip: exchange left and right, with probability 0.5.
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
    def from_options(options: Mapping[str, Any]) -> Augmentation | None:
        """Build from the configuration's mapping; None if it changes nothing. Raise ValueError for unknown keys."""
        known = [f.name for f in fields(Augmentation)]
        for name in options:
            if name not in known:
                raise ValueError(f"data.augment.{name}: no such key; there are {', '.join(known)}")
        augmentation = Augmentation(**options)
        return augmentation if augmentation != Augmentation() else None

    def __call__(self, images: Tensor) -> Tensor:
        if self.flip:
            flipped = torch.rand(len(images)) < 0.5
            images = torch.where(flipped.view(-1, 1, 1, 1), images.flip(-1), images)
        if self.rotate:
            return self._rotated(images.float())
        return self._shifted(images).float() if self.shift else images.float()

    def _shifted(self, images: Tensor) -> Tensor:
        """Pad each image and cut a window of its size out of it."""
        count, _, height, width = images.shape
        by = torch.randint(0, 2 * self.shift + 1, (2, count))
        windows = functional.pad(images, [self.shift] * 4).unfold(2, height, 1).unfold(3, width, 1)
        return windows[torch.arange(count), :, by[0], by[1]]  # of (B, C, 2s+1, 2s+1, H, W)

    def _rotated(self, images: Tensor) -> Tensor:
        """Rotate around the centre and shift, in one bilinear sampling of each image."""
        count, _, height, width = images.shape
        angle = (torch.rand(count, 1) * 2 - 1) * math.radians(self.rotate)
        move = torch.randint(-self.shift, self.shift + 1, (2, count, 1))
        cos, sin = angle.cos(), angle.sin()
        # Coordinates in pixels from the centre, then as grid_sample takes them, from -1 to 1 between the edges.
        y, x = (t.reshape(1, -1) for t in torch.meshgrid(_centred(height), _centred(width), indexing="ij"))
        grid = torch.empty(count, height * width, 2)
        grid[..., 0] = (cos * x - sin * y + move[0]) * (2 / width)
        grid[..., 1] = (sin * x + cos * y + move[1]) * (2 / height)
        return functional.grid_sample(images, grid.view(count, height, width, 2), align_corners=False)


def _centred(size: int) -> Tensor:
    """Return the positions of `size` pixels relative to their centre."""
    return torch.arange(size) - (size - 1) / 2
