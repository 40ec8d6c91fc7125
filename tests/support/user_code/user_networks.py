"""Networks as users write them, good and bad. Tests name them by `model._target_`."""

from __future__ import annotations

import ctypes
import itertools
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
    """Imports nothing of overnight. Logs by name and has its own optimizer and a schedule that monitors a metric."""

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
    """A user's optimizer that computes two losses in one step."""

    def step(self, closure):
        closure()
        super().step()
        loss = closure()
        super().step()
        return loss


class Tested(Plain):
    """Has a test step, which writes to `marker`."""

    def test_step(self, batch, _):  # noqa: PT019
        with open(self.marker, "a") as file:
            file.write("x")
        self.log("test_accuracy", (self.net(batch[0]).argmax(1) == batch[1]).float().mean())


class Lucky(Tested):
    """Its score depends on its seed and slightly on its learning rate."""

    def validation_step(self, *_):
        luck = torch.rand((), generator=torch.Generator().manual_seed(torch.initial_seed()))
        self.log("val/loss", torch.tensor(0.0))
        self.log("val/accuracy", 0.4 + 0.5 * luck + self.lr / 10)


class DiesTested(Plain):
    """Its process is killed in the test step, without a message."""

    def test_step(self, *_):
        os.kill(os.getpid(), signal.SIGKILL)


class SlowlyTested(Plain):
    """Has a slow test step."""

    def test_step(self, batch, _):  # noqa: PT019
        time.sleep(0.4)
        self.log("test_accuracy", (self.net(batch[0]).argmax(1) == batch[1]).float().mean())


class Dripping(Digits):
    """Has a test set of twelve batches of one row."""

    def test_dataloader(self):
        rows = torch.utils.data.TensorDataset(torch.zeros(12, 1, 8, 8), torch.zeros(12, dtype=torch.long))
        return torch.utils.data.DataLoader(rows, batch_size=1)


class Planted(Plain):
    """Its accuracy is known in advance: best at lr 0.05, better with twist, independent of noise."""

    def __init__(self, lr: float = 1e-3, twist: bool = False, noise: float = 0.0) -> None:  # noqa: ARG002
        super().__init__()
        self.worth = 0.6 - 0.08 * math.log10(lr / 0.05) ** 2 + 0.2 * twist

    def validation_step(self, *_):
        self.log("val/loss", torch.tensor(0.0))
        self.log("val/accuracy", torch.tensor(self.worth))


class Slow(Plain):
    """Takes 20 ms for a batch, one second for an epoch."""

    def training_step(self, batch, index):
        time.sleep(0.02)
        return super().training_step(batch, index)


class Sleeps(Plain):
    """A batch takes a minute from the fourth epoch on."""

    def training_step(self, batch, index):
        time.sleep(60 if self.current_epoch > 2 else 0)
        return super().training_step(batch, index)


class Raises(Plain):
    def on_train_epoch_start(self):
        print("about to raise")
        raise ZeroDivisionError("the user's own mistake")


class Diverges(Plain):
    def on_validation_epoch_end(self):
        self.log("val/accuracy2", torch.tensor(float("nan")))


class EveryOther(Plain):
    def on_validation_epoch_end(self):
        if self.current_epoch % 2:
            self.log("now_and_then", float(self.current_epoch))


class KilledOnce(Plain):
    """Kills itself in its third epoch, once. The file `marker` records that it did."""

    def on_train_epoch_end(self):
        with open(f"{self.marker}.epochs", "a") as file:
            file.write(f"{self.current_epoch} ")

    def on_train_epoch_start(self):
        if self.current_epoch == 2 and not Path(self.marker).exists():
            Path(self.marker).touch()
            os.kill(os.getpid(), signal.SIGKILL)


class RuinsItsStates(KilledOnce):
    """Kills itself once as well, after it has damaged its saved checkpoints."""

    def on_train_epoch_start(self):
        if self.current_epoch == 2 and not Path(self.marker).exists():
            for path in Path(self.trainer.default_root_dir).glob("*.ckpt"):
                path.write_bytes(b"rubbish")
        super().on_train_epoch_start()


class AlwaysKilled(Plain):
    def on_train_epoch_start(self):
        os.kill(os.getpid(), signal.SIGKILL)


class Chatty(Plain):
    """Prints three megabytes and starts a child process that would outlive it."""

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
    """Sleeps in C code in its second epoch, holds the GIL and ignores signals."""

    def on_train_epoch_start(self):
        if self.current_epoch == 1:
            signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
            ctypes.PyDLL(None).sleep(600)


class Hoards(Plain):
    """Allocates more and more memory."""

    def on_train_epoch_start(self):
        held = []
        while True:
            held.append(bytearray(os.urandom(1)) * (64 << 20))
            time.sleep(0.05)


