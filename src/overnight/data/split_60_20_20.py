"""Split a data set without an official split: 60% for training, 20% for validation, 20% for the test."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from overnight.data.tensors import Part


def split_60_20_20(inputs: Tensor, targets: Tensor, seed: int, stratify: bool) -> dict[str, Part]:
    """Split rows at random into train, validation and test.

    Args:
        inputs: (N, ...).
        targets: (N,).
        seed: of the random split.
        stratify: give each part the same share of every class.
    """
    classes = targets.numpy() if stratify else np.zeros(len(targets), dtype=int)
    rest, test = train_test_rows(classes, 0.2, seed, stratify)
    train, validation = train_test_rows(classes[rest], 0.25, seed, stratify)
    return {
        name: Part(inputs, targets, torch.from_numpy(rows))
        for name, rows in (("train", rest[train]), ("validation", rest[validation]), ("test", test))
    }


def train_test_rows(classes: np.ndarray, test_share: float, seed: int, stratify: bool) -> tuple[np.ndarray, np.ndarray]:
    """Return the same rows as scikit-learn's train_test_split, without the second that its import takes.

    Args:
        classes: (N,), class of each row.
        test_share: share of the test rows; their number is rounded up.
        seed: random_state of train_test_split.
        stratify: give both parts the same share of every class.

    Returns:
        Indices of the training rows and of the test rows, shuffled.
    """
    random = np.random.RandomState(seed)
    tests = math.ceil(test_share * len(classes))
    if not stratify:
        order = random.permutation(len(classes))
        return order[tests:], order[:tests]
    _, labels, counts = np.unique(classes, return_inverse=True, return_counts=True)
    train_counts = _rows_per_class(counts, len(classes) - tests, random)
    test_counts = _rows_per_class(counts - train_counts, tests, random)
    rows_of_classes = np.split(np.argsort(labels, kind="stable"), np.cumsum(counts)[:-1])
    shuffled = [rows[random.permutation(len(rows))] for rows in rows_of_classes]
    train = np.concatenate([rows[:n] for rows, n in zip(shuffled, train_counts, strict=True)])
    test = np.concatenate([rows[n : n + m] for rows, n, m in zip(shuffled, train_counts, test_counts, strict=True)])
    return random.permutation(train), random.permutation(test)


def _rows_per_class(counts: np.ndarray, total: int, random: np.random.RandomState) -> np.ndarray:
    """Divide `total` rows among the classes in proportion to `counts`, by the largest remainder; ties are random."""
    exact = counts / counts.sum() * total
    rows = np.floor(exact)
    missing, remainders = int(total - rows.sum()), exact - rows
    for remainder in np.unique(remainders)[::-1]:
        if missing == 0:
            break
        (tied,) = np.where(remainders == remainder)
        chosen = random.choice(tied, size=min(len(tied), missing), replace=False)
        rows[chosen] += 1
        missing -= len(chosen)
    return rows.astype(int)
