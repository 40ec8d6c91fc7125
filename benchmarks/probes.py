"""Networks and data that train nothing and write time stamps, to measure the overhead of a trial.

A stamp is a line with kind, process id and seconds since 1970 in the file that OVERNIGHT_STAMPS names.
"""

from __future__ import annotations

import os
import time
from typing import Any

import pytorch_lightning as pl
from torch import Tensor

from overnight.models.mlp import MLP
from overnight.protocol import Finished
from overnight.trial import fast_steps
from overnight.trial.process import PipeLink

fast_steps.KNOWN_PACKAGES.add("benchmarks")  # FirstStep stamps the end of training


def stamp(what: str) -> None:
    path = os.environ.get("OVERNIGHT_STAMPS")
    if path is None:
        return
    line = f"{what} {os.getpid()} {time.time():.6f}\n".encode()
    file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(file, line)  # a short line in one write, because several processes append
    os.close(file)


class FirstStep(MLP):
    """The bundled MLP with a stamp at its first training batch and one with the number of its training batches.

    It counts in `forward`, because overnight trains a module with its own `training_step` in another way.
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
    """One empty batch an epoch. Its constructor is the first user code that a trial runs."""

    input_shape = (1,)
    classes = 2
    task = "multiclass"

    def __init__(self) -> None:
        stamp("first")
        super().__init__()
        _stamp_the_last_message()

    def train_dataloader(self) -> list[int]:
        return [0]


class NoTraining(pl.LightningModule):
    """Trains nothing and logs three metrics an epoch, the same in every trial, so that none is pruned."""

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


def _stamp_the_last_message() -> None:
    """Write a stamp when the trial sends its last message to the supervisor."""
    send = PipeLink.send

    def stamped(self: PipeLink, message: Any) -> None:
        if isinstance(message, Finished):
            stamp("last")
        send(self, message)

    PipeLink.send = stamped
