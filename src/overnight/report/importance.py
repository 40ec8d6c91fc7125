"""Importance of the searched keys by PED-ANOVA, and whether so many trials can tell it from chance."""

from __future__ import annotations

import math
import random
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import optuna
from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances

from overnight.report.statistics import Array
from overnight.search.distributions import NotInSpaceError
from overnight.search.plan import Plan
from overnight.search.record import TrialRecord, searched_values
from overnight.search.space import display_name

# With fewer trials the best ones are too few to compare them with the others.
MIN_TRIALS = 10
# The best quarter is compared with all trials. PED-ANOVA's default, the best tenth, is a handful of the trials of a
# night, in which chance outweighs what matters.
_MIN_BEST, _BEST_SHARE = 5, 0.25
# Random choices of best trials. The second largest of 39 values is their 95% quantile.
_SHUFFLES, _LARGER = 39, 2


@dataclass(frozen=True)
class Importance:
    """The importance of a searched key.

    Attributes:
        share: Share of the sum over all keys, 0 to 1.
        chance: The share that chance does not exceed in 95% of cases, for any key of the study. It may be above 1.
    """

    key: str
    share: float
    chance: float

    @property
    def exceeds_chance(self) -> bool:
        return self.share > self.chance


@dataclass(frozen=True)
class Importances:
    """The importance of all searched keys, the most important first.

    Attributes:
        trials: Number of trials with a value inside the space.
        best: Number of the best of them, which are compared with all.
        epochs: After which they are compared, where trials are paused after different numbers; else None.
        unit: What these are.
        keys: Empty if there are too few trials, or if all have the same value.
    """

    trials: int
    best: int
    epochs: int | None = None
    unit: Literal["epoch", "validation"] = "epoch"
    keys: tuple[Importance, ...] = ()

    @property
    def certain(self) -> list[Importance]:
        return [i for i in self.keys if i.exceeds_chance]

    @property
    def uncertain(self) -> list[Importance]:
        return [i for i in self.keys if not i.exceeds_chance]

    def sentence(self) -> str:
        """Say which keys matter, as far as so many trials can tell."""
        trials = "1 trial" if self.trials == 1 else f"{self.trials} trials"
        if self.epochs is not None:
            trials += f", compared after {self.epochs} {self.unit}{'s' * (self.epochs != 1)},"
        if self.trials < MIN_TRIALS:
            return f"{trials} cannot tell which parameters matter; {MIN_TRIALS} are the least that may."
        if not self.keys:
            return f"{trials} cannot tell which parameters matter, because too many have the same value."
        if not self.certain:
            return (
                f"{trials} cannot tell which parameters matter: the best {self.best} differ from the others no more "
                "than chance explains."
            )
        names = _listed([i.key for i in self.certain])
        sentence = f"{trials} show that {names} {'matters' if len(self.certain) == 1 else 'matter'}"
        if self.uncertain:
            sentence += f"; they cannot tell whether {_listed([i.key for i in self.uncertain], 'or')} does"
        return sentence + "."


def importances(plan: Plan, records: Sequence[TrialRecord], epochs: int | None = None) -> Importances:
    """Return the importance of the searched keys for being among the best trials.

    Args:
        records: Trials whose values can be compared.
        epochs: After which they have these values; None where all are trained as far as they can be.

    Uses Optuna's PED-ANOVA (Watanabe, Bansal and Hutter 2023, "PED-ANOVA: Efficiently quantifying hyperparameter
    importance in arbitrary subspaces"): how much the distribution of a parameter among the best trials differs from
    that among all. A parameter with a condition counts where it is drawn, in proportion to the trials that draw it. The
    importance of a list is the sum of those of its length and its entries. Pruned trials count with their last value.

    The threshold of chance is that of a permutation test: the values are shuffled among the trials, each importance is
    standardised by its mean and deviation over the shuffles, and the largest of each shuffle is noted (Westfall and
    Young 1993, "Resampling-based multiple testing"). Where no parameter matters, one exceeds it in 5% of the studies.
    """
    trials = _trials_in_space(plan, records)
    found = Importances(len(trials), max(_MIN_BEST, math.ceil(_BEST_SHARE * len(trials))), epochs, plan.unit)
    sign = -1 if plan.settings.study.direction == "maximize" else 1
    losses = [sign * (t.value or 0.0) for t in trials]
    if len(trials) < MIN_TRIALS or len(set(losses)) == 1:
        return found
    optuna.logging.set_verbosity(optuna.logging.WARNING)  # without a message for the temporary study
    study, rng = optuna.create_study(), random.Random(plan.settings.seed)
    study.add_trials(trials)
    observed = _importance_by_key(plan, study, losses, found.best)
    total = sum(observed.values())
    if not total:
        return found
    shuffled = (rng.sample(losses, len(losses)) for _ in range(_SHUFFLES))
    by_chance = [_importance_by_key(plan, study, s, found.best) for s in shuffled]
    chance = _thresholds(np.array([list(b.values()) for b in by_chance]))
    keys = (Importance(k, o / total, float(c) / total) for (k, o), c in zip(observed.items(), chance, strict=True))
    return replace(found, keys=tuple(sorted(keys, key=lambda i: (not i.exceeds_chance, -i.share))))


def _thresholds(by_chance: Array) -> Array:
    """Return for each key the importance that chance exceeds for any key in 5% of cases. by_chance: (shuffles, keys)"""
    mean, deviation = by_chance.mean(axis=0), by_chance.std(axis=0) + 1e-12
    largest = np.sort(((by_chance - mean) / deviation).max(axis=1))[-_LARGER]
    return mean + largest * deviation


def _trials_in_space(plan: Plan, records: Sequence[TrialRecord]) -> list[optuna.trial.FrozenTrial]:
    """Return the trials with a value whose parameters are all inside the space.

    A parameter has one name under all conditions. PED-ANOVA tells its distributions apart.
    """
    trials = []
    for record in records:
        if record.state not in ("complete", "pruned") or record.objective is None:
            continue
        values = searched_values(record, plan)
        active = [p for p in plan.space.parameters if p.active(values, plan.baseline)]
        try:
            found = {name: value for p in active for name, value in p.find(values[p.key]).items()}
        except (KeyError, NotInSpaceError):
            continue
        dists = {name: dist for p in active for name, dist in p.names().items() if name in found}
        trials.append(
            optuna.trial.create_trial(
                value=record.objective,
                params={display_name(n): v for n, v in found.items()},
                distributions={display_name(n): d for n, d in dists.items()},
            )
        )
    return trials


def _importance_by_key(plan: Plan, study: optuna.Study, losses: Sequence[float], best: int) -> dict[str, float]:
    """Return key -> importance, if the trial with number i had losses[i]."""
    drawn = {name for t in study.get_trials(deepcopy=False) for name in t.params}
    names = {display_name(n): p.key for p in plan.space.parameters for n, d in p.names().items() if not d.single()}
    evaluator = PedAnovaImportanceEvaluator(target_quantile=best / len(losses))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about the sign of `target`, and conditions that a single trial meets
        of_names = get_param_importances(
            study,
            evaluator=evaluator,
            params=[n for n in names if n in drawn],
            target=lambda t: losses[t.number],
            normalize=False,
        )
    by_key = dict.fromkeys((names[n] for n in names if n in drawn), 0.0)
    for name, importance in of_names.items():
        by_key[names[name]] += float(importance)
    return by_key


def _listed(names: Sequence[str], word: str = "and") -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} {word} {names[-1]}"
