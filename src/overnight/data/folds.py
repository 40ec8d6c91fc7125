"""Cross-validation: the pooled training and validation rows, divided into folds."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from overnight.data.tensors import Part


def check_fold(fold: int | None, folds: int | None) -> None:
    """Raise ValueError for a fold that does not exist. Both are None without cross-validation."""
    if (fold is None) != (folds is None):
        raise ValueError(f"data.fold: must be given with data.folds, got fold={fold} and folds={folds}")
    if folds is not None and folds < 2:
        raise ValueError(f"data.folds: must be at least 2, or null for none, got {folds}")
    if fold is not None and folds is not None and not 0 <= fold < folds:
        raise ValueError(f"data.fold: must be from 0 to {folds - 1}, got {fold}")


def fold_parts(parts: Mapping[str, Part], fold: int, folds: int, seed: int, stratify: bool) -> dict[str, Part]:
    """Make one fold of the pooled training and validation rows the validation part, and the rest the training part.

    The folds share no row, hold all rows together, and differ in size by at most one row. The test part stays.

    Args:
        parts: train, validation and test.
        fold: from 0 to below `folds`.
        seed: of the random division, which is the same for each fold.
        stratify: give each fold the same share of every class, but for one row.
    """
    pool = _pooled(parts["train"], parts["validation"])
    if len(pool) < 2 * folds:
        raise ValueError(f"data.folds: must leave two rows in each fold of the {len(pool)} rows, got {folds}")
    order = torch.randperm(len(pool), generator=torch.Generator().manual_seed(seed))
    dealt = order
    if stratify:  # the rows of each class follow each other, so that they are dealt out to the folds in turn
        dealt = order[torch.argsort(pool.targets[pool.rows[order]], stable=True)]
    fold_of = torch.empty(len(pool), dtype=torch.long)  # (rows of the pool,)
    fold_of[dealt] = torch.arange(len(pool)) % folds
    rows, is_validation = pool.rows[order], fold_of[order] == fold
    return {
        **parts,
        "train": Part(pool.inputs, pool.targets, rows[~is_validation]),
        "validation": Part(pool.inputs, pool.targets, rows[is_validation]),
    }


def _pooled(train: Part, validation: Part) -> Part:
    """Return one part with the rows of both, without a copy if they share their tensors."""
    if train.inputs is validation.inputs and train.targets is validation.targets:
        return Part(train.inputs, train.targets, torch.cat([train.rows, validation.rows]))
    inputs, targets = (
        torch.cat([getattr(part, name).index_select(0, part.rows) for part in (train, validation)])
        for name in ("inputs", "targets")
    )
    return Part(inputs, targets, torch.arange(len(inputs)))
