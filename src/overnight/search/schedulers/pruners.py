"""Optuna's pruners: schedulers that only end trials."""

from __future__ import annotations

from optuna.pruners import BasePruner, HyperbandPruner, MedianPruner, NopPruner

from overnight.config.problems import Problems
from overnight.config.trainer import counts_validations
from overnight.search.plan import Plan
from overnight.search.schedulers import own

# What `median` has in its config. It replaces halving where trials can't be paused at the same numbers of epochs.
_STARTUP_TRIALS, _WARMUP_EPOCHS = 5, 5


def scheduler_notes(plan: Plan) -> list[str]:
    """What the scheduler can't do with the study, and what is done instead, one line each."""
    settings = plan.settings
    if settings.scheduler.name != "halving" or plan.obstacle_to_pauses is None:
        return []
    counts = f", and study.budget={plan.budget.trainings:g} counts trials" if settings.study.trials is None else ""
    return [
        f"scheduler: halving needs to know how long a trial is, the same for all and in one piece: "
        f"{plan.obstacle_to_pauses}; the median pruner takes its place{counts}"
    ]


def make_pruner(plan: Plan) -> BasePruner:
    """Make the pruner that a plan names. Its steps are epochs, or validations.

    Raises:
        ConfigError: A pruner that is named by `_target_` can't be built here.
    """
    settings, trainer = plan.settings.scheduler, plan.settings.trainer
    if settings.name == "median":
        return MedianPruner(n_startup_trials=settings.startup_trials, n_warmup_steps=settings.warmup_epochs)
    if settings.name == "hyperband":
        return HyperbandPruner(
            min_resource=settings.min_epochs or 1,
            # The first complete trial shows how many validations a trial has.
            max_resource="auto" if counts_validations(vars(trainer)) else trainer.max_epochs,
            reduction_factor=settings.reduction_factor,
        )
    if settings.name == "custom":
        problems = Problems()
        pruner = own.build(settings, problems)
        problems.raise_if_any()
        assert isinstance(pruner, BasePruner), "the plan tells pruners from other schedulers"
        return pruner
    if settings.name == "halving" and not plan.pauses:
        return MedianPruner(n_startup_trials=_STARTUP_TRIALS, n_warmup_steps=_WARMUP_EPOCHS)
    return NopPruner()
