"""The bundled data sets that need no download, and the MLP."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.datasets import load_diabetes, load_digits
from sklearn.linear_model import LogisticRegression, RidgeCV
from sklearn.model_selection import train_test_split

from overnight.data.diabetes import Diabetes
from overnight.data.digits import Digits
from overnight.data.purchase import Purchase
from overnight.data.split import SplitData
from overnight.data.split_60_20_20 import train_test_rows
from overnight.data.tensors import Batches, Part
from overnight.data.transforms import fit_normalisation
from overnight.models.mlp import ACTIVATIONS, MLP
from overnight.trial.fit import fit
from support.trial_links import ListLink, spec_for


def rows(batches: Batches) -> torch.Tensor:
    return torch.cat([inputs.flatten(1) for inputs, _ in batches])


def test_the_splits_are_disjoint_and_contain_all_images() -> None:
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


@pytest.mark.parametrize("stratify", [True, False])
def test_rows_are_split_as_scikit_learn_splits_them(stratify: bool) -> None:
    for seed in range(10):
        classes = np.random.default_rng(seed).integers(0, 3 + seed, 251 + seed)
        whose = classes if stratify else None
        wanted = train_test_split(range(len(classes)), test_size=0.2, stratify=whose, random_state=seed)
        found = train_test_rows(classes, 0.2, seed, stratify)
        assert [part.tolist() for part in found] == [list(part) for part in wanted]


def test_the_bundled_tables_are_the_ones_that_scikit_learn_loads() -> None:
    images, labels = load_digits(return_X_y=True)
    train = Digits().split(0)["train"]
    assert np.array_equal(train.inputs.flatten(1), images)
    assert np.array_equal(train.targets, labels)
    assert np.allclose(Diabetes().split(0)["train"].inputs, load_diabetes(return_X_y=True, scaled=False)[0])


@pytest.mark.parametrize("how", ["minmax", "standard"])
def test_byte_images_are_normalised_like_the_same_numbers_as_floats(how: str) -> None:
    drawn = torch.Generator().manual_seed(0)
    pictures = torch.randint(3, 250, (300, 3, 5, 4), generator=drawn, dtype=torch.uint8)
    pictures[:, 1] = 7  # a channel that is the same everywhere
    rows = torch.arange(20, 300)
    before = pictures.clone()
    for_bytes, for_doubles = (
        fit_normalisation(Part(p, torch.zeros(300), rows), how) for p in (pictures, pictures.double())
    )
    assert torch.allclose(for_bytes(pictures), for_doubles(pictures.float()), atol=1e-6)
    assert torch.equal(pictures, before)


def test_splits_are_stratified_by_class() -> None:
    data = Digits()
    data.setup("fit")
    counts = torch.cat([targets for _, targets in data.val_dataloader()]).bincount()
    assert counts.min() >= 34
    assert counts.max() <= 38


def arrays(data: SplitData) -> tuple[tuple[np.ndarray, np.ndarray], ...]:
    """Return (inputs, targets) of training and of validation."""
    data.setup("fit")
    parts = []
    for loader in (data.train_dataloader(), data.val_dataloader()):
        batches = list(loader)
        parts.append(tuple(torch.cat([batch[i] for batch in batches]).numpy() for i in (0, 1)))
    return tuple(parts)  # type: ignore[return-value]


@pytest.mark.long
def test_a_network_learns_the_purchase_data_and_a_linear_model_does_not(tmp_path: Path) -> None:
    train, validation = arrays(Purchase(normalise="standard"))
    assert 0.4 < train[1].mean() < 0.6
    assert LogisticRegression().fit(*train).score(*validation) < 0.85
    overrides = ["data=purchase", "model.hidden_sizes=[16,16]", "optimizer.lr=0.02", "trainer.max_epochs=30"]
    fit(spec_for(tmp_path, *overrides), link := ListLink())
    metrics = link.epochs[-1].metrics
    assert set(metrics) == {"train/loss", "val/loss", "val/accuracy", "val/auroc", "val/f1"}
    assert metrics["val/accuracy"] >= 0.97


def test_a_network_predicts_diabetes_about_as_well_as_ridge_regression(tmp_path: Path) -> None:
    train, validation = arrays(Diabetes(normalise="standard"))
    assert abs(train[1].mean()) < 1e-5
    assert train[1].std() == pytest.approx(1, abs=1e-4)
    ridge = RidgeCV(np.logspace(-2, 3, 30)).fit(*train).score(*validation)
    assert 0.4 < ridge < 0.6
    overrides = ["data=diabetes", "model.hidden_sizes=[20]", "model.activation=tanh", "optimizer=sgd"]
    fit(spec_for(tmp_path, *overrides, "optimizer.momentum=0.0", "trainer.max_epochs=20"), link := ListLink())
    metrics = link.epochs[-1].metrics
    assert set(metrics) == {"train/loss", "val/loss", "val/mae", "val/rmse", "val/r2"}
    assert metrics["val/rmse"] ** 2 == pytest.approx(metrics["val/loss"], rel=1e-4)
    assert metrics["val/r2"] > ridge - 0.02


def test_only_images_can_be_augmented() -> None:
    with pytest.raises(ValueError, match=r"data\.augment: is for images"):
        Diabetes(augment={"shift": 1})


@pytest.mark.parametrize("share", [0.0, 1.5])
def test_a_subset_is_a_share_of_the_training_rows(share: float) -> None:
    with pytest.raises(ValueError, match=r"data\.subset: must be above 0 and at most 1"):
        Digits(subset=share)


def test_only_training_is_augmented() -> None:
    def validation(**options: object) -> torch.Tensor:
        data = Digits(**options)
        data.setup("fit")
        return rows(data.val_dataloader())

    assert torch.equal(validation(), validation(augment={"shift": 2, "rotate": 30, "flip": True}))


def test_a_single_last_row_is_dropped_in_training_only() -> None:
    x = torch.arange(9.0)
    assert [len(b) for b, _ in Batches(x, x, 4, shuffle=True)] == [4, 4]
    assert [len(b) for b, _ in Batches(x, x, 4)] == [4, 4, 1]
    assert [len(b) for b, _ in Batches(x, x, 1, shuffle=True)] == [1] * 9


def test_batches_contain_every_row_once_in_an_order_that_depends_only_on_the_generator() -> None:
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


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"batch_size": 0}, r"data\.batch_size: must be at least 1, got 0"),
        ({"batch_size": -3}, r"data\.batch_size: must be at least 1, got -3"),
        ({"normalise": "zscore"}, r"data\.normalise: must be one of none, minmax, standard, got 'zscore'"),
    ],
)
def test_a_data_module_checks_its_rules_when_it_is_built(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Digits(**wrong)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_the_network_has_the_configured_shape(activation: str) -> None:
    model = MLP((1, 8, 8), 10, [32, 16], activation, dropout=0.5)
    assert model(torch.zeros(5, 1, 8, 8)).shape == (5, 10)
    assert sum(p.numel() for p in model.parameters()) == 64 * 32 + 32 + 32 * 16 + 16 + 16 * 10 + 10


def test_a_network_without_hidden_layers_is_softmax_regression() -> None:
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
