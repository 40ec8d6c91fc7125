"""The shortcuts for DataLoaders and self.log change neither batches, nor random draws, nor what is logged."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.trainer.connectors.logger_connector.result import _ResultMetric
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, RandomSampler, Subset, TensorDataset, default_collate
from torch.utils.data._utils import collate
from torch.utils.data._utils.fetch import _MapDatasetFetcher

from overnight.protocol import Decision
from overnight.trial import fast_loading
from overnight.trial.fit import fit
from support.trial_links import ListLink, weights
from support.user_trials import USER_PACKAGE, spec_for

ROWS = 50


@pytest.fixture(autouse=True)
def _originals() -> Iterator[None]:
    """Begin and end each test with the functions of torch and Lightning."""
    replaced = ((_MapDatasetFetcher, "fetch"), (_ResultMetric, "to"))
    for owner, name in replaced:
        setattr(owner, name, getattr(getattr(owner, name), "__wrapped__", getattr(owner, name)))
    yield
    for owner, name in replaced:
        setattr(owner, name, getattr(getattr(owner, name), "__wrapped__", getattr(owner, name)))


class Own(TensorDataset):
    def __getitem__(self, index: Any) -> tuple[Tensor, ...]:
        return tuple(t + 1 for t in super().__getitem__(index))


def tensors() -> list[Tensor]:
    drawn = torch.Generator().manual_seed(0)
    return [
        torch.randn(ROWS, 1, 4, 4, generator=drawn),
        torch.randint(9, (ROWS,), generator=drawn),
        torch.randint(256, (ROWS, 3), generator=drawn, dtype=torch.uint8),
        torch.randn(ROWS, 2, generator=drawn).to(torch.bfloat16),
        torch.rand(ROWS, generator=drawn) > 0.5,
        torch.randn(ROWS, 3, 4, 4, generator=drawn).contiguous(memory_format=torch.channels_last),
        torch.randn(6, ROWS, generator=drawn).T,
    ]


def epochs(loader: DataLoader[Any]) -> list[Any]:
    """Two epochs, and the state of the global generator after them."""
    torch.manual_seed(3)
    return [[*loader], [*loader], torch.get_rng_state()]


def assert_same(found: Any, expected: Any) -> None:
    assert type(found) is type(expected)
    if isinstance(expected, Tensor):
        assert found.dtype == expected.dtype
        assert found.stride() == expected.stride()
        assert torch.equal(found, expected)
    else:
        assert len(found) == len(expected)
        for a, b in zip(found, expected, strict=True):
            assert_same(a, b)


OPTIONS: dict[str, dict[str, Any]] = {
    "in order": {},
    "shuffled": {"shuffle": True},
    "drop_last": {"shuffle": True, "drop_last": True},
    "a generator": {"shuffle": True, "generator": True},
    "drawn with replacement": {"sampler": lambda data: RandomSampler(data, replacement=True, num_samples=70)},
    "rows from the end": {"batch_sampler": lambda _: [[-1, -2], [0, 1]]},
    "its own collate function": {"collate_fn": lambda rows: [default_collate(rows)]},
    "no batches": {"batch_size": None},
}


@pytest.mark.parametrize("kind", ["TensorDataset", "Subset", "Subset of a Subset", "its own class"])
@pytest.mark.parametrize("options", OPTIONS)
def test_every_batch_and_every_random_draw_is_that_of_torch(kind: str, options: str) -> None:
    whole = (Own if kind == "its own class" else TensorDataset)(*tensors())
    data: Dataset[Any] = Subset(whole, [*range(40, 5, -1)]) if "Subset" in kind else whole
    data = Subset(data, torch.arange(20).tolist()) if kind == "Subset of a Subset" else data

    def loader() -> DataLoader[Any]:
        given = {k: v(data) if callable(v) and k != "collate_fn" else v for k, v in OPTIONS[options].items()}
        if "generator" in given:
            given["generator"] = torch.Generator().manual_seed(8)
        sizes: dict[str, Any] = {} if {"batch_size", "batch_sampler"} & given.keys() else {"batch_size": 16}
        return DataLoader(data, **sizes, **given)

    expected = epochs(loader())
    fast_loading.enable(pl)
    assert_same(epochs(loader()), expected)


def test_whole_batches_are_fetched_and_belong_to_the_module(monkeypatch: pytest.MonkeyPatch) -> None:
    data = TensorDataset(*tensors()[:2])
    fast_loading.enable(pl)
    monkeypatch.setattr(TensorDataset, "__getitem__", lambda *_: pytest.fail("a row was fetched"))
    before = copy.deepcopy(data.tensors)
    for batch in DataLoader(data, 16):
        batch[0].zero_()
    assert_same(data.tensors, before)


def test_a_changed_collate_map_and_workers_are_left_to_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    fast_loading.enable(pl)
    data = TensorDataset(torch.arange(8.0))
    assert_same([*DataLoader(data, 4, num_workers=1)], [[torch.arange(4.0)], [torch.arange(4.0, 8.0)]])
    monkeypatch.setitem(collate.default_collate_fn_map, torch.Tensor, lambda rows, **_: len(rows))
    assert [*DataLoader(data, 4)] == [[4], [4]]


def test_functions_of_another_version_are_not_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    def fetch(self: Any, index: Any) -> Any:
        return self.another_version(index)

    monkeypatch.setattr(_MapDatasetFetcher, "fetch", fetch)
    fast_loading.enable(pl)
    assert _MapDatasetFetcher.fetch is fetch
    moved: Any = _ResultMetric.to
    assert moved is not moved.__wrapped__
    fast_loading.enable(pl)
    assert _ResultMetric.to is moved, "nothing is replaced twice"


def test_a_trial_has_the_same_weights_and_logged_values_also_when_it_is_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = (f"{USER_PACKAGE}Classifier", f"{USER_PACKAGE}TensorData")
    with monkeypatch.context() as patches:
        patches.setattr(fast_loading, "enable", lambda _: None)
        fit(spec_for(tmp_path / "torch", *names, epochs=4), plain := ListLink())
    assert not hasattr(_MapDatasetFetcher.fetch, "__wrapped__")
    fit(spec_for(tmp_path / "fast", *names, epochs=4), fast := ListLink())
    assert hasattr(_MapDatasetFetcher.fetch, "__wrapped__")
    fit(spec_for(tmp_path / "cut", *names, epochs=4), first := ListLink({1: Decision.SAVE_AND_STOP}))
    fit(spec_for(tmp_path / "cut", *names, epochs=4), second := ListLink())
    assert len(plain.curve) == 4
    assert fast.curve == plain.curve == first.curve + second.curve
    expected = weights(tmp_path / "torch")
    for folder in ("fast", "cut"):
        assert_same([*weights(tmp_path / folder).values()], [*expected.values()])
