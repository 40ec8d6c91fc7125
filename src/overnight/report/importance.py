"""Which parameters mattered: functional analysis of variance, with how far that depends on which trials there were."""

from __future__ import annotations

import random
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import optuna
from optuna.importance import FanovaImportanceEvaluator, get_param_importances

from overnight.search.plan import Plan
from overnight.search.record import TrialRecord
from overnight.search.space import contains

RESAMPLES = 20
# The time grows with the square of a tree's leaves: 16 deep, a thousand trials take 15 seconds a forest, and 6 deep
# half a second; no share moved by more than 0.025 (benchmarks/NOTES.md).
_TREES, _DEPTH = 16, 6
# Fewer say nothing: a forest would explain them by whatever was drawn.
FEWEST = 6


@dataclass(frozen=True)
class Importance:
    """share: of the objective's variance over the space that a parameter explains by itself, 0 to 1. low, high: a tenth
    of resampled sets of trials say less, a tenth more."""

    name: str
    share: float
    low: float
    high: float


def importances(plan: Plan, records: Sequence[TrialRecord], resamples: int = RESAMPLES) -> list[Importance]:
    """The searched parameters, the one that mattered most first; empty where there is too little to tell by.

    Hutter, Hoos and Leyton-Brown 2014, "An efficient approach for assessing hyperparameter importance", as Optuna has
    it, of the parameters that every trial has; pruned trials count with what they had reached, or all that is bad
    would be out of sight. The spread is a bootstrap over trials (Efron and Tibshirani 1993, chapter 6).
    """
    trials = comparable(plan, records)
    if len(trials) < FEWEST or len({t.value for t in trials}) < 2:
        return []
    optuna.logging.set_verbosity(optuna.logging.WARNING)  # or it tells of every forest's study
    rng = random.Random(plan.settings.seed)
    shares = [_shares(trials, seed=0)]
    shares += [_shares(rng.choices(trials, k=len(trials)), seed) for seed in range(1, resamples + 1)]
    found = []
    for name in shares[0]:
        spread = sorted(s.get(name, 0.0) for s in shares[1:]) or [shares[0][name]]
        cut = len(spread) // 10
        share = sum(s.get(name, 0.0) for s in shares) / len(shares)
        found.append(Importance(name, float(share), float(spread[cut]), float(spread[-1 - cut])))
    return sorted(found, key=lambda i: -i.share)


def comparable(plan: Plan, records: Sequence[TrialRecord]) -> list[optuna.trial.FrozenTrial]:
    """The trials that have a value and lie in the space, with the parameters that all of them have and that vary."""
    names = plan.space.unconditional()
    kept = [r for r in records if r.state in ("complete", "pruned") and r.objective is not None]
    kept = [r for r in kept if all(n in r.params and contains(names[n], r.params[n]) for n in names)]
    shared = [n for n in names if len({r.params[n] for r in kept}) > 1]
    if not shared:
        return []
    return [
        optuna.trial.create_trial(
            value=r.objective,
            params={n: r.params[n] for n in shared},
            distributions={n: names[n] for n in shared},
            user_attrs={"number": r.number, "state": r.state},
        )
        for r in kept
    ]


def _shares(trials: Sequence[optuna.trial.FrozenTrial], seed: int) -> dict[str, float]:
    study = optuna.create_study()
    study.add_trials(trials)
    names = [n for n in trials[0].params if len({t.params[n] for t in trials}) > 1]
    if not names or len({t.value for t in trials}) < 2:
        return {}
    evaluator = FanovaImportanceEvaluator(n_trees=_TREES, max_depth=_DEPTH, seed=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of forests that a resampled set leaves without variance
        try:
            return dict(get_param_importances(study, evaluator=evaluator, params=names, normalize=False))
        except RuntimeError:  # no tree sees any variance, as where a range is finer than its single precision
            return dict.fromkeys(names, 0.0)
