"""Handwritten digits: 1,797 real images, bundled with scikit-learn."""

from __future__ import annotations

import pytorch_lightning as pl
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from overnight.data.tensors import Batches

# Evaluation keeps no gradients, so its batches can be large.
_EVALUATION_BATCH = 1024


class Digits(pl.LightningDataModule):
    """The UCI optical recognition digits (Alpaydin and Kaynak 1998), as scikit-learn carries them.

    1,797 images of 8x8 pixels with 17 shades of grey, scaled to 0 to 1, of ten classes. A fifth is kept for
    validation and a fifth for test, each with every class in its share; `split_seed` fixes which.
    """

    input_shape = (1, 8, 8)
    classes = 10

    def __init__(self, batch_size: int = 32, split_seed: int = 0) -> None:
        super().__init__()
        self._batch_size, self._split_seed = batch_size, split_seed

    def setup(self, stage: str) -> None:  # noqa: ARG002
        images, labels = load_digits(return_X_y=True)  # (1797, 64) of 0 to 16, (1797,)
        rest, test = train_test_split(range(len(labels)), test_size=0.2, stratify=labels, random_state=self._split_seed)
        train, validation = train_test_split(rest, test_size=0.25, stratify=labels[rest], random_state=self._split_seed)
        inputs = torch.from_numpy(images / 16.0).float().reshape(-1, *self.input_shape)  # (1797, 1, 8, 8)
        targets = torch.from_numpy(labels).long()
        self._parts = {
            name: (inputs[rows], targets[rows])
            for name, rows in (("train", train), ("validation", validation), ("test", test))
        }

    def train_dataloader(self) -> Batches:
        return Batches(*self._parts["train"], self._batch_size, shuffle=True)

    def val_dataloader(self) -> Batches:
        return Batches(*self._parts["validation"], _EVALUATION_BATCH)

    def test_dataloader(self) -> Batches:
        return Batches(*self._parts["test"], _EVALUATION_BATCH)
