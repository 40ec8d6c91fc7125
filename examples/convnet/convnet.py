"""A convolutional network with its own schedule. It imports nothing from overnight."""

from collections.abc import Sequence
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torchmetrics.classification import MulticlassAccuracy


class ConvNet(pl.LightningModule):
    def __init__(
        self,
        input_shape: Sequence[int],
        classes: int,
        channels: Sequence[int] = (16, 32),
        kernel: int = 3,
        dropout: float = 0.2,
        lr: float = 1e-2,
        weight_decay: float = 1e-4,
        schedule: str = "one_cycle",
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        blocks: list[nn.Module] = []
        into = input_shape[0]
        for out in channels:
            blocks += [
                nn.Conv2d(into, out, kernel, padding=kernel // 2),
                nn.BatchNorm2d(out),
                nn.ReLU(),
                nn.MaxPool2d(2),
            ]
            into = out
        self.features = nn.Sequential(*blocks)
        side = input_shape[1] // 2 ** len(channels)
        self.head = nn.Sequential(nn.Flatten(), nn.Dropout(dropout), nn.Linear(into * side * side, classes))
        self.accuracy = MulticlassAccuracy(classes, average="micro")

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.features(images))

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        images, labels = batch
        loss = nn.functional.cross_entropy(self(images), labels)
        self.log("train/loss", loss, on_step=False, on_epoch=True)
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        images, labels = batch
        logits = self(images)
        self.accuracy(logits, labels)
        self.log("val/loss", nn.functional.cross_entropy(logits, labels))
        self.log("val/accuracy", self.accuracy)

    def configure_optimizers(self) -> Any:
        chosen = self.hparams
        optimizer = torch.optim.AdamW(self.parameters(), lr=chosen["lr"], weight_decay=chosen["weight_decay"])
        if chosen["schedule"] == "constant":
            return optimizer
        steps = int(self.trainer.estimated_stepping_batches)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=chosen["lr"], total_steps=steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}
