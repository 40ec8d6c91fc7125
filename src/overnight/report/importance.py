"""Parameter importance by functional analysis of variance (fANOVA), with its uncertainty over trials."""

from __future__ import annotations

import random
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import optuna
from optuna.importance import FanovaImportanceEvaluator, get_param_importances

from overnight.search.plan import Plan
from overnight.search.record import TrialRecord

RESAMPLES = 20
# The time grows with the square of the number of leaves. A forest for a thousand trials takes 15 s at depth 16 and 0.5
# s at depth 6; no share differs by more than 0.025 (benchmarks/NOTES.md).
_TREES, _DEPTH = 16, 6
# With fewer trials a forest explains the values by chance.
MIN_TRIALS = 6


@dataclass(frozen=True)
class Importance:
    """The importance of a parameter.

    Attributes:
        share: Share of the objective's variance over the space that the parameter explains alone, 0 to 1.
        low: The 10% quantile of the share over bootstrap resamples of the trials.
        high: The 90% quantile.
    """

    name: str
    share: float
    low: float
    high: float


def importances(plan: Plan, records: Sequence[TrialRecord], resamples: int = RESAMPLES) -> list[Importance]:
    """Return the importance of each parameter that every trial has, the most important first.

    Uses Optuna's fANOVA (Hutter, Hoos and Leyton-Brown 2014, "An efficient approach for assessing hyperparameter
    importance"). Pruned trials count with their last value, because without them bad values would be missing. The
    uncertainty is a bootstrap over trials (Efron and Tibshirani 1993, chapter 6).

    Returns:
        An empty list if there are too few trials.
    """
    trials = comparable_trials(plan, records)
    if len(trials) < MIN_TRIALS or len({t.value for t in trials}) < 2:
        return []
    optuna.logging.set_verbosity(optuna.logging.WARNING)  # without a message for each temporary study
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


def comparable_trials(plan: Plan, records: Sequence[TrialRecord]) -> list[optuna.trial.FrozenTrial]:
    """Return the trials with a value inside the space, with the parameters that all of them have and that vary."""
    names = plan.space.unconditional()
    kept = [r for r in records if r.state in ("complete", "pruned") and r.objective is not None]
    stored = [(r, point) for r in kept if names.keys() <= (point := plan.space.encode(r.params)).keys()]
    shared = [n for n in names if len({point[n] for _, point in stored}) > 1]
    if not shared:
        return []
    return [
        optuna.trial.create_trial(
            value=r.objective,
            params={n: point[n] for n in shared},
            distributions={n: names[n] for n in shared},
            user_attrs={"number": r.number, "state": r.state},
        )
        for r, point in stored
    ]


def _shares(trials: Sequence[optuna.trial.FrozenTrial], seed: int) -> dict[str, float]:
    study = optuna.create_study()
    study.add_trials(trials)
    names = [n for n in trials[0].params if len({t.params[n] for t in trials}) > 1]
    if not names or len({t.value for t in trials}) < 2:
        return {}
    evaluator = FanovaImportanceEvaluator(n_trees=_TREES, max_depth=_DEPTH, seed=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about resamples without variance
        try:
            return dict(get_param_importances(study, evaluator=evaluator, params=names, normalize=False))
        except RuntimeError:  # no tree finds variance, e.g. in a range below single precision
            return dict.fromkeys(names, 0.0)
