"""Networks as people write them, good and bad; named by `model._target_` in tests."""

from __future__ import annotations

import ctypes
import math
import os
import signal
import time
from pathlib import Path

import pytorch_lightning as pl
import torch
from torch import nn

from overnight.data.digits import Digits
from overnight.models.mlp import MLP


class Plain(pl.LightningModule):
    """Imports nothing of ours, logs by name, brings its own optimizer and a schedule that looks at a metric."""

    def __init__(self, lr: float = 1e-2, marker: str = "") -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, 10))
        self.lr, self.marker = lr, marker

    def training_step(self, batch, _):
        loss = nn.functional.cross_entropy(self.net(batch[0]), batch[1])
        self.log("train/loss", loss, on_step=False, on_epoch=True)
        return loss

    def validation_step(self, batch, _):
        logits = self.net(batch[0])
        self.log("val/loss", nn.functional.cross_entropy(logits, batch[1]))
        self.log("val/accuracy", (logits.argmax(1) == batch[1]).float().mean())

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), lr=self.lr, momentum=0.9)
        schedule = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=0, factor=0.5)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "monitor": "val/loss"}}


class Twice(torch.optim.SGD):
    """An optimizer as people write them that looks at two losses in one step."""

    def step(self, closure):
        closure()
        super().step()
        loss = closure()
        super().step()
        return loss


class Tested(Plain):
    """Knows a test, and a test alone writes to `marker`."""

    def test_step(self, batch, _):  # noqa: PT019
        with open(self.marker, "a") as file:
            file.write("x")
        self.log("test_accuracy", (self.net(batch[0]).argmax(1) == batch[1]).float().mean())


class Lucky(Tested):
    """What it scores is its seed's luck, and a little its learning rate's."""

    def validation_step(self, *_):
        luck = torch.rand((), generator=torch.Generator().manual_seed(torch.initial_seed()))
        self.log("val/loss", torch.tensor(0.0))
        self.log("val/accuracy", 0.4 + 0.5 * luck + self.lr / 10)


class DiesTested(Plain):
    """Is killed by the test set, and leaves no word."""

    def test_step(self, *_):
        os.kill(os.getpid(), signal.SIGKILL)


class SlowlyTested(Plain):
    """Takes its time over the test set."""

    def test_step(self, batch, _):  # noqa: PT019
        time.sleep(0.4)
        self.log("test_accuracy", (self.net(batch[0]).argmax(1) == batch[1]).float().mean())


class Dripping(Digits):
    """Gives its test set out row by row, twelve of them."""

    def test_dataloader(self):
        rows = torch.utils.data.TensorDataset(torch.zeros(12, 1, 8, 8), torch.zeros(12, dtype=torch.long))
        return torch.utils.data.DataLoader(rows, batch_size=1)


class Planted(Plain):
    """Its accuracy is known beforehand: best at lr 0.05, better with twist, and none the wiser for noise."""

    def __init__(self, lr: float = 1e-3, twist: bool = False, noise: float = 0.0) -> None:  # noqa: ARG002
        super().__init__()
        self.worth = 0.6 - 0.08 * math.log10(lr / 0.05) ** 2 + 0.2 * twist

    def validation_step(self, *_):
        self.log("val/loss", torch.tensor(0.0))
        self.log("val/accuracy", torch.tensor(self.worth))


class Slow(Plain):
    """Takes a fiftieth of a second a batch, a second an epoch."""

    def training_step(self, batch, index):
        time.sleep(0.02)
        return super().training_step(batch, index)


class Sleeps(Plain):
    """From its fourth epoch on a batch takes a minute."""

    def training_step(self, batch, index):
        time.sleep(60 if self.current_epoch > 2 else 0)
        return super().training_step(batch, index)


class Raises(Plain):
    def on_train_epoch_start(self):
        print("about to raise")
        raise ZeroDivisionError("the person's own mistake")


class Diverges(Plain):
    def on_validation_epoch_end(self):
        self.log("val/accuracy2", torch.tensor(float("nan")))


class EveryOther(Plain):
    def on_validation_epoch_end(self):
        if self.current_epoch % 2:
            self.log("now_and_then", float(self.current_epoch))


class KilledOnce(Plain):
    """Dies of a signal in its third epoch, the first time; `marker` is a file that remembers."""

    def on_train_epoch_end(self):
        with open(f"{self.marker}.epochs", "a") as file:
            file.write(f"{self.current_epoch} ")

    def on_train_epoch_start(self):
        if self.current_epoch == 2 and not Path(self.marker).exists():
            Path(self.marker).touch()
            os.kill(os.getpid(), signal.SIGKILL)


class RuinsItsStates(KilledOnce):
    """Dies too, and takes along what it had saved."""

    def on_train_epoch_start(self):
        if self.current_epoch == 2 and not Path(self.marker).exists():
            for path in Path(self.trainer.default_root_dir).glob("*.ckpt"):
                path.write_bytes(b"rubbish")
        super().on_train_epoch_start()


