"""What training changes in an object is saved as plain data, and set again in an object that was built the same way."""

from __future__ import annotations

import io
import itertools
import random
from collections import defaultdict
from collections.abc import Callable
from enum import Enum
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from overnight.trial import live_state
from overnight.trial.live_state import LiveState
from overnight.trial.plain_values import Encoder, equal_trees


class Phase(Enum):
    WARM = 1
    COLD = 2


def resumed(make: Callable[[], Any], change: Callable[[Any], None]) -> tuple[Any, Any, list[str]]:
    """Return an object that was changed, one that was resumed from its state, and the names of what is lost."""
    first, second = make(), make()
    live = LiveState({"model": first})
    change(first)
    saved, lost = live.save()
    buffer = io.BytesIO()
    torch.save(saved, buffer)
    buffer.seek(0)
    with torch.no_grad():
        if isinstance(second, nn.Module):
            second.load_state_dict(first.state_dict())
    lost += LiveState({"model": second}).restore(torch.load(buffer, weights_only=True))
    return first, second, lost


def content(value: Any) -> Any:
    return Encoder(lambda _: None, {}).encode(value)


class Thing:
    def __init__(self, **attributes: Any) -> None:
        vars(self).update(attributes)


def net(**attributes: Any) -> nn.Module:
    module = nn.Module()
    module.layer = nn.Linear(3, 3)
    for name, value in attributes.items():
        setattr(module, name, value)
    return module


@pytest.mark.parametrize("size", [4, 100_000])
def test_tensors_that_are_made_in_inference_mode_are_restored(size: int) -> None:
    def change(thing: Any) -> None:
        with torch.inference_mode():
            thing.first += 1
            thing.later = torch.ones(size)

    def make() -> Thing:
        with torch.inference_mode():
            return Thing(first=torch.zeros(size), later=torch.zeros(size))

    _, second, lost = resumed(make, change)
    assert not lost
    assert float(second.first.min()) == float(second.later.min()) == 1


@pytest.mark.filterwarnings("ignore:Sparse", "ignore:Validating sparse")
@pytest.mark.parametrize("layout", [torch.sparse_coo, torch.sparse_csr])
def test_sparse_tensors_are_restored(layout: torch.layout) -> None:
    def sparse(value: float) -> torch.Tensor:
        return (torch.eye(3) * value).to_sparse(layout=layout)

    def make() -> Any:
        module = net(plain=sparse(1), unchanged=sparse(1))
        module.register_buffer("adjacency", sparse(1), persistent=False)
        return module

    def change(module: Any) -> None:
        module.plain = sparse(2)
        module.adjacency = sparse(3)

    first, second, lost = resumed(make, change)
    assert not lost
    for name in ("plain", "unchanged", "adjacency"):
        assert torch.equal(getattr(first, name).to_dense(), getattr(second, name).to_dense())
        assert getattr(second, name).layout is layout


def test_a_tensor_without_data_is_named() -> None:
    _, _, lost = resumed(lambda: Thing(a=None), lambda thing: setattr(thing, "a", torch.ones(2, device="meta")))
    assert lost == ["model.a"]


def test_an_attribute_that_becomes_a_weight_shares_its_memory_again() -> None:
    def change(module: Any) -> None:
        module.ref = module.layer.weight.detach()

    first, second, lost = resumed(lambda: net(ref=torch.zeros(3, 3)), change)
    assert not lost
    assert torch.equal(second.ref, first.layer.weight)
    assert second.ref.data_ptr() == second.layer.weight.data_ptr()


def test_an_attribute_that_is_no_weight_any_more_leaves_the_weight_alone() -> None:
    def make() -> Any:
        module = net()
        module.ref = module.layer.weight.detach()
        return module

    def change(module: Any) -> None:
        module.ref = torch.full((3, 3), 7.0)

    first, second, _ = resumed(make, change)
    assert torch.equal(second.ref, first.ref)
    assert torch.equal(second.layer.weight, first.layer.weight)


def of_kinds() -> dict[str, Any]:
    return {
        "tensor": torch.zeros(3),
        "array": np.zeros(3),
        "list": [0],
        "dict": {"a": 0},
        "generator": torch.Generator().manual_seed(0),
        "random": random.Random(0),
    }


def changed(value: Any) -> None:
    if isinstance(value, torch.Tensor | np.ndarray):
        value += 1
    elif isinstance(value, list):
        value.append(1)
    elif isinstance(value, dict):
        value["b"] = 1
    else:
        value.manual_seed(5) if isinstance(value, torch.Generator) else value.seed(5)


@pytest.mark.parametrize("kind", of_kinds())
def test_what_is_changed_in_place_stays_the_object_that_others_hold(kind: str) -> None:
    holders = []

    def make() -> Thing:
        holders.append(of_kinds()[kind])
        return Thing(value=holders[-1])

    _, second, lost = resumed(make, lambda thing: changed(thing.value))
    assert not lost
    assert second.value is holders[1]


