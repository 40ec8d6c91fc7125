"""The bundled networks: their shapes, initial weights, schedules and checks."""

from __future__ import annotations

import math
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from overnight.models import schedules
from overnight.models.activations import ACTIVATIONS, initialise
from overnight.models.cnn import CNN
from overnight.models.mlp import MLP
from overnight.trial import own_optimizers


@pytest.mark.parametrize(("task", "shape"), [("binary", (5,)), ("regression", (5,)), ("multiclass", (5, 3))])
def test_the_output_shape_depends_on_the_task(task: str, shape: tuple[int, ...]) -> None:
    assert MLP((2,), 3, task=task)(torch.zeros(5, 2)).shape == shape
    assert CNN((1, 8, 8), 3, task=task)(torch.zeros(5, 1, 8, 8)).shape == shape


def test_batch_norm_is_between_a_layer_and_its_activation() -> None:
    kinds = [type(layer) for layer in MLP((4,), 2, [3], batch_norm=True, dropout=0.1).net]
    assert kinds == [nn.Flatten, nn.Linear, nn.BatchNorm1d, nn.ReLU, nn.Dropout, nn.Linear]


def test_a_cnn_has_the_configured_blocks_channels_and_head() -> None:
    model = CNN((3, 28, 28), 10, channels=[4, 8, 8], convolutions=2, kernel=5, head=[20], dropout=0.5, batch_norm=False)
    convolutions = [layer for layer in model.net if isinstance(layer, nn.Conv2d)]
    assert [(c.in_channels, c.out_channels) for c in convolutions] == [(3, 4), (4, 4), (4, 8), (8, 8), (8, 8), (8, 8)]
    assert [layer.in_features for layer in model.net if isinstance(layer, nn.Linear)] == [8 * 3 * 3, 20]
    assert model(torch.zeros(2, 3, 28, 28)).shape == (2, 10)


def test_pooling_before_the_activation_gives_the_same_output_as_pooling_after_it() -> None:
    model = CNN((1, 8, 8), 3, channels=[4], head=[], batch_norm=False)
    images = torch.randn(5, 1, 8, 8)
    convolution, _, _, _, last = model.net
    usual = last(torch.nn.functional.max_pool2d(convolution(images).relu(), 2).flatten(1))
    assert torch.allclose(model(images), usual, atol=1e-6)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"channels": [4] * 4}, r"each block halves the image, and 4 leave nothing of 8x8 .* take at most 3"),
        ({"channels": []}, r"model\.channels: must have at least one block"),
        ({"kernel": 4}, r"model\.kernel: must be odd.* got 4"),
        ({"pooling": "median"}, r"model\.pooling: must be one of max, average, got 'median'"),
        ({"convolutions": 0}, r"model\.convolutions: must be at least 1"),
        ({"head": [0]}, r"model\.head: each must be at least 1"),
        ({"dropout": 1}, r"model\.dropout: must be from 0 to below 1"),
        ({"activation": "reul"}, r"model\.activation: must be one of relu"),
        ({"input_shape": (10,)}, r"a cnn needs images .* rows of \(10,\); take model=mlp"),
    ],
)
def test_an_impossible_cnn_is_refused_with_key_rule_and_remedy(options: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        CNN(**{"input_shape": (1, 8, 8), "classes": 10, **options})  # type: ignore[arg-type]


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_initial_weights_propagate_a_signal_through_twelve_layers(activation: str) -> None:
    torch.manual_seed(0)
    deep = nn.Sequential(*(layer for _ in range(12) for layer in (nn.Linear(200, 200), ACTIVATIONS[activation]())))
    net = nn.Sequential(deep, nn.Linear(200, 1))
    inputs = torch.randn(100, 200)

    def spread() -> float:
        """Return the distances of the last hidden layer's outputs, relative to those of the inputs."""
        return deep(inputs).std(0).mean().item()

    by_torch = spread()
    initialise(net, activation)
    assert spread() > 5 * by_torch
    # A sigmoid's outputs are all close to a half. No initial weights propagate much through twelve layers of that.
    assert (0.001 if activation == "sigmoid" else 0.03) < spread() < 3
    assert all(not layer.bias.any() for layer in net.modules() if isinstance(layer, nn.Linear))


def rates(schedule: object, steps: int = 10, lr: float = 0.5) -> list[float]:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=lr, momentum=0.9)
    scheduler = schedule(optimizer, steps)  # type: ignore[operator]
    found = []
    for _ in range(steps):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        if scheduler is not None:
            scheduler.step()
    assert optimizer.param_groups[0]["momentum"] == 0.9
    return found


def test_a_constant_schedule_changes_nothing() -> None:
    assert rates(schedules.constant) == [0.5] * 10


def test_a_cosine_schedule_follows_its_formula() -> None:
    assert rates(schedules.cosine) == pytest.approx([0.25 * (1 + math.cos(math.pi * t / 10)) for t in range(10)])


def test_one_cycle_rises_to_the_configured_rate_and_falls_to_almost_zero() -> None:
    found = rates(lambda optimizer, steps: schedules.one_cycle(optimizer, steps, warmup=0.4, start=0.1), steps=100)
    assert found[0] == pytest.approx(0.05)
    assert max(found) == pytest.approx(0.5)
    assert found.index(max(found)) == 39
    assert found[-1] < 1e-5


@pytest.mark.parametrize(("option", "value"), [("warmup", 0.0), ("warmup", 1.0), ("start", 0.0), ("start", 2.0)])
def test_an_impossible_cycle_is_refused(option: str, value: float) -> None:
    with pytest.raises(ValueError, match=rf"schedule\.{option}: must be above 0"):
        rates(lambda optimizer, steps: schedules.one_cycle(optimizer, steps, **{option: value}))


def test_a_training_that_only_time_limits_takes_a_constant_rate_alone() -> None:
    """Trainer(max_epochs=-1, max_time=...) does not know its number of steps."""
    model: Any = torch.nn.Linear(2, 2)
    model.trainer = SimpleNamespace(estimated_stepping_batches=math.inf)
    own_optimizers.give(model, partial(torch.optim.SGD, lr=0.1), schedules.constant)
    assert isinstance(model.configure_optimizers(), torch.optim.SGD)
    own_optimizers.give(model, partial(torch.optim.SGD, lr=0.1), schedules.cosine)
    with pytest.raises(ValueError, match=r"schedule: must be constant where trainer\.max_epochs is -1"):
        model.configure_optimizers()
    model.trainer.estimated_stepping_batches = 7
    assert model.configure_optimizers()["lr_scheduler"]["scheduler"].T_max == 7
