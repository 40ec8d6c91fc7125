"""Three fifths to train with, one to validate with, one to test with, for sets that bring no split of their own."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from overnight.data.tensors import Part


def by_fifths(inputs: Tensor, targets: Tensor, seed: int, stratify: bool) -> dict[str, Part]:
    """Three fifths train, one validation, one test; stratify: every class with its share in each."""
    classes = targets.numpy() if stratify else np.zeros(len(targets), dtype=int)
    rest, test = parted(classes, 0.2, seed, stratify)
    train, validation = parted(classes[rest], 0.25, seed, stratify)
    return {
        name: Part(inputs, targets, torch.from_numpy(rows))
        for name, rows in (("train", rest[train]), ("validation", rest[validation]), ("test", test))
    }


def parted(classes: np.ndarray, share: float, seed: int, stratify: bool) -> tuple[np.ndarray, np.ndarray]:
    """Rows (n,) of what stays and of what goes, which is `share` of them, rounded up; by chance, in any order.

    The same rows as scikit-learn's train_test_split picks with this seed, without the second that it takes to import.
    """
    chance = np.random.RandomState(seed)
    going = math.ceil(share * len(classes))
    staying = len(classes) - going
    if not stratify:
        order = chance.permutation(len(classes))
        return order[going:], order[:going]
    _, kinds, counts = np.unique(classes, return_inverse=True, return_counts=True)
    stays = _apportioned(counts, staying, chance)
    goes = _apportioned(counts - stays, going, chance)
    of_each = np.split(np.argsort(kinds, kind="stable"), np.cumsum(counts)[:-1])
    shuffled = [rows[chance.permutation(len(rows))] for rows in of_each]
    kept = np.concatenate([rows[:s] for rows, s in zip(shuffled, stays, strict=True)])
    gone = np.concatenate([rows[s : s + g] for rows, s, g in zip(shuffled, stays, goes, strict=True)])
    return chance.permutation(kept), chance.permutation(gone)


def _apportioned(counts: np.ndarray, places: int, chance: np.random.RandomState) -> np.ndarray:
    """How many of `places` each class gets: its share rounded down, the rest to the largest remainders, and chance
    decides among equal ones."""
    exact = counts / counts.sum() * places
    given = np.floor(exact)
    left, remainders = int(places - given.sum()), exact - given
    for remainder in np.unique(remainders)[::-1]:
        if left == 0:
            break
        (equals,) = np.where(remainders == remainder)
        lucky = chance.choice(equals, size=min(len(equals), left), replace=False)
        given[lucky] += 1
        left -= len(lucky)
    return given.astype(int)
