"""Run real studies on the grid of a table, and compare them with the simulated ones.

Both have the same scheduler, with a first rung of one epoch, and the same sampler, budget and configurations, and one
slot. A real trial is trained with a seed of its own, where a simulated one gets a curve of the table. A real study
cannot draw a few values of a number as ordered ones, so all dimensions are choices, in both.
"""

from __future__ import annotations

import math
import statistics
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from benchmarks.search import measure
from benchmarks.search.compare import TRAININGS, budget
from benchmarks.search.make_tables import GRIDS, Grid
from benchmarks.search.points import RungTpe
from benchmarks.search.sides import Scheduled
from benchmarks.search.simulator import Epoch, Run, Simulation
from benchmarks.search.tables import Dimension, Row, Table
from overnight.search.schedulers.halving import Halving

TABLE = "digits-mlp"


@dataclass(frozen=True)
class Quantity:
    """A figure of a search, for each of the real and of the simulated ones.

    Attributes:
        real, simulated: one value a seed.
    """

    name: str
    real: Sequence[float]
    simulated: Sequence[float]

    @property
    def difference(self) -> float:
        """The mean of the real ones less that of the simulated ones, in standard errors of this difference."""
        error = sum(statistics.variance(v) / len(v) for v in (self.real, self.simulated)) ** 0.5
        difference = statistics.mean(self.real) - statistics.mean(self.simulated)
        if difference == 0:
            return 0.0
        return difference / error if error else math.copysign(math.inf, difference)


def compare_with_real(table: Table, real_seeds: int, simulated_seeds: int) -> list[Quantity]:
    """Run the studies and the simulations."""
    grid = GRIDS[table.name]
    flat = as_choices(table, grid)
    real = [_study(flat, grid, seed) for seed in range(real_seeds)]
    simulated = [Simulation(_side(flat, seed), flat, budget(flat), 1, seed).run() for seed in range(simulated_seeds)]
    figures: dict[str, Callable[[Run], float]] = {
        "configurations": lambda run: len(run.points),
        "complete trials": lambda run: sum(e.epoch == flat.max_epochs for e in run.epochs),
        "epochs": lambda run: len(run.epochs),
        "trials with at least 4 epochs": lambda run: sum(e.epoch == 4 for e in run.epochs),
        "best complete value": lambda run: max(e.score for e in run.epochs if e.epoch == flat.max_epochs),
        "quality of the winner": lambda run: measure.strict_incumbents(run, flat)[-1][1],
        "quality of the incumbent after 100 epochs": lambda run: measure.final_at(measure.incumbents(run, flat), 100),
        "epochs to the top 5%": lambda run: min(
            measure.epochs_until(measure.incumbents(run, flat), flat.threshold(0.05)), budget(flat)
        ),
    }
    return [Quantity(name, [f(r) for r in real], [f(r) for r in simulated]) for name, f in figures.items()]


def _side(table: Table, seed: int) -> Scheduled:
    scheduler = Halving(table.max_epochs)
    return Scheduled(table, scheduler, RungTpe(table, seed, scheduler.rungs))


def as_choices(table: Table, grid: Grid) -> Table:
    """The table with the dimensions of the real study: choices, and one for the list of two dimensions."""
    dimensions = [Dimension(key, False, _dimension(table, name).levels) for key, name in grid.keys.items()]
    lists = [(n, w) for n in _dimension(table, "layers").levels for w in _dimension(table, "width").levels]
    dimensions.append(Dimension(grid.lists, False, tuple(str(grid.build(n, w)) for n, w in lists)))

    def convert(point: Sequence[int]) -> tuple[int, ...]:
        at = {d.name: i for d, i in zip(table.dimensions, point, strict=True)}
        width = len(_dimension(table, "width").levels)
        return (*(at[name] for name in grid.keys.values()), at["layers"] * width + at["width"])

    rows = tuple(Row(convert(row.point), row.curves, row.epoch_s) for row in table.rows)
    return Table(table.name, table.metric, table.max_epochs, tuple(dimensions), convert(table.first), rows, table.made)


def _dimension(table: Table, name: str) -> Dimension:
    return next(d for d in table.dimensions if d.name == name)


def _study(table: Table, grid: Grid, seed: int) -> Run:
    """Tune for real, in one slot, and return what was trained in the order of time."""
    import overnight

    fixed = [o for o in grid.overrides() if not o.startswith(("sampler=", "scheduler=", "study.trials="))]
    halving = ["scheduler=halving", "scheduler.min_epochs=1", f"study.budget={TRAININGS}", "slots=1", f"seed={seed}"]
    with tempfile.TemporaryDirectory(prefix="overnight-real-") as home:
        found = overnight.tune([*fixed, *halving, f"study.name=real-{seed}", f"home={home}"])
    levels = [(d.name, list(map(str, d.levels))) for d in table.dimensions]
    points = [tuple(texts.index(str(r.params[name])) for name, texts in levels) for r in found.records]
    epochs = [Epoch(e.at, r.number, e.index + 1, e.metrics[table.metric]) for r in found.records for e in r.history]
    return Run(points=points, epochs=sorted(epochs, key=lambda e: (e.at, e.epoch)))