@pytest.mark.parametrize("kind", of_kinds())
def test_what_is_replaced_leaves_the_object_that_others_hold(kind: str) -> None:
    def make() -> Thing:
        value = of_kinds()[kind]
        return Thing(value=value, other=value)

    def change(thing: Thing) -> None:
        vars(thing)["value"] = of_kinds()[kind]
        changed(vars(thing)["value"])

    first, second, lost = resumed(make, change)
    assert not lost
    assert second.value is not second.other
    assert equal_trees(content(second.value), content(first.value))
    assert equal_trees(content(second.other), content(of_kinds()[kind]))


@pytest.mark.parametrize("kind", of_kinds())
def test_two_names_of_one_value_stay_one_value(kind: str) -> None:
    def make() -> Thing:
        inner = of_kinds()[kind]
        return Thing(inside=[inner, 1], first=inner, nested={"a": [inner]}, new=None, again=None)

    def change(thing: Any) -> None:
        changed(thing.first)
        thing.new = of_kinds()[kind]
        thing.again = [thing.new]

    _, second, lost = resumed(make, change)
    assert not lost
    assert second.inside[0] is second.first is second.nested["a"][0]
    assert second.again[0] is second.new


@pytest.mark.parametrize("kind", of_kinds())
def test_a_value_that_moves_leaves_its_old_place_alone(kind: str) -> None:
    def make() -> Thing:
        value = of_kinds()[kind]
        return Thing(here=value, both=value, moved=None, inside=[of_kinds()[kind]])

    def change(thing: Any) -> None:
        changed(thing.here)
        changed(thing.inside[0])
        thing.moved = [thing.here, thing.inside[0]]
        thing.here, thing.inside[0] = of_kinds()[kind], of_kinds()[kind]

    first, second, lost = resumed(make, change)
    assert not lost
    for name in ("here", "both", "moved", "inside"):
        assert equal_trees(content(getattr(second, name)), content(getattr(first, name))), name


def test_members_of_enumerations_are_restored_wherever_they_are() -> None:
    def change(thing: Any) -> None:
        thing.phase, thing.none, thing.list = Phase.COLD, Phase.COLD, [Phase.WARM, {Phase.COLD: 1}]

    first, second, lost = resumed(lambda: Thing(phase=Phase.WARM, none=None, list=[]), change)
    assert not lost
    assert vars(first) == vars(second)


class Box(dict[str, Any]):
    """A dict of a user."""


def test_what_cannot_be_made_again_is_named_when_it_is_saved() -> None:
    class Local(Enum):
        A = 1

    own = LiveState(
        {"model": (thing := Thing(a=None, b=None, c=None, d=None, box=Box(), factory=defaultdict(lambda: 1)))}
    )
    thing.a, thing.b, thing.c = Local.A, Box(x=1), defaultdict(lambda: 1)
    shared = [1]
    thing.d = [shared, object()]
    thing.late = shared
    assert own.save()[1] == ["model.a", "model.b", "model.c", "model.d"]


def test_iterators_of_python_and_of_loaders_are_named_wherever_they_are() -> None:
    rows = DataLoader(TensorDataset(torch.zeros(4)))
    thing = Thing(
        of_loader=iter(rows),
        of_list=iter([1]),
        in_dict={"a": iter(rows)},
        in_containers=[{"b": (itertools.count(),)}],
        inner=Thing(numbers=(i for i in range(3))),
        loader=rows,
        plain=[{"b": (1,)}],
    )
    names = ["model.of_loader", "model.of_list", "model.in_dict", "model.in_containers", "model.inner.numbers"]
    assert LiveState({"model": thing}).save() == ({}, names)


def test_dicts_of_a_users_class_are_filled_again_where_they_were_made_in_the_constructor() -> None:
    def change(thing: Any) -> None:
        thing.box["x"] = thing.factory["y"] = 1

    _, second, lost = resumed(lambda: Thing(box=Box(), factory=defaultdict(lambda: 7)), change)
    assert not lost
    assert (type(second.box), second.box["x"], second.factory["y"], second.factory["z"]) == (Box, 1, 1, 7)


def test_a_random_generator_of_the_system_has_no_state() -> None:
    assert LiveState({"a": Thing(random=random.SystemRandom())}).save() == ({}, [])


def test_a_deep_model_leaves_the_callbacks_watched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live_state, "_MAX_OBJECTS", 3)
    model, callback = nn.Sequential(*(nn.ReLU() for _ in range(10))), Thing(count=0)
    live = LiveState({"model": model, "callbacks.Own": callback})
    callback.count = 1
    assert live.save() == ({"callbacks.Own": {"count": 1}}, [])


def test_objects_beyond_the_limit_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live_state, "_MAX_OBJECTS", 3)
    live = LiveState({"data": Thing(rows=[Thing(i=i) for i in range(9)]), "callbacks.Own": (own := Thing(count=0))})
    own.count = 1
    assert live.save() == ({"callbacks.Own": {"count": 1}}, ["what objects beyond the nearest 3 hold"])
