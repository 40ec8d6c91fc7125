"""Learning rate schedules. Each function takes the optimizer and the number of steps of the whole trial.

A schedule changes the rate at every step, so that short trials follow it as smoothly as long ones. A function returns
None for a constant rate, which costs no time.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler, OneCycleLR


def constant(optimizer: Optimizer, steps: int) -> LRScheduler | None:  # noqa: ARG001
    """Keep the configured learning rate."""
    return None


def cosine(optimizer: Optimizer, steps: int) -> LRScheduler:
    """Lower the configured rate to 0 along half a cosine (Loshchilov and Hutter 2017, eq. 5, without restart)."""
    return CosineAnnealingLR(optimizer, T_max=steps)


def one_cycle(optimizer: Optimizer, steps: int, warmup: float = 0.3, start: float = 0.04) -> LRScheduler:
    """Raise the rate to the configured one, then lower it to almost 0, both along half a cosine (Smith, Topin 2018).

    Momentum stays constant. The paper cycles it too, but then training would not use the configured momentum.

    Args:
        optimizer: the optimizer.
        steps: of the whole trial.
        warmup: share of the steps in which the rate rises, in (0, 1).
        start: first rate as a share of the configured one, in (0, 1].
    """
    if not 0 < warmup < 1:
        raise ValueError(f"schedule.warmup: must be above 0 and below 1, got {warmup!r}")
    if not 0 < start <= 1:
        raise ValueError(f"schedule.start: must be above 0 and at most 1, got {start!r}")
    return OneCycleLR(
        optimizer,
        max_lr=[group["lr"] for group in optimizer.param_groups],
        total_steps=steps,
        pct_start=warmup,
        div_factor=1 / start,
        cycle_momentum=False,
    )


def steps_of_training(batches: float, schedule: Callable[..., Any]) -> int:
    """The steps of a training as a schedule gets them; 0 for `constant` where their number is not known.

    Args:
        batches: `Trainer.estimated_stepping_batches`; infinite where only time limits the training.

    Raises:
        ValueError: Another schedule needs the number.
    """
    if batches != math.inf:
        return int(batches)
    if getattr(schedule, "func", schedule) is not constant:
        raise ValueError("schedule: must be constant where trainer.max_epochs is -1 and trainer.max_steps is not given")
    return 0
