"""Networks and data with common mistakes. Tests name them by `_target_`."""

from __future__ import annotations

import functools
import os
import signal
import time

import pytorch_lightning as pl
import torch
from torch import nn

from overnight.data.digits import Digits


class Conv(pl.LightningModule):
    """Has too many poolings for eight pixels if `blocks` is too large."""

    def __init__(self, blocks: int = 1) -> None:
        super().__init__()
        layers = [m for _ in range(blocks) for m in (nn.LazyConv2d(4, 3, padding=1), nn.MaxPool2d(2))]
        self.net = nn.Sequential(*layers, nn.Flatten(), nn.LazyLinear(10))

    def training_step(self, batch, _):
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def validation_step(self, batch, _):
        self.log("val/loss", nn.functional.cross_entropy(self.net(batch[0]), batch[1]))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def _with_extra(constructor):
    @functools.wraps(constructor)
    def takes_more(self, *args, extra, **kwargs):  # noqa: ARG001
        constructor(self, *args, **kwargs)

    return takes_more


class Decorated(Conv):
    """Takes an argument that its signature does not show."""

    __init__ = _with_extra(Conv.__init__)


class Slow(Digits):
    """Sleeps before its first batch."""

    def setup(self, stage: str) -> None:
        time.sleep(5)
        super().setup(stage)


class NineClasses(Digits):
    """Declares nine classes and has ten."""

    classes = 9


class Missing(Digits):
    def setup(self, stage: str) -> None:  # noqa: ARG002
        raise FileNotFoundError("data.root: put train-images.gz into /nowhere")


class Dies(Conv):
    def on_train_start(self):
        os.kill(os.getpid(), signal.SIGKILL)
