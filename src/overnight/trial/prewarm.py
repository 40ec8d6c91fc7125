"""Train two small trials in the forkserver, so that its forks need not do again what happens only the first time.

Python and its libraries keep what the first Trainer looks up, for example which packages are installed and which
classes are torchmetrics'. A fork inherits that.
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
from overnight.protocol import Decision, Finished, Progress, TrialMessage, TrialSpec
from overnight.system import child_process
from overnight.trial import fit

_ROWS, _FEATURES, _CLASSES = 8, 4, 2
_TIMEOUT_S = 20.0  # usually both trials take two seconds
_CALLBACKS = "pytorch_lightning.callbacks_factory"  # Lightning's group of entry points
# Two epochs: the state is saved between them, the weights after the last.
_TRAINER = {"trainer": {"max_epochs": 2, "precision": "32-true"}}
_OWN_CLASSES: dict[str, Any] = {
    "data": {"_target_": f"{__name__}.SmallSplitData", "task": "multiclass", "batch_size": 4},
    "model": {"_target_": "overnight.models.mlp.MLP", "hidden_sizes": [2]},
    "optimizer": {"_target_": "torch.optim.Adam", "lr": 0.001, "fused": True},
    "schedule": {"_target_": "overnight.models.schedules.constant"},
    **_TRAINER,
}
_PLAIN_LIGHTNING: dict[str, Any] = {
    "data": {"_target_": f"{__name__}.PlainDataModule"},
    "model": {"_target_": f"{__name__}.PlainModule"},
    **_TRAINER,
}


class SmallSplitData(SplitData):
    """A data module of ours, with rows of zeros."""

    task = "multiclass"
    input_shape = (_FEATURES,)
    classes = _CLASSES

    def split(self, seed: int) -> dict[str, Part]:  # noqa: ARG002
        rows, part = torch.zeros(_ROWS, _FEATURES), torch.arange(_ROWS)
        targets = part % _CLASSES
        return {name: Part(rows, targets, part) for name in ("train", "validation", "test")}


class PlainDataModule(pl.LightningDataModule):
    """A data module as users write it."""

    def train_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
        return DataLoader(TensorDataset(torch.zeros(_ROWS, _FEATURES)), batch_size=4, shuffle=True)

    def val_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
        return DataLoader(TensorDataset(torch.zeros(_ROWS, _FEATURES)), batch_size=4)


class PlainModule(pl.LightningModule):
    """A network as users write it, with Lightning's own steps."""

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


class _NoSupervisor:
    """A Link that continues after each epoch, and stops a trial that takes long: on a full disk it would wait."""

    def __init__(self) -> None:
        self._deadline = time.monotonic() + _TIMEOUT_S

    def send(self, message: TrialMessage) -> None: ...

    def ask(self, message: Progress) -> Decision:  # noqa: ARG002
        return Decision.CONTINUE

    def stop_wanted(self) -> bool:
        return time.monotonic() > self._deadline


def run_prewarm_trials() -> list[Finished]:
    """Train both trials on the CPU, unless that could do harm.

    Only on a machine without a GPU: a process that has looked for a GPU can't be forked into one that uses it, and
    torch starts threads for other kinds of accelerators, which a fork would lose. Not with packages that add callbacks
    to Lightning, which would get trials of no study. Apart from the caches, the process stays as it was, but for its
    random generators, which every trial seeds.

    Returns:
        How the trials ended; empty if they did not run.
    """
    device = torch.accelerator.current_accelerator()  # the kind that torch was built for, present or not
    if (device is not None and device.type != "cuda") or entry_points(group=_CALLBACKS):
        return []
    _cache_entry_points()
    configs = (_OWN_CLASSES, _PLAIN_LIGHTNING)
    environment, threads = dict(os.environ), torch.get_num_threads()
    child_process.disable_gpus()
    os.environ.pop(import_allowlist.GUARDED, None)  # no study's code is built here
    try:
        with tempfile.TemporaryDirectory(prefix="overnight-") as folder, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            fit.warm_up_process()
            return [fit.fit(_spec(n, config, Path(folder)), _NoSupervisor()) for n, config in enumerate(configs)]
    finally:
        torch.set_num_threads(threads)
        os.environ.clear()
        os.environ.update(environment)


def _spec(number: int, config: dict[str, Any], folder: Path) -> TrialSpec:
    return TrialSpec(
        study="prewarm",
        number=number,
        seed=0,
        config=config,
        metric="val/accuracy",
        direction="maximize",
        objective="best",
        checkpoint_folder=folder / str(number),
        checkpoint_every_s=3600.0,
        device="cpu",
        keep_weights=True,
    )


def _cache_entry_points() -> None:
    """Keep the entry points of installed packages, which Lightning reads for each Trainer (8 ms), for every fork."""
    for name in ("lightning_fabric", "lightning.fabric"):
        registry: Any = sys.modules.get(f"{name}.utilities.registry")
        with contextlib.suppress(AttributeError):  # another version of Lightning
            registry.entry_points = functools.cache(registry.entry_points)
