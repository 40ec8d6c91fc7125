"""Handwritten digits: 1,797 real images, bundled with scikit-learn."""

from __future__ import annotations

import torch
from sklearn.datasets import load_digits

from overnight.data.fifths import by_fifths
from overnight.data.split import SplitData
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
        images, labels = load_digits(return_X_y=True)  # (1797, 64), (1797,)
        inputs = torch.from_numpy(images).float().reshape(-1, *self.input_shape)
        return by_fifths(inputs, torch.from_numpy(labels).long(), seed, stratify=True)
