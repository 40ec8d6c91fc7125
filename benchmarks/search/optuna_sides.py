"""Optuna's own samplers and pruners, driven by ask, report, should_prune and tell.

One study in memory for each search. A step is the number of trained epochs. Arguments are those that Optuna documents,
or, for MedianPruner, those of conf/scheduler/median.yaml.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence

import optuna
from optuna.pruners import BasePruner, HyperbandPruner, MedianPruner, NopPruner, SuccessiveHalvingPruner
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.trial import TrialState

from benchmarks.search.tables import Point, Table
from overnight.search.sampler import MAX_REDRAWS
from overnight.search.schedulers.interface import Answer, Resume, Start, Trial
from overnight.search.seeds import derive_seed


def random_sampler(seed: int) -> BaseSampler:
    return RandomSampler(seed=seed)


def tpe(seed: int) -> BaseSampler:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return TPESampler(multivariate=True, group=True, constant_liar=True, seed=seed)


def no_pruner(max_epochs: int) -> BasePruner:
    return NopPruner()


def median(max_epochs: int) -> BasePruner:
    return MedianPruner(n_startup_trials=5, n_warmup_steps=5)


def hyperband(max_epochs: int) -> BasePruner:
    return HyperbandPruner(min_resource=1, max_resource=max_epochs, reduction_factor=3)


def successive_halving(max_epochs: int) -> BasePruner:
    return SuccessiveHalvingPruner(min_resource=1)


class OptunaSide:
    """A study of Optuna.

    A point that an earlier trial has is drawn again, up to MAX_REDRAWS times: the study is told that the trial failed,
    which samplers and pruners ignore, and asked for another one. On a continuous space this would never happen.
    """

    def __init__(
        self, table: Table, seed: int, sampler: Callable[[int], BaseSampler], pruner: Callable[[int], BasePruner]
    ) -> None:
        self._table = table
        self.study = optuna.create_study(
            study_name=f"study {seed}",  # Hyperband's brackets follow from it
            direction="maximize",
            sampler=sampler(derive_seed(seed, "sampler")),
            pruner=pruner(table.max_epochs),
        )
        self.study.enqueue_trial(table.params_of(table.first))
        self._asked: list[optuna.Trial] = []

    def next(self, trials: Sequence[Trial], left: float) -> Start | Resume | None:
        return Start(self._table.max_epochs)

    def suggest(self, trials: Sequence[Trial], points: Sequence[Point]) -> Point:
        tried = set(points)
        trial, point = self._ask()
        for _ in range(MAX_REDRAWS):
            if point not in tried or len(tried) == len(self._table.rows):
                break
            self.study.tell(trial, state=TrialState.FAIL)
            trial, point = self._ask()
        self._asked.append(trial)
        return point

    def _ask(self) -> tuple[optuna.Trial, Point]:
        trial = self.study.ask(self._table.distributions)
        return trial, self._table.point_of(trial.params)

    def report(self, trial: Trial) -> Answer:
        asked, score = self._asked[trial.number], trial.scores[-1]
        if not math.isfinite(score):
            self.study.tell(asked, state=TrialState.FAIL)
            return Answer.GO_ON
        asked.report(score, trial.epochs)
        if trial.state == "complete":
            self.study.tell(asked, score)
        elif asked.should_prune():
            self.study.tell(asked, state=TrialState.PRUNED)
            return Answer.STOP
        return Answer.GO_ON
