"""What comes with overnight to be tuned: the digits, and the network for them."""

from __future__ import annotations

import pytest
import torch

from overnight.data.digits import Digits
from overnight.data.tensors import Batches
from overnight.models.mlp import ACTIVATIONS, MLP


def rows(batches: Batches) -> torch.Tensor:
    return torch.cat([inputs.flatten(1) for inputs, _ in batches])


def test_the_splits_share_no_image_and_hold_all_of_them() -> None:
    data = Digits()
    data.setup("fit")
    parts = [rows(loader()) for loader in (data.train_dataloader, data.val_dataloader, data.test_dataloader)]
    assert [len(p) for p in parts] == [1077, 360, 360]
    distinct = {tuple(row.tolist()) for part in parts for row in part}
    assert len(distinct) == 1797


def test_the_split_depends_on_its_own_seed_alone() -> None:
    def validation(**options: int) -> torch.Tensor:
        data = Digits(**options)
        data.setup("fit")
        return rows(data.val_dataloader())

    torch.manual_seed(1)
    first = validation()
    torch.manual_seed(2)
    assert torch.equal(first, validation(batch_size=7))
    assert not torch.equal(first, validation(split_seed=1))


def test_every_class_has_its_share_of_every_split() -> None:
    data = Digits()
    data.setup("fit")
    counts = torch.cat([targets for _, targets in data.val_dataloader()]).bincount()
    assert counts.min() >= 34
    assert counts.max() <= 38


def test_batches_hold_every_row_once_in_an_order_that_changes_with_the_generator_alone() -> None:
    x, y = torch.arange(10.0), torch.arange(10)
    batches = Batches(x, y, 4, shuffle=True)
    assert [len(b) for b, _ in batches] == [4, 4, 2]
    assert len(batches) == 3
    torch.manual_seed(0)
    first = torch.cat([b for b, _ in batches])
    second = torch.cat([b for b, _ in batches])
    torch.manual_seed(0)
    assert torch.equal(first, torch.cat([b for b, _ in batches]))
    assert not torch.equal(first, second)
    assert torch.equal(first.sort().values, x)
    assert all(torch.equal(b.long(), t) for b, t in batches)


@pytest.mark.parametrize("size", [0, -1])
def test_a_batch_has_at_least_one_row(size: int) -> None:
    with pytest.raises(ValueError, match=r"data\.batch_size: must be at least 1"):
        Batches(torch.zeros(3), torch.zeros(3), size)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_the_network_has_the_shape_it_was_told(activation: str) -> None:
    model = MLP((1, 8, 8), 10, [32, 16], activation, dropout=0.5)
    assert model(torch.zeros(5, 1, 8, 8)).shape == (5, 10)
    assert sum(p.numel() for p in model.parameters()) == 64 * 32 + 32 + 32 * 16 + 16 + 16 * 10 + 10


def test_no_hidden_layer_makes_softmax_regression() -> None:
    model = MLP((64,), 10, [])
    assert sum(p.numel() for p in model.parameters()) == 650


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"activation": "reul"}, "model.activation: must be one of relu"),
        ({"dropout": 1.0}, "model.dropout: must be from 0 to below 1, got 1.0"),
        ({"hidden_sizes": [4, 0]}, "model.hidden_sizes: each must be at least 1"),
    ],
)
def test_an_impossible_network_is_refused_with_key_value_and_rule(options: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words.replace(".", r"\.")):
        MLP((64,), 10, **options)  # type: ignore[arg-type]
