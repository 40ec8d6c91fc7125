"""Learning rates over a trial: each function takes the optimizer and how many steps it will take in all.

A schedule moves at every step, so that short trials follow it as smoothly as long ones. None stands for no change,
which costs nothing.
"""

from __future__ import annotations

from torch.optim import Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler, OneCycleLR


def constant(optimizer: Optimizer, steps: int) -> LRScheduler | None:  # noqa: ARG001
    """The learning rate as written, from the first step to the last."""
    return None


def cosine(optimizer: Optimizer, steps: int) -> LRScheduler:
    """From the learning rate as written to 0 along half a cosine (Loshchilov and Hutter 2017, eq. 5, no restart)."""
    return CosineAnnealingLR(optimizer, T_max=steps)


def one_cycle(optimizer: Optimizer, steps: int, warmup: float = 0.3, start: float = 0.04) -> LRScheduler:
    """Up to the learning rate as written, then down to next to nothing, along half a cosine each (Smith, Topin 2018).

    Args:
        warmup: share of the steps that go up, above 0 and below 1.
        start: the first learning rate, as a share of the written one, above 0 and at most 1.

    Momentum stays as written: the paper cycles it too, and then what is written would not be what is trained with.
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
