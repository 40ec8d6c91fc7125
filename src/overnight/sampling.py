"""Who suggests and who prunes: Optuna's samplers and pruners, seeded so that a restart changes nothing."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.pruners import BasePruner, HyperbandPruner, MedianPruner, NopPruner
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.trial import FrozenTrial, TrialState

from overnight.plan import derive_seed
from overnight.settings import PrunerSettings, SamplerSettings


def sampler(settings: SamplerSettings, seed: int) -> BaseSampler:
    """The sampler that the settings name, its draws fixed by `seed` and each trial's number."""

    def tpe(draw_seed: int) -> BaseSampler:
        with warnings.catch_warnings():
            # Grouped TPE is marked experimental; what it suggests is pinned by our tests.
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            return TPESampler(
                n_startup_trials=settings.startup_trials,
                multivariate=True,
                group=True,
                constant_liar=True,
                seed=draw_seed,
            )

    kinds: dict[str, Callable[[int], BaseSampler]] = {"tpe": tpe, "random": lambda s: RandomSampler(seed=s)}
    return SeededSampler(kinds[settings.name], seed)


def pruner(settings: PrunerSettings, max_epochs: int) -> BasePruner:
    """The pruner that the settings name. max_epochs: the whole resource of one trial."""
    if settings.name == "median":
        return MedianPruner(n_startup_trials=settings.startup_trials, n_warmup_steps=settings.warmup_epochs)
    if settings.name == "hyperband":
        return HyperbandPruner(
            min_resource=settings.min_epochs, max_resource=max_epochs, reduction_factor=settings.reduction_factor
        )
    return NopPruner()


class SeededSampler(BaseSampler):
    """Makes the real sampler anew for each trial, seeded from (study seed, trial number), and for each parameter that
    is drawn on its own from (study seed, trial number, parameter name).

    A sampler seeded once replays its first suggestions after a restart. This one suggests what it would have, were
    the study never cut: between two trials, or in the middle of a suggestion.
    """

    def __init__(self, make: Callable[[int], BaseSampler], seed: int) -> None:
        self._make, self._seed = make, seed

    def _of(self, trial: FrozenTrial, *parts: str) -> BaseSampler:
        return self._make(derive_seed(self._seed, "sampler", trial.number, *parts))

    def before_trial(self, study: optuna.Study, trial: FrozenTrial) -> None:
        self._current = self._of(trial)
        self._current.before_trial(study, trial)

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return self._current.infer_relative_search_space(study, trial)

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        return self._current.sample_relative(study, trial, search_space)

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        return self._of(trial, param_name).sample_independent(study, trial, param_name, param_distribution)

    def after_trial(
        self, study: optuna.Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None
    ) -> None:
        self._of(trial).after_trial(study, trial, state, values)
