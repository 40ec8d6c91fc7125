"""A multilayer perceptron."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import nn

from overnight.models.activations import ACTIVATIONS, check_activation, initialise
from overnight.models.schedules import constant
from overnight.models.supervised import OptimizerFactory, ScheduleFactory, Supervised


class MLP(Supervised):
    """Fully connected hidden layers, then the outputs of the task.

    Args:
        input_shape: shape of one row, e.g. (1, 8, 8). The data module provides it, as well as `classes` and `task`.
        classes: number of classes, for multiclass.
        hidden_sizes: units of each hidden layer, first to last; empty for a linear model.
        activation: of each hidden layer, a key of ACTIVATIONS. It decides the initialisation (see activations.py).
        dropout: share of hidden units to drop in training, in [0, 1).
        batch_norm: normalise each hidden unit over the batch, before its activation (Ioffe and Szegedy 2015).
        task: see Supervised.
        optimizer: see Supervised.
        schedule: see Supervised.

    Raises:
        ValueError: with key, rule and value, if an argument is impossible.
    """

    def __init__(
        self,
        input_shape: Sequence[int],
        classes: int | None = None,
        hidden_sizes: Sequence[int] = (64,),
        activation: str = "relu",
        dropout: float = 0.0,
        batch_norm: bool = False,
        task: str = "multiclass",
        optimizer: OptimizerFactory = torch.optim.Adam,
        schedule: ScheduleFactory = constant,
    ) -> None:
        super().__init__(task, classes, optimizer, schedule)
        check_activation(activation)
        if any(size < 1 for size in hidden_sizes):
            raise ValueError(f"model.hidden_sizes: each must be at least 1, got {list(hidden_sizes)}")
        self.save_hyperparameters(ignore=["optimizer", "schedule"])
        width = math.prod(input_shape)
        hidden, width = hidden_layers(width, hidden_sizes, activation, dropout, batch_norm)
        self.net = nn.Sequential(nn.Flatten(), *hidden, nn.Linear(width, self.task.outputs))
        initialise(self.net, activation)


def hidden_layers(
    width: int, sizes: Sequence[int], activation: str, dropout: float, batch_norm: bool = False
) -> tuple[list[nn.Module], int]:
    """Return linear layers of the given sizes on `width` inputs, each with its activation, and the last width."""
    if not 0 <= dropout < 1:
        raise ValueError(f"model.dropout: must be from 0 to below 1, got {dropout!r}")
    layers: list[nn.Module] = []
    for size in sizes:
        layers.append(nn.Linear(width, size))
        if batch_norm:
            layers.append(nn.BatchNorm1d(size))
        layers.append(ACTIVATIONS[activation]())
        if dropout > 0:
            layers.append(nn.Dropout(dropout))
        width = size
    return layers, width