class Grows(Plain):
    """Kills itself once. Once `marker` exists, it has another shape, so that its earlier checkpoint does not fit."""

    def __init__(self, marker: str = "") -> None:
        super().__init__(marker=marker)
        if Path(marker).exists():
            self.more = nn.Linear(2, 2)

    def on_train_epoch_start(self):
        if self.current_epoch == 2 and not Path(self.marker).exists():
            Path(self.marker).touch()
            os.kill(os.getpid(), signal.SIGKILL)


class Yes(pl.LightningDataModule):
    """Has no attributes that describe the data."""


class OwnStep(MLP):
    """The bundled MLP with its own training step."""

    def training_step(self, batch, index):
        inputs, targets = batch
        self.log("train/batches", float(index + 1), on_step=False, on_epoch=True, reduce_fx="max")
        return self._loss_of(inputs, targets)


class HalvesEachEpoch(MLP):
    """The bundled MLP with a schedule of its own, by epoch."""

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1)
        schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "epoch"}}

    def on_train_epoch_end(self):
        super().on_train_epoch_end()
        self.log("rate", self.trainer.optimizers[0].param_groups[0]["lr"])


class CountsBatches(pl.Callback):
    def on_train_batch_end(self, trainer, module, *_):  # noqa: ARG002
        module.calls += 1


class CountsCalls(MLP):
    """The bundled MLP with three hooks for each batch: two of its own and one of a callback that it brings."""

    calls = 0

    def configure_callbacks(self):
        return [CountsBatches()]

    def on_after_backward(self):
        self.calls += 1

    def optimizer_step(self, *args, **options):
        self.calls += 1
        super().optimizer_step(*args, **options)

    def on_train_epoch_end(self):
        super().on_train_epoch_end()
        self.log("calls", float(self.calls))


class Counted(Plain):
    """Appends a line with trial, epoch and seconds to the file `marker` after every finished epoch."""

    def on_train_epoch_start(self):
        self.began = time.monotonic()

    def training_step(self, batch, index):
        time.sleep(0.001)
        return super().training_step(batch, index)

    def on_train_epoch_end(self):
        trial = Path(self.trainer.default_root_dir).name
        with open(self.marker, "a") as file:
            file.write(f"{trial} {self.current_epoch} {time.monotonic() - self.began}\n")


class Zoo(Plain):
    """Does in its second epoch what the number of its trial selects."""

    KINDS = ("hangs", "hoards", "forks children", "prints", "nan", "inf", "nothing", "never ends", "healthy")

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
        elif self.kind == "forks children":
            for _ in range(20):
                if os.fork() == 0:
                    with open(self.marker, "a") as children:
                        children.write(f"{os.getpid()} ")
                    time.sleep(600)
        elif self.kind == "prints":
            for _ in range(1000):
                os.write(1, b"x" * 999_999 + b"\n")
        elif self.kind == "never ends":
            while True:
                print("still running")
                time.sleep(0.1)

    def validation_step(self, batch, index):
        if self.kind in ("nan", "inf") and self.current_epoch == 1:
            self.log("val/loss", torch.tensor(0.0))
            self.log("val/accuracy", torch.tensor(float(self.kind)))
        elif self.kind != "nothing":
            super().validation_step(batch, index)


class Paced(Tested):
    """An epoch takes `pace` seconds, within 10%."""

    def __init__(self, lr: float = 1e-2, marker: str = "/dev/null", pace: float = 0.1) -> None:
        super().__init__(lr, marker)
        self.pace = pace

    def on_train_epoch_start(self):
        self.until = time.monotonic() + self.pace * (1 + 0.1 * (2 * torch.rand(()).item() - 1))

    def on_train_epoch_end(self):
        time.sleep(max(self.until - time.monotonic(), 0.0))


class PrintsEnvironment(MLP):
    """Prints the environment of its process, and raises an error that contains it if `fails` is set."""

    def __init__(self, input_shape, classes=None, optimizer=torch.optim.Adam, fails: bool = False) -> None:
        super().__init__(input_shape, classes, optimizer=optimizer)
        self.fails = fails
        kernels = Path("/proc/self/environ")
        self.known = f"{dict(os.environ)} {kernels.read_text() if kernels.exists() else ''}"
        print(f"my environment: {self.known}")

    def on_train_epoch_start(self) -> None:
        super().on_train_epoch_start()
        if self.fails:
            raise RuntimeError(f"it failed with my environment: {self.known}")


class CountsInAClosure(Plain):
    """Training changes what only a closure holds, so that no state can have it."""

    def __init__(self, **options):
        super().__init__(**options)
        steps = itertools.count(1)
        self.factor = lambda: 1 / next(steps)

    def training_step(self, batch, _):
        return super().training_step(batch, _) * self.factor()
