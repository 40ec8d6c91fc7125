"""`python -m benchmarks.search.make_tables [NAME ...]`: train each configuration of a grid, and keep the curves.

Each table is three studies of the tool itself, with three seeds: sampler=grid, scheduler=none, no confirmation. Its
curves are what the studies stored. The grids are cuts through the search spaces of conf/search: ordered parameters have
a few levels, and SGD has its default momentum of 0.9. The first configuration of each space, which every study trains
first, is in the grid.

Fashion-MNIST is read from the folder OVERNIGHT_DATA, as everywhere.
"""

from __future__ import annotations

import argparse
import itertools
import math
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from benchmarks import results
from benchmarks.search.tables import FOLDER, Dimension, Point, Row, Table
from overnight.protocol import Progress

MAX_EPOCHS = 27
SEEDS = 3
COMMON = (
    "sampler=grid",
    "scheduler=none",
    "search=none",
    "preflight=never",
    "pictures.when=never",
    "study.confirm.seeds=0",
    "study.max_consecutive_failures=1000",
    f"trainer.max_epochs={MAX_EPOCHS}",
)
RATES = (1e-4, 3.2e-4, 1e-3, 3.2e-3, 1e-2, 3.2e-2, 1e-1)


@dataclass(frozen=True)
class Grid:
    """What a table is made of.

    Attributes:
        metric: of the study, to maximise.
        fixed: overrides that all configurations share.
        keys: config key -> name of the dimension of its values.
        dimensions: ordered ones have numbers as levels.
        build: how the config key of a list follows from two dimensions, e.g. two layers of 64 units are [64, 64].
    """

    metric: str
    fixed: tuple[str, ...]
    keys: Mapping[str, str]
    dimensions: tuple[Dimension, ...]
    lists: str = ""
    build: Callable[[int, int], list[int]] = field(default=lambda length, width: [width] * length)

    def overrides(self) -> list[str]:
        levels = {d.name: d.levels for d in self.dimensions}
        drawn = [f"{key}=choice({_texts(levels[name])})" for key, name in self.keys.items()]
        if self.lists:
            lists = [self.build(n, w) for n, w in itertools.product(levels["layers"], levels["width"])]
            drawn.append(f"{self.lists}=choice({_texts(lists)})")
        points = math.prod(len(d.levels) for d in self.dimensions)
        return [*COMMON, f"study.metric={self.metric}", *self.fixed, *drawn, f"study.trials={points}"]

    def point(self, params: Mapping[str, Any]) -> Point:
        """The level of each dimension in a trial's parameters."""
        values = {name: params[key] for key, name in self.keys.items()}
        if self.lists:
            values |= {"layers": len(params[self.lists]), "width": params[self.lists][0]}
        return tuple(d.levels.index(values[d.name]) for d in self.dimensions)


def _texts(values: Sequence[Any]) -> str:
    return ",".join(str(v).replace(" ", "") for v in values)


def _ordered(name: str, *levels: float) -> Dimension:
    return Dimension(name, True, levels)


def _choice(name: str, *levels: str) -> Dimension:
    return Dimension(name, False, levels)


GRIDS = {
    "digits-mlp": Grid(
        "val/accuracy",
        ("data=digits", "model=mlp"),
        {"model.activation": "activation", "optimizer": "optimizer", "optimizer.lr": "rate"},
        (
            _ordered("rate", *RATES),
            _ordered("layers", 1, 2, 3),
            _ordered("width", 16, 32, 64, 128),
            _choice("activation", "relu", "tanh", "sigmoid"),
            _choice("optimizer", "adam", "sgd"),
        ),
        "model.hidden_sizes",
    ),
    "diabetes-mlp": Grid(
        "val/r2",
        ("data=diabetes", "model=mlp"),
        {
            "model.activation": "activation",
            "model.dropout": "dropout",
            "data.batch_size": "batch size",
            "optimizer.lr": "rate",
        },
        (
            _ordered("rate", *RATES[1:6]),
            _ordered("layers", 1, 2),
            _ordered("width", 16, 64),
            _ordered("dropout", 0.0, 0.2, 0.4),
            _ordered("batch size", 16, 32, 64),
            _choice("activation", "relu", "tanh", "sigmoid"),
        ),
        "model.hidden_sizes",
    ),
    "fashion-mlp": Grid(
        "val/accuracy",
        ("data=fashion_mnist", "data.subset=0.1", "model=mlp"),
        {
            "model.dropout": "dropout",
            "data.batch_size": "batch size",
            "optimizer": "optimizer",
            "optimizer.lr": "rate",
        },
        (
            _ordered("rate", *RATES[1:6]),
            _ordered("layers", 1, 2),
            _ordered("width", 32, 64, 128),
            _ordered("dropout", 0.0, 0.2, 0.4),
            _ordered("batch size", 64, 128),
            _choice("optimizer", "adam", "sgd"),
        ),
        "model.hidden_sizes",
    ),
    "digits-cnn": Grid(
        "val/accuracy",
        ("data=digits", "model=cnn", "model.channels=[8,16]", "model.head=[32]"),
        {
            "model.activation": "activation",
            "model.dropout": "dropout",
            "model.pooling": "pooling",
            "model.batch_norm": "batch norm",
            "data.batch_size": "batch size",
            "optimizer": "optimizer",
            "optimizer.lr": "rate",
        },
        (
            _ordered("rate", *RATES[1:]),
            _ordered("dropout", 0.0, 0.3),
            _ordered("batch size", 32, 128),
            _choice("activation", "relu", "tanh"),
            _choice("pooling", "max", "average"),
            _choice("batch norm", True, False),
            _choice("optimizer", "adam", "sgd"),
        ),
    ),
}


def make(name: str) -> Table:
    """Train all configurations of a grid, with each seed."""
    grid, started = GRIDS[name], time.monotonic()
    studies = [_train(name, grid, seed) for seed in range(SEEDS)]
    rows = []
    for point in sorted(studies[0]):
        epochs = [study[point] for study in studies]
        curves = tuple(tuple(round(e.metrics.get(grid.metric, math.nan), 6) for e in history) for history in epochs)
        seconds = statistics.median(epoch.seconds for history in epochs for epoch in history)
        rows.append(Row(point, curves, round(seconds, 4)))
    made = {
        "command": f"python -m benchmarks.search.make_tables {name}",
        "overrides": " ".join(grid.overrides()),
        "seeds": SEEDS,
        "machine": results.machine(),
        "seconds": round(time.monotonic() - started),
    }
    return Table(name, grid.metric, MAX_EPOCHS, grid.dimensions, next(iter(studies[0])), tuple(rows), made)


def _train(name: str, grid: Grid, seed: int) -> dict[Point, Sequence[Progress]]:
    """Return what each configuration reported, in the order of the trials."""
    import overnight

    with tempfile.TemporaryDirectory(prefix="overnight-tables-") as home:
        found = overnight.tune([*grid.overrides(), f"seed={seed}", f"study.name={name}", f"home={home}"])
    return {grid.point(record.params): record.history for record in found.records}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.search.make_tables", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"{', '.join(GRIDS)}")
    for name in parser.parse_args().names or GRIDS:
        table = make(name)
        table.write(FOLDER / f"{name}.json")
        print(f"{name}: {len(table.rows)} configurations in {table.made['seconds']} s", flush=True)


if __name__ == "__main__":
    main()
