"""Handwritten digits: 1,797 real images, bundled with scikit-learn."""

from __future__ import annotations

import torch

from overnight.data.bundled import read_table
from overnight.data.split import SplitData
from overnight.data.split_60_20_20 import split_60_20_20
from overnight.data.tensors import Part


class Digits(SplitData):
    """The UCI optical recognition digits (Alpaydin and Kaynak 1998), from scikit-learn.

    1,797 images of 8x8 pixels with 17 shades of grey, 0 to 16, of ten classes. The split is 60% for training, 20% for
    validation and 20% for the test, with the same share of every class in each.
    """

    task = "multiclass"
    input_shape = (1, 8, 8)
    classes = 10
    pixel_max = 16.0

    def split(self, seed: int) -> dict[str, Part]:
        rows = torch.from_numpy(read_table("digits", delimiter=","))  # (1797, 64 + 1)
        inputs = rows[:, :-1].float().reshape(-1, *self.input_shape)
        return split_60_20_20(inputs, rows[:, -1].long(), seed, stratify=True)
