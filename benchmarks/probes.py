"""Networks and data of ours that leave time stamps, and nothing else: what a trial costs when it trains nothing.

A stamp is a line in the file that the environment's OVERNIGHT_STAMPS names: what, the process, seconds since 1970.
"""

from __future__ import annotations

import os
import time
from typing import Any

import pytorch_lightning as pl
from torch import Tensor

from overnight.models.mlp import MLP
from overnight.protocol import Finished
from overnight.trial.process import PipeLink


def stamp(what: str) -> None:
    path = os.environ.get("OVERNIGHT_STAMPS")
    if path is None:
        return
    line = f"{what} {os.getpid()} {time.time():.6f}\n".encode()
    file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(file, line)  # one write of a short line: several processes may append
    os.close(file)


class FirstStep(MLP):
    """Our MLP, which says when it is first fed a training batch, and how many it was fed in all.

    It counts in forward, as a module with a training_step of its own would not be trained as ours are.
    """

    _fed = 0

    def forward(self, inputs: Tensor) -> Tensor:
        if self.training:
            if not self._fed:
                stamp("step")
            self._fed += 1
        return super().forward(inputs)

    def on_train_end(self) -> None:
        super().on_train_end()
        stamp(f"fed={self._fed}")


class NoData(pl.LightningDataModule):
    """One batch of nothing an epoch; made by the first line of a person's code that a trial runs."""

    input_shape = (1,)
    classes = 2
    task = "multiclass"

    def __init__(self) -> None:
        stamp("first")
        super().__init__()
        _stamp_the_last_word()

    def train_dataloader(self) -> list[int]:
        return [0]


class NullScreen(pl.LightningModule):
    """Trains nothing and logs three metrics an epoch, the same ones in every trial, so that none is pruned."""

    def __init__(self, epoch_s: float, **searched: float) -> None:
        super().__init__()
        assert sorted(searched) == list("abcde")
        self.automatic_optimization = False
        self._epoch_s = epoch_s
        self._stepped = False

    def configure_optimizers(self) -> None:
        return None

    def training_step(self, batch: Any, index: int) -> None:  # noqa: ARG002
        if not self._stepped:
            self._stepped = True
            stamp("step")
        time.sleep(self._epoch_s)

    def on_train_epoch_end(self) -> None:
        done = (self.current_epoch + 1) / 100
        self.log_dict({"train/loss": 1 - done, "val/loss": 2 - done, "val/accuracy": done})
        stamp("epoch")


def _stamp_the_last_word() -> None:
    """From inside the trial, say when it tells the supervisor that it is through."""
    send = PipeLink.send

    def stamped(self: PipeLink, message: Any) -> None:
        if isinstance(message, Finished):
            stamp("last")
        send(self, message)

    PipeLink.send = stamped
