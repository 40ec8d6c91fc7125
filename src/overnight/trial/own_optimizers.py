"""Optimizer and schedule of the configuration for a model without `configure_optimizers`."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch

from overnight.models.schedules import steps_of_training

_Plateau = torch.optim.lr_scheduler.ReduceLROnPlateau


def give(model: Any, optimizer: Callable[[Any], Any] | None, schedule: Callable[..., Any] | None) -> None:
    """Let a model use the optimizer and the schedule of the configuration where it has none of its own."""
    if optimizer is None:
        return

    def configure_optimizers() -> Any:
        built = optimizer(model.parameters())
        if schedule is None:
            return built
        if not _counts_steps(schedule):
            scheduler = schedule(built)
            monitor = {"monitor": getattr(scheduler, "monitor", "val_loss")} if isinstance(scheduler, _Plateau) else {}
            return {"optimizer": built, "lr_scheduler": {"scheduler": scheduler, "interval": "epoch", **monitor}}
        scheduler = schedule(built, steps_of_training(model.trainer.estimated_stepping_batches, schedule))
        if scheduler is None:
            return built
        return {"optimizer": built, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    model.configure_optimizers = configure_optimizers


def _counts_steps(schedule: Callable[..., Any]) -> bool:
    """Whether a schedule is one of ours, which take the number of steps of the whole trial."""
    target = getattr(schedule, "func", schedule)
    return not (inspect.isclass(target) and issubclass(target, torch.optim.lr_scheduler.LRScheduler))
