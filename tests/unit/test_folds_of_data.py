"""Cross-validation in the data modules: which rows are in which fold, and from which rows statistics come."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from overnight.data.bundled import read_table
from overnight.data.diabetes import Diabetes
from overnight.data.digits import Digits
from overnight.data.purchase import Purchase
from overnight.data.split import SplitData
from overnight.data.split_60_20_20 import split_60_20_20


def made(module: Callable[..., SplitData], **options: object) -> SplitData:
    data = module(**options)
    data.prepare_data()
    data.setup("fit")
    return data


def rows_of(data: SplitData) -> dict[str, set[int]]:
    return {name: set(part.rows.tolist()) for name, part in data._parts.items()}


@pytest.mark.parametrize("module", [Diabetes, Digits, Purchase])
def test_each_row_is_validated_in_one_fold_and_trains_in_all_others(module: type[SplitData]) -> None:
    plain = rows_of(made(module))
    pool, folds = plain["train"] | plain["validation"], [rows_of(made(module, fold=k, folds=5)) for k in range(5)]
    assert sorted(row for fold in folds for row in fold["validation"]) == sorted(pool)
    assert all(fold["train"] == pool - fold["validation"] for fold in folds)
    assert all(fold["test"] == plain["test"] for fold in folds)
    sizes = [len(fold["validation"]) for fold in folds]
    assert max(sizes) - min(sizes) <= 1


def test_folds_are_the_same_in_each_process_and_differ_with_the_seed_of_the_split() -> None:
    first, again, other = (made(Digits, fold=1, folds=3, split_seed=seed) for seed in (0, 0, 1))
    assert torch.equal(first._parts["validation"].rows, again._parts["validation"].rows)
    assert rows_of(first)["validation"] != rows_of(other)["validation"]


def test_folds_of_a_classification_have_the_same_share_of_each_class() -> None:
    counts = []
    for fold in range(5):
        part = made(Digits, fold=fold, folds=5)._parts["validation"]
        counts.append(torch.bincount(part.targets[part.rows], minlength=10))
    spread = torch.stack(counts).amax(0) - torch.stack(counts).amin(0)
    assert spread.max() <= 1


def test_a_subset_of_the_training_rows_of_a_fold_has_all_classes() -> None:
    part = made(Digits, fold=0, folds=5, subset=0.1)._parts["train"]
    assert len(part.targets[part.rows].unique()) == 10


def test_statistics_come_from_the_training_rows_of_the_fold() -> None:
    data = made(Diabetes, fold=2, folds=5, normalise="standard")
    part = data._parts["train"]
    inputs, targets = data.prepare_inputs(part.inputs[part.rows]), part.targets[part.rows]
    assert torch.allclose(inputs.mean(0), torch.zeros(10), atol=1e-5)
    assert float(targets.mean()) == pytest.approx(0, abs=1e-6)
    assert float(targets.std(correction=0)) == pytest.approx(1, abs=1e-6)
    assert data.state_dict()["mean"] != made(Diabetes, fold=3, folds=5).state_dict()["mean"]


def test_without_folds_rows_and_targets_are_what_they_were() -> None:
    data = made(Diabetes)
    targets = torch.from_numpy(read_table("diabetes_target", delimiter=" "))
    parts = split_60_20_20(torch.zeros(442, 10), targets, 0, stratify=False)
    of_training = targets[parts["train"].rows]
    expected = ((targets - float(of_training.mean())) / float(of_training.std(correction=0))).float()
    assert all(torch.equal(data._parts[name].rows, part.rows) for name, part in parts.items())
    assert torch.equal(data._parts["train"].targets, expected)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"fold": 0}, "data.fold: must be given with data.folds"),
        ({"fold": 5, "folds": 5}, "data.fold: must be from 0 to 4, got 5"),
        ({"fold": 0, "folds": 1}, "data.folds: must be at least 2, or null for none, got 1"),
    ],
)
def test_a_fold_that_does_not_exist_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Diabetes(**options)


def test_more_folds_than_rows_are_refused() -> None:
    with pytest.raises(ValueError, match="two rows in each fold of the 353 rows, got 200"):
        made(Diabetes, fold=0, folds=200)
