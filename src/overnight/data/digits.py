"""Handwritten digits: 1,797 real images, bundled with scikit-learn."""

from __future__ import annotations

import torch

from overnight.data.bundled import table
from overnight.data.split import SplitData
from overnight.data.split_60_20_20 import by_fifths
from overnight.data.tensors import Part


class Digits(SplitData):
    """The UCI optical recognition digits (Alpaydin and Kaynak 1998), as scikit-learn carries them.

    1,797 images of 8x8 pixels with 17 shades of grey, 0 to 16, of ten classes. A fifth is kept for validation and a
    fifth for test, each with every class in its share.
    """

    task = "multiclass"
    input_shape = (1, 8, 8)
    classes = 10
    brightest = 16.0

    def split(self, seed: int) -> dict[str, Part]:
        rows = torch.from_numpy(table("digits", delimiter=","))  # (1797, 64 + 1)
        inputs = rows[:, :-1].float().reshape(-1, *self.input_shape)
        return by_fifths(inputs, rows[:, -1].long(), seed, stratify=True)
