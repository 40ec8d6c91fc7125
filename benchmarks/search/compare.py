"""Run all sides on all tables, in as many processes as there are cores, and compare them seed by seed."""

from __future__ import annotations

import itertools
import math
import multiprocessing
import os
import statistics
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass

import optuna

from benchmarks.search import measure
from benchmarks.search.measure import Estimate, Trace
from benchmarks.search.sides import OPTUNA, OURS, RANDOM, SIDES
from benchmarks.search.simulator import Simulation
from benchmarks.search.tables import Table

TRAININGS = 25  # whole trainings that the budget is worth
SLOTS = (1, 4, 8)
MAIN = (OURS, RANDOM, *OPTUNA)  # the sides that run with each number of slots; the others run with the first one


@dataclass(frozen=True)
class Case:
    """One search: a side on a table, with a seed and a number of slots."""

    table: Table
    slots: int
    side: str
    seed: int


@dataclass(frozen=True)
class Goal:
    """What a search is to find.

    Attributes:
        share: of the table's rows; the goal is a final value that these rows reach.
        strict: Only complete trials count.
        kept: The incumbent is so good from then on, until the budget is spent.
    """

    share: float
    strict: bool = False
    kept: bool = False


@dataclass(frozen=True)
class Outcome:
    """What a search found.

    Attributes:
        trials: Number of trials.
    """

    trace: Trace
    strict: Trace
    trials: int


@dataclass(frozen=True)
class Comparison:
    """The outcomes of all searches.

    Attributes:
        outcomes: (table, slots, side) -> one outcome for each seed, in the order of the seeds.
    """

    tables: Sequence[Table]
    slots: Sequence[int]
    seeds: int
    outcomes: dict[tuple[str, int, str], list[Outcome]]

    @property
    def sides(self) -> list[str]:
        """The sides that were compared."""
        ran = {side for _, _, side in self.outcomes}
        return [side for side in SIDES if side in ran]

    @property
    def of_optuna(self) -> list[str]:
        """Those of them that are combinations of Optuna."""
        return [side for side in self.sides if side in OPTUNA]

    def epochs(self, table: Table, slots: int, side: str, goal: Goal) -> list[float]:
        """The epochs to the goal for each seed; infinity where the budget does not reach it."""
        threshold = table.threshold(goal.share)
        found = self.outcomes[table.name, slots, side]
        until = measure.epochs_until_kept if goal.kept else measure.epochs_until
        return [until(o.strict if goal.strict else o.trace, threshold) for o in found]

    def median(self, table: Table, slots: int, side: str, goal: Goal) -> Estimate:
        values = self.epochs(table, slots, side, goal)
        return measure.estimate([[(value,) for value in values]], measure.median)

    def mean_epochs(self, table: Table, slots: int, side: str, goal: Goal) -> float:
        """The mean of the epochs to the goal, each cut at the budget."""
        return statistics.mean(_cut(self.epochs(table, slots, side, goal), table))

    def best_of_optuna(self, tables: Sequence[Table], slots: int, goal: Goal) -> str:
        """The combination of Optuna that needs the smallest share of the budget, the mean over tables and seeds."""

        def share(side: str) -> float:
            return sum(self.mean_epochs(t, slots, side, goal) / budget(t) for t in tables)

        return min(self.of_optuna, key=share)

    def pairs(self, table: Table, slots: int, goal: Goal, side: str, other: str) -> list[tuple[float, ...]]:
        """The epochs of two sides for each seed, cut at the budget."""
        return list(zip(*(_cut(self.epochs(table, slots, s, goal), table) for s in (side, other)), strict=True))

    def ratio(self, tables: Sequence[Table], slots: int, goal: Goal, side: str = OURS, other: str = "") -> Estimate:
        """The epochs of a side over those of another one, the mean over the tables.

        other: empty for the combination of Optuna that was the best one on each table.
        """
        others = [other or self.best_of_optuna([t], slots, goal) for t in tables]
        return measure.estimate(
            [self.pairs(t, slots, goal, side, o) for t, o in zip(tables, others, strict=True)], measure.mean_ratio
        )

    def regret(self, table: Table, slots: int, side: str, spent: int, strict: bool = False) -> float:
        """The mean over the seeds of the best final value of the table less that of the incumbent.

        Where there is no incumbent yet, or its training will diverge, the worst final value counts.
        """
        outcomes = self.outcomes[table.name, slots, side]
        found = [measure.final_at(o.strict if strict else o.trace, spent) for o in outcomes]
        worst = min(value for value in table.finals if value > -math.inf)
        return table.finals[0] - statistics.mean(max(value, worst) for value in found)


def budget(table: Table) -> int:
    return TRAININGS * table.max_epochs


def simulate(case: Case) -> Outcome:
    """Run one search."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    side = SIDES[case.side](case.table, case.seed)
    run = Simulation(side, case.table, budget(case.table), case.slots, case.seed).run()
    return Outcome(
        measure.incumbents(run, case.table), measure.strict_incumbents(run, case.table), trials=len(run.trials)
    )


def compare(
    tables: Sequence[Table],
    seeds: int,
    slots: Sequence[int] = SLOTS,
    report: Callable[[str], None] = lambda _: None,
    only: Collection[str] = (),
) -> Comparison:
    """Run all searches. only: the sides that run; all where it is empty."""
    outcomes: dict[tuple[str, int, str], list[Outcome]] = {}
    started = time.monotonic()
    for table, n in itertools.product(tables, slots):
        sides = [side for side in (SIDES if n == slots[0] else MAIN) if not only or side in only]
        cases = [Case(table, n, side, seed) for side in sides for seed in range(seeds)]
        for case, outcome in zip(cases, _simulated(cases), strict=True):
            outcomes.setdefault((table.name, n, case.side), []).append(outcome)
        report(f"{table.name}, slots {n}: {len(cases)} searches; {time.monotonic() - started:.0f} s so far")
    return Comparison(tables, slots, seeds, outcomes)


def _simulated(cases: Sequence[Case]) -> Iterator[Outcome]:
    context = multiprocessing.get_context("spawn")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with context.Pool(min(cores, len(cases))) as pool:
        yield from pool.imap(simulate, cases, chunksize=4)


def _cut(values: Sequence[float], table: Table) -> list[float]:
    return [min(value, budget(table)) for value in values]
