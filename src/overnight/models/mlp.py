"""A multilayer perceptron for classes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn

ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "leaky_relu": nn.LeakyReLU,
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
    "elu": nn.ELU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "mish": nn.Mish,
}


class MLP(pl.LightningModule):
    """Hidden layers of the given sizes, then one logit a class; softmax and cross-entropy.

    The loss of a row is -log(exp(z[y]) / sum_k exp(z[k])) for logits z and true class y (Bishop 2006, eq. 4.108).
    Logs `train/loss`, `val/loss` and `val/accuracy` once an epoch, each a mean over rows.

    Args:
        input_shape: of one row, e.g. (1, 8, 8); taken from the data module.
        classes: how many; taken from the data module.
        hidden_sizes: units of each hidden layer, first to last; empty for softmax regression.
        activation: between layers, a key of ACTIVATIONS.
        dropout: share of hidden units dropped while training, 0 included, 1 excluded.
        optimizer: takes the parameters, returns a torch optimizer.

    Raises:
        ValueError: naming key, value and rule, where an argument is impossible.
    """

    def __init__(
        self,
        input_shape: Sequence[int],
        classes: int,
        hidden_sizes: Sequence[int] = (64,),
        activation: str = "relu",
        dropout: float = 0.0,
        optimizer: Callable[[Iterable[Any]], torch.optim.Optimizer] = torch.optim.Adam,
    ) -> None:
        super().__init__()
        if activation not in ACTIVATIONS:
            raise ValueError(f"model.activation: must be one of {', '.join(ACTIVATIONS)}, got {activation!r}")
        if not 0 <= dropout < 1:
            raise ValueError(f"model.dropout: must be from 0 to below 1, got {dropout!r}")
        if any(size < 1 for size in hidden_sizes):
            raise ValueError(f"model.hidden_sizes: each must be at least 1, got {list(hidden_sizes)}")
        self.save_hyperparameters(ignore=["optimizer"])
        self._optimizer = optimizer
        layers: list[nn.Module] = [nn.Flatten()]
        width = math.prod(input_shape)
        for size in hidden_sizes:
            layers += [nn.Linear(width, size), ACTIVATIONS[activation]()]
            if dropout > 0:
                layers.append(nn.Dropout(dropout))
            width = size
        self.net = nn.Sequential(*layers, nn.Linear(width, classes))
        self._sums: dict[str, Tensor | int] = {}

    def forward(self, inputs: Tensor) -> Tensor:
        """(B, *input_shape) -> logits (B, classes)."""
        return self.net(inputs)

    def training_step(self, batch: tuple[Tensor, Tensor], _: int) -> Tensor:
        inputs, targets = batch
        loss = nn.functional.cross_entropy(self(inputs), targets)
        # Summed here and logged once an epoch: self.log in every step would cost as much as a small step does.
        self._add(rows=len(targets), loss=loss.detach() * len(targets))
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], _: int) -> None:
        inputs, targets = batch
        logits = self(inputs)
        loss = nn.functional.cross_entropy(logits, targets, reduction="sum")
        self._add(val_rows=len(targets), val_loss=loss, val_hits=(logits.argmax(1) == targets).sum())

    def on_train_epoch_start(self) -> None:
        self._sums = {}

    def on_validation_epoch_start(self) -> None:
        self._sums = {k: v for k, v in self._sums.items() if not k.startswith("val_")}

    def on_validation_epoch_end(self) -> None:
        rows = self._sums["val_rows"]
        self.log("val/loss", self._sums["val_loss"] / rows)
        self.log("val/accuracy", self._sums["val_hits"] / rows)

    def on_train_epoch_end(self) -> None:
        self.log("train/loss", self._sums["loss"] / self._sums["rows"])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return self._optimizer(self.parameters())

    def _add(self, **amounts: Tensor | int) -> None:
        for name, amount in amounts.items():
            self._sums[name] = self._sums.get(name, 0) + amount
