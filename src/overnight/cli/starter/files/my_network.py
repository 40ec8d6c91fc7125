"""Your network: any LightningModule that logs the metric of the study, here val/accuracy."""

import math
from collections.abc import Sequence
from itertools import pairwise

import pytorch_lightning as pl
import torch
from torch import Tensor, nn


class Network(pl.LightningModule):
    def __init__(
        self,
        input_shape: Sequence[int],
        classes: int,
        hidden_sizes: Sequence[int] = (32,),
        dropout: float = 0.0,
        lr: float = 1e-3,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        sizes = [math.prod(input_shape), *hidden_sizes]
        layers: list[nn.Module] = [nn.Flatten()]
        for width, size in pairwise(sizes):
            layers += [nn.Linear(width, size), nn.ReLU(), nn.Dropout(dropout)]
        self.layers = nn.Sequential(*layers, nn.Linear(sizes[-1], classes))
        self.lr = lr

    def forward(self, inputs: Tensor) -> Tensor:
        return self.layers(inputs)

    def training_step(self, batch: tuple[Tensor, Tensor], index: int) -> Tensor:
        inputs, targets = batch
        loss = nn.functional.cross_entropy(self(inputs), targets)
        self.log("train/loss", loss, on_step=False, on_epoch=True)
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], index: int) -> None:
        inputs, targets = batch
        logits = self(inputs)
        self.log("val/loss", nn.functional.cross_entropy(logits, targets))
        self.log("val/accuracy", (logits.argmax(1) == targets).float().mean())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=self.lr)
