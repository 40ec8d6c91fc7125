"""As in the template: optimizer and scheduler are partial objects of the model's own config."""

from collections.abc import Callable
from typing import Any

import torch
from lightning import LightningModule
from torchmetrics import MaxMetric, MeanMetric


class MNISTLitModule(LightningModule):
    def __init__(
        self, net: torch.nn.Module, optimizer: Callable[..., Any], scheduler: Callable[..., Any], compile: bool
    ) -> None:
        super().__init__()
        self.save_hyperparameters(logger=False, ignore=["net"])
        self.net = net
        self.val_acc, self.val_acc_best = MeanMetric(), MaxMetric()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(x)

    def training_step(self, batch: Any, _: int) -> torch.Tensor:
        return torch.nn.functional.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch: Any, _: int) -> None:
        logits = self(batch[0])
        self.val_acc((logits.argmax(1) == batch[1]).float())
        self.log("val/loss", torch.nn.functional.cross_entropy(logits, batch[1]), on_epoch=True)
        self.log("val/acc", self.val_acc, on_epoch=True)

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self.log("test/acc", (self(batch[0]).argmax(1) == batch[1]).float().mean())

    def on_validation_epoch_end(self) -> None:
        self.val_acc_best(self.val_acc.compute())
        self.log("val/acc_best", self.val_acc_best.compute())

    def configure_optimizers(self) -> Any:
        optimizer = self.hparams.optimizer(params=self.trainer.model.parameters())
        scheduler = self.hparams.scheduler(optimizer=optimizer)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "monitor": "val/loss"}}
