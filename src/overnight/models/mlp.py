"""A multilayer perceptron."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import nn

from overnight.models.activations import ACTIVATIONS, check_activation, initialise
from overnight.models.schedules import constant
from overnight.models.supervised import OptimizerOf, ScheduleOf, Supervised


class MLP(Supervised):
    """Hidden layers of the given sizes, then the task's outputs.

    Args:
        input_shape: of one row, e.g. (1, 8, 8); taken from the data module, as `classes` and `task` are.
        classes: how many, for multiclass.
        hidden_sizes: units of each hidden layer, first to last; empty for a linear model.
        activation: after each hidden layer, a key of ACTIVATIONS; the first weights fit it (see activations.py).
        dropout: share of hidden units dropped while training, 0 included, 1 excluded.
        batch_norm: normalise each hidden unit over the batch, before its activation (Ioffe and Szegedy 2015).
        task: see Supervised.
        optimizer: see Supervised.
        schedule: see Supervised.

    Raises:
        ValueError: naming key, value and rule, where an argument is impossible.
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
        optimizer: OptimizerOf = torch.optim.Adam,
        schedule: ScheduleOf = constant,
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
    """Linear layers of the given sizes on `width` inputs, each with what follows it, and the width they end in."""
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
