"""The networks and the data of the step benchmark: a trial that runs a bare epoch before each of its epochs."""

from __future__ import annotations

import copy
import importlib.util
import time
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

from overnight.data.split import SplitData
from overnight.data.tensors import Part
from overnight.models.mlp import MLP
from overnight.protocol import Decision, Progress, TrialMessage
from overnight.trial import fast_steps

fast_steps.KNOWN_PACKAGES.add("benchmarks")  # Timed measures whole epochs
SHAPE, CLASSES = (1, 28, 28), 10
_now: list[Timed] = []  # the model that trains in this process


class NullLink:
    """A trial's pipe without a supervisor."""

    def send(self, message: TrialMessage) -> None:
        pass

    def ask(self, message: Progress) -> Decision:  # noqa: ARG002
        return Decision.CONTINUE

    def stop_wanted(self) -> bool:
        return False


class Rows(SplitData):
    """Noise in `steps` batches, labelled by a linear map. There is no validation data."""

    input_shape = SHAPE
    classes = CLASSES
    task = "multiclass"

    def __init__(self, steps: int, batch_size: int) -> None:
        super().__init__(batch_size=batch_size, normalise="none")
        drawn = torch.Generator().manual_seed(0)
        self.inputs = torch.randn(steps * batch_size, *SHAPE, generator=drawn)
        self.targets = (self.inputs.flatten(1) @ torch.randn(784, CLASSES, generator=drawn)).argmax(1)
        self.batch_size = batch_size

    def split(self, seed: int) -> dict[str, Part]:  # noqa: ARG002
        return {"train": Part(self.inputs, self.targets, torch.arange(len(self.inputs)))}

    def val_dataloader(self) -> list[Any]:
        return []


class LoadedRows(Rows):
    """The same rows through torch's DataLoader, as in its documentation."""

    def train_dataloader(self) -> Any:
        return DataLoader(TensorDataset(self.inputs, self.targets), batch_size=self.batch_size, shuffle=True)


class Timed(pl.LightningModule):
    """Measures the steps of each epoch, and a bare epoch on a copy of the network before it."""

    net: nn.Module

    def on_train_epoch_start(self) -> None:
        super().on_train_epoch_start()
        if self.current_epoch == 0:
            _now[:] = [self]
            self.ours_s: list[float] = []
            self.bare_s: list[float] = []
            self.losses: list[float] = []
            self.bare_losses: list[float] = []
            self._bare = copy.deepcopy(self.net)
            ours = self.trainer.optimizers[0]
            self._bare_optimizer = type(ours)(self._bare.parameters(), **ours.defaults)
        self.bare_s.append(self._bare_epoch())
        self._started = self._clock()

    def on_train_epoch_end(self) -> None:
        self.ours_s.append(self._clock() - self._started)
        super().on_train_epoch_end()
        self.losses.append(self._timed_loss(self.net))
        self.bare_losses.append(self._timed_loss(self._bare))

    def _bare_epoch(self) -> float:
        data, net, optimizer = self.trainer.datamodule, self._bare, self._bare_optimizer
        channels_last = any(isinstance(part, nn.Conv2d) for part in net.modules())
        started = self._clock()
        for rows in torch.randperm(len(data.inputs)).split(data.batch_size):
            inputs = data.inputs.index_select(0, rows).to(self.device)
            targets = data.targets.index_select(0, rows).to(self.device)
            if channels_last:  # the memory format that overnight uses, which is faster
                inputs = inputs.contiguous(memory_format=torch.channels_last)
            optimizer.zero_grad()
            cross_entropy(net(inputs), targets).backward()
            optimizer.step()
        return self._clock() - started

    def _clock(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    @torch.no_grad()
    def _timed_loss(self, net: nn.Module) -> float:
        data = self.trainer.datamodule
        return float(cross_entropy(net(data.inputs[:2000].to(self.device)), data.targets[:2000].to(self.device)))


class TimedMLP(Timed, MLP):
    pass


if importlib.util.find_spec("overnight.models.cnn"):
    from overnight.models.cnn import CNN

    class TimedCNN(Timed, CNN):
        pass


class _Own(pl.LightningModule):
    """A module as in Lightning's documentation."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(784, 64), nn.ReLU(), nn.Linear(64, CLASSES))

    def training_step(self, batch: tuple[Tensor, Tensor], _: int) -> Tensor:
        inputs, targets = batch
        loss = cross_entropy(self.net(inputs), targets)
        self.log("train/loss", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=1e-3)


class TimedOwn(Timed, _Own):
    pass


class _Loaded(_Own):
    """A module that logs two values in each step."""

    def training_step(self, batch: tuple[Tensor, Tensor], _: int) -> Tensor:
        inputs, targets = batch
        outputs = self.net(inputs)
        loss = cross_entropy(outputs, targets)
        self.log("train/loss", loss)
        self.log("train/accuracy", (outputs.argmax(1) == targets).float().mean())
        return loss


class TimedLoaded(Timed, _Loaded):
    pass


def found(steps: int) -> dict[str, Any]:
    """Return the measurements of the model that trained in this process, in seconds a step."""
    (model,) = _now
    taken = [
        int(next(iter(optimizer.state.values()))["step"])
        for optimizer in (model.trainer.optimizers[0], model._bare_optimizer)
    ]
    return {
        "ours_s": [s / steps for s in model.ours_s[1:]],
        "bare_s": [s / steps for s in model.bare_s[1:]],
        "steps": taken[0],
        "bare_steps": taken[1],
        "first_loss": model.losses[0],
        "loss": model.losses[-1],
        "bare_loss": model.bare_losses[-1],
    }
