"""The sides of the benchmark."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from benchmarks.search import optuna_sides as optuna
from benchmarks.search.asha import Asha, Pasha
from benchmarks.search.points import Points, RandomPoints, RungTpe, suggest
from benchmarks.search.simulator import Side
from benchmarks.search.tables import Point, Table
from overnight.search.schedulers.halving import Halving
from overnight.search.schedulers.interface import Answer, Resume, Scheduler, Start, Trial


@dataclass(frozen=True)
class Scheduled:
    """A scheduler of overnight, with a source of configurations."""

    table: Table
    scheduler: Scheduler
    source: Points

    def next(self, trials: Sequence[Trial], left: float) -> Start | Resume | None:
        return self.scheduler.next(trials, left)

    def suggest(self, trials: Sequence[Trial], points: Sequence[Point]) -> Point:
        return suggest(self.table, self.source, trials, points)

    def report(self, trial: Trial) -> Answer:
        if trial.state != "running":
            return Answer.GO_ON
        return self.scheduler.report(trial.number, trial.epochs, trial.latest)


def _halving(max_epochs: int) -> Halving:
    return Halving(max_epochs, leaves_out=True)  # as with scheduler.min_epochs=null


def _with_tpe(make: Callable[[int], Halving | Asha], table: Table, seed: int) -> Side:
    scheduler = make(table.max_epochs)
    return Scheduled(table, scheduler, RungTpe(table, seed, scheduler.rungs))


def _at_random(make: Callable[[int], Halving | Asha], table: Table, seed: int) -> Side:
    return Scheduled(table, make(table.max_epochs), RandomPoints(table, seed))


OURS = "halving"
RANDOM = "random"
OPTUNA = {
    "TPE": partial(optuna.OptunaSide, sampler=optuna.tpe, pruner=optuna.no_pruner),
    "TPE + median": partial(optuna.OptunaSide, sampler=optuna.tpe, pruner=optuna.median),
    "TPE + Hyperband": partial(optuna.OptunaSide, sampler=optuna.tpe, pruner=optuna.hyperband),
    "TPE + SHA": partial(optuna.OptunaSide, sampler=optuna.tpe, pruner=optuna.successive_halving),
}
SIDES: Mapping[str, Callable[[Table, int], Side]] = {
    OURS: partial(_with_tpe, _halving),
    RANDOM: partial(optuna.OptunaSide, sampler=optuna.random_sampler, pruner=optuna.no_pruner),
    **OPTUNA,
    "ASHA": partial(_at_random, Asha),
    "ASHA, our points": partial(_with_tpe, Asha),
    "PASHA": partial(_at_random, Pasha),
    "halving, random points": partial(_at_random, _halving),
}
