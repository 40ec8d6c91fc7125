"""Two small trials, gone through once in the forkserver: what is forked from there need not find its feet.

What a first Trainer looks up, whether a class is one of torchmetrics', say, or which packages are installed, Python and
its libraries remember, and a fork remembers with them.
"""

from __future__ import annotations

import contextlib
import functools
import os
import sys
import tempfile
import time
import warnings
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from overnight.config import import_allowlist
from overnight.data.split import SplitData
from overnight.data.tensors import Part
from overnight.protocol import Decision, EpochEnd, Finished, TrialSpec, Up
from overnight.system import child_process
from overnight.trial import fit

_ROWS, _FEATURES, _CLASSES = 8, 4, 2
_WITHIN_S = 20.0  # it takes a tenth of one
_CALLBACKS = "pytorch_lightning.callbacks_factory"  # Lightning's group of entry points
# Two epochs: between them the state is taken, after the last the weights are saved.
_TRAINER = {"trainer": {"max_epochs": 2, "precision": "32-true"}}
_OURS: dict[str, Any] = {
    "data": {"_target_": f"{__name__}.Few", "task": "multiclass", "batch_size": 4},
    "model": {"_target_": "overnight.models.mlp.MLP", "hidden_sizes": [2]},
    "optimizer": {"_target_": "torch.optim.Adam", "lr": 0.001, "fused": True},
    "schedule": {"_target_": "overnight.models.schedules.constant"},
    **_TRAINER,
}
_THEIRS: dict[str, Any] = {
    "data": {"_target_": f"{__name__}.TheirData"},
    "model": {"_target_": f"{__name__}.TheirModel"},
    **_TRAINER,
}


class Few(SplitData):
    """Rows of zeros."""

    task = "multiclass"
    input_shape = (_FEATURES,)
    classes = _CLASSES

    def split(self, seed: int) -> dict[str, Part]:  # noqa: ARG002
        rows, part = torch.zeros(_ROWS, _FEATURES), torch.arange(_ROWS)
        targets = part % _CLASSES
        return {name: Part(rows, targets, part) for name in ("train", "validation", "test")}


class TheirData(pl.LightningDataModule):
    """The same as people have it."""

    def train_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
        return DataLoader(TensorDataset(torch.zeros(_ROWS, _FEATURES)), batch_size=4, shuffle=True)

    def val_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
        return DataLoader(TensorDataset(torch.zeros(_ROWS, _FEATURES)), batch_size=4)


class TheirModel(pl.LightningModule):
    """A network as people write it, whose steps are Lightning's."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(_FEATURES, 1)

    def training_step(self, batch: list[Tensor], index: int) -> Tensor:  # noqa: ARG002
        loss: Tensor = self.layer(batch[0]).square().mean()
        self.log("train/loss", loss)
        return loss

    def validation_step(self, batch: list[Tensor], index: int) -> None:  # noqa: ARG002
        self.log("val/accuracy", self.layer(batch[0]).mean())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters())


class _Nobody:
    """Whom such a trial reports to; it wants it to stop where it takes long: a full disk would be waited for."""

    def __init__(self) -> None:
        self._until = time.monotonic() + _WITHIN_S

    def send(self, message: Up) -> None: ...

    def ask(self, message: EpochEnd) -> Decision:  # noqa: ARG002
        return Decision.GO_ON

    def stop_wanted(self) -> bool:
        return time.monotonic() > self._until


def get_warm() -> list[Finished]:
    """Go through them on the CPU, and say how they ended; none where that could do harm.

    For a machine without a GPU alone: a process that has looked for one can't be forked into one that uses it, and
    torch starts threads for other kinds of devices, which a fork would lose. Lightning would hand callbacks of
    installed packages trials that nobody asked for. It leaves nothing behind but what is remembered, and seeded random
    generators, which every trial seeds anew.
    """
    device = torch.accelerator.current_accelerator()  # that torch was built for, whether there is one or not
    if (device is not None and device.type != "cuda") or entry_points(group=_CALLBACKS):
        return []
    _remember_what_is_installed()
    environment, threads = dict(os.environ), torch.get_num_threads()
    child_process.disable_gpus()
    os.environ.pop(import_allowlist.GUARDED, None)  # what is built here no study asks for
    try:
        with tempfile.TemporaryDirectory(prefix="overnight-") as folder, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            fit.touch()
            return [fit.fit(_spec(n, config, Path(folder)), _Nobody()) for n, config in enumerate((_OURS, _THEIRS))]
    finally:
        torch.set_num_threads(threads)
        os.environ.clear()
        os.environ.update(environment)


def _spec(number: int, config: dict[str, Any], folder: Path) -> TrialSpec:
    return TrialSpec(
        study="warmth",
        number=number,
        seed=0,
        config=config,
        metric="val/accuracy",
        direction="maximize",
        objective="best",
        folder=folder / str(number),
        every_s=3600.0,
        device="cpu",
        keep_weights=True,
    )


def _remember_what_is_installed() -> None:
    """Lightning asks every installed package for callbacks each time it makes a Trainer, which takes 8 ms. What they
    are when this is first asked, they stay in every fork."""
    for name in ("lightning_fabric", "lightning.fabric"):
        registry: Any = sys.modules.get(f"{name}.utilities.registry")
        with contextlib.suppress(AttributeError):  # another version of Lightning
            registry.entry_points = functools.cache(registry.entry_points)
