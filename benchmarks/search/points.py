"""Which configuration a new trial gets, where trials are paused: at random, or by TPE on one rung."""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable, Container, Sequence
from functools import cache, partial

import optuna
from optuna.storages import InMemoryStorage
from optuna.trial import FrozenTrial, TrialState, create_trial

from benchmarks.search.tables import Point, Table
from overnight.search.sampler import MAX_REDRAWS
from overnight.search.schedulers.interface import Trial
from overnight.search.schedulers.learned_study import TpeOfRung
from overnight.search.schedulers.learning import RANDOM_SHARE, choose, rung_to_learn_from
from overnight.search.seeds import derive_seed

Draw = Callable[[int], Point]  # a point for each attempt, from 0
Points = Callable[[Sequence[Trial], Sequence[Point]], Draw]  # the trials so far, and their points


class RandomPoints:
    """Independent random points."""

    def __init__(self, table: Table, seed: int) -> None:
        self._table, self._seed = table, seed

    def __call__(self, trials: Sequence[Trial], points: Sequence[Point]) -> Draw:  # noqa: ARG002
        return partial(self._draw, len(trials))

    def _draw(self, number: int, attempt: int) -> Point:
        rng = random.Random(derive_seed(self._seed, "random", number, attempt))
        return tuple(rng.randrange(len(d.levels)) for d in self._table.dimensions)


class RungTpe:
    """TPE on the values at one rung, as overnight does it: see overnight.search.schedulers.learned_study.

    A redraw is random, as in overnight.search.sampler.
    """

    def __init__(self, table: Table, seed: int, rungs: Sequence[int]) -> None:
        self._table, self._seed, self._rungs = table, seed, rungs
        self._random, self._frozen = RandomPoints(table, seed), cache(self._freeze)

    def __call__(self, trials: Sequence[Trial], points: Sequence[Point]) -> Draw:
        rung = rung_to_learn_from(trials, self._rungs)
        rng = random.Random(derive_seed(self._seed, "learning", len(trials)))
        if rung is None or rng.random() < RANDOM_SHARE:
            return self._random(trials, points)
        learned = [self._frozen(n, points[n], score) for n, score in choose(trials, rung, rng).items()]
        at_random = self._random(trials, points)
        return lambda attempt: at_random(attempt) if attempt else self._draw(learned, points)

    def _draw(self, learned: list[FrozenTrial], points: Sequence[Point]) -> Point:
        tried = set(points)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            sampler = TpeOfRung(
                derive_seed(self._seed, "sampler", len(points)), lambda params: self._table.point_of(params) in tried
            )
        study = optuna.create_study(direction="maximize", sampler=sampler, storage=_Learned(learned))
        return self._table.point_of(study.ask(self._table.distributions).params)

    def _freeze(self, number: int, point: Point, score: float) -> FrozenTrial:
        trial = create_trial(
            state=TrialState.COMPLETE,
            value=score,
            params=self._table.params_of(point),
            distributions=self._table.distributions,
        )
        trial.number = number
        return trial


class _Learned(InMemoryStorage):
    """Trials to learn from, without the copies that Study.add_trials makes."""

    def __init__(self, trials: list[FrozenTrial]) -> None:
        super().__init__()
        self._learned = trials

    def get_all_trials(
        self,
        study_id: int,  # noqa: ARG002
        deepcopy: bool = True,  # noqa: ARG002
        states: Container[TrialState] | None = None,
    ) -> list[FrozenTrial]:
        return [t for t in self._learned if states is None or t.state in states]


def suggest(table: Table, source: Points, trials: Sequence[Trial], points: Sequence[Point]) -> Point:
    """Return the first configuration for trial 0, else a drawn one. A point that was tried is drawn again."""
    if not points:
        return table.first
    tried, draw = set(points), source(trials, points)
    point = draw(0)
    for attempt in range(1, MAX_REDRAWS + 1):
        if point not in tried or len(tried) == len(table.rows):
            break
        point = draw(attempt)
    return point
