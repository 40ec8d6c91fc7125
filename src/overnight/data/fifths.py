"""Three fifths to train with, one to validate with, one to test with, for sets that bring no split of their own."""

from __future__ import annotations

import torch
from sklearn.model_selection import train_test_split
from torch import Tensor

from overnight.data.tensors import Part


def by_fifths(inputs: Tensor, targets: Tensor, seed: int, stratify: bool) -> dict[str, Part]:
    """Three fifths train, one validation, one test; stratify: every class with its share in each."""
    classes = targets.numpy() if stratify else None
    rest, test = train_test_split(range(len(targets)), test_size=0.2, stratify=classes, random_state=seed)
    among = classes[rest] if classes is not None else None
    train, validation = train_test_split(rest, test_size=0.25, stratify=among, random_state=seed)
    return {
        name: Part(inputs, targets, torch.tensor(rows))
        for name, rows in (("train", train), ("validation", validation), ("test", test))
    }
