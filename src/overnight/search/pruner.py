"""Optuna's pruners."""

from __future__ import annotations

from optuna.pruners import BasePruner, HyperbandPruner, MedianPruner, NopPruner

from overnight.config.settings import PrunerSettings


def make_pruner(settings: PrunerSettings, max_epochs: int) -> BasePruner:
    """Make the pruner that the settings name. Its steps are epochs; `max_epochs` is the whole resource of a trial."""
    if settings.name == "median":
        return MedianPruner(n_startup_trials=settings.startup_trials, n_warmup_steps=settings.warmup_epochs)
    if settings.name == "hyperband":
        return HyperbandPruner(
            min_resource=settings.min_epochs, max_resource=max_epochs, reduction_factor=settings.reduction_factor
        )
    return NopPruner()