class AlwaysKilled(Plain):
    def on_train_epoch_start(self):
        os.kill(os.getpid(), signal.SIGKILL)


class Chatty(Plain):
    """Prints three megabytes, and starts a child that would outlive it."""

    def on_train_epoch_start(self):
        print("first words")
        for _ in range(3000):
            print("x" * 1000)
        print("last words")
        if self.marker and os.fork() == 0:
            Path(self.marker).write_text(str(os.getpid()))
            time.sleep(600)


class OutOfMemory(Plain):
    def on_train_epoch_start(self):
        raise MemoryError


class Hangs(Plain):
    """In its second epoch it sleeps in C code, with the interpreter's lock held and deaf to signals."""

    def on_train_epoch_start(self):
        if self.current_epoch == 1:
            signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
            ctypes.PyDLL(None).sleep(600)


class Hoards(Plain):
    """Takes ever more memory."""

    def on_train_epoch_start(self):
        held = []
        while True:
            held.append(bytearray(os.urandom(1)) * (64 << 20))
            time.sleep(0.05)


class Grows(Plain):
    """Has another shape once `marker` exists, so that what it saved before does not fit it; kills itself once."""

    def __init__(self, marker: str = "") -> None:
        super().__init__(marker=marker)
        if Path(marker).exists():
            self.more = nn.Linear(2, 2)

    def on_train_epoch_start(self):
        if self.current_epoch == 2 and not Path(self.marker).exists():
            Path(self.marker).touch()
            os.kill(os.getpid(), signal.SIGKILL)


class Yes(pl.LightningDataModule):
    """Says nothing about itself."""


class OwnStep(MLP):
    """One of ours with a training step of its own."""

    def training_step(self, batch, index):
        inputs, targets = batch
        self.log("train/batches", float(index + 1), on_step=False, on_epoch=True, reduce_fx="max")
        return self._loss_of(inputs, targets)


class Counted(Plain):
    """Keeps a book, the file `marker`: a line of trial, epoch and its seconds for every epoch trained to its end."""

    def on_train_epoch_start(self):
        self.began = time.monotonic()

    def training_step(self, batch, index):
        time.sleep(0.001)
        return super().training_step(batch, index)

    def on_train_epoch_end(self):
        trial = Path(self.trainer.default_root_dir).name
        with open(self.marker, "a") as book:
            book.write(f"{trial} {self.current_epoch} {time.monotonic() - self.began}\n")


class Zoo(Plain):
    """Does what its trial's number says, in its second epoch."""

    KINDS = ("hangs", "hoards", "has children", "prints", "nan", "inf", "nothing", "dawdles", "is well")

    def __init__(self, marker: str = "") -> None:
        super().__init__(marker=marker)
        self.kind = ""

    def on_train_epoch_start(self):
        self.kind = self.KINDS[int(Path(self.trainer.default_root_dir).name.removeprefix("trial-"))]
        if self.current_epoch != 1:
            return
        if self.kind == "hangs":
            Hangs.on_train_epoch_start(self)
        elif self.kind == "hoards":
            Hoards.on_train_epoch_start(self)
        elif self.kind == "has children":
            for _ in range(20):
                if os.fork() == 0:
                    with open(self.marker, "a") as children:
                        children.write(f"{os.getpid()} ")
                    time.sleep(600)
        elif self.kind == "prints":
            for _ in range(1000):
                os.write(1, b"x" * 999_999 + b"\n")
        elif self.kind == "dawdles":
            while True:
                print("still at it")
                time.sleep(0.1)

    def validation_step(self, batch, index):
        if self.kind in ("nan", "inf") and self.current_epoch == 1:
            self.log("val/loss", torch.tensor(0.0))
            self.log("val/accuracy", torch.tensor(float(self.kind)))
        elif self.kind != "nothing":
            super().validation_step(batch, index)


class Paced(Tested):
    """An epoch takes `pace` seconds, give or take a tenth."""

    def __init__(self, lr: float = 1e-2, marker: str = "/dev/null", pace: float = 0.1) -> None:
        super().__init__(lr, marker)
        self.pace = pace

    def on_train_epoch_start(self):
        self.until = time.monotonic() + self.pace * (1 + 0.1 * (2 * torch.rand(()).item() - 1))

    def on_train_epoch_end(self):
        time.sleep(max(self.until - time.monotonic(), 0.0))


class TellsAll(MLP):
    """Prints all that its process has in its environment, and fails with it where that is asked for."""

    def __init__(self, input_shape, classes=None, optimizer=torch.optim.Adam, fails: bool = False) -> None:
        super().__init__(input_shape, classes, optimizer=optimizer)
        self.fails = fails
        kernels = Path("/proc/self/environ")
        self.known = f"{dict(os.environ)} {kernels.read_text() if kernels.exists() else ''}"
        print(f"what I know: {self.known}")

    def on_train_epoch_start(self) -> None:
        super().on_train_epoch_start()
        if self.fails:
            raise RuntimeError(f"it ends with all that I know: {self.known}")
