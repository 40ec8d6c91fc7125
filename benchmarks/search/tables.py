"""Tables of learning curves: each configuration of a grid, trained with several seeds."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution, IntDistribution

from overnight.search.seeds import derive_seed

FOLDER = Path(__file__).parents[1] / "tables"
Point = tuple[int, ...]  # the index of the level of each dimension


@dataclass(frozen=True)
class Dimension:
    """A searched parameter. Samplers draw the index of an ordered one's level as an integer, others as choices."""

    name: str
    ordered: bool
    levels: tuple[Any, ...]

    @property
    def distribution(self) -> BaseDistribution:
        if self.ordered:
            return IntDistribution(0, len(self.levels) - 1)
        return CategoricalDistribution(self.levels)

    def index(self, drawn: Any) -> int:
        return drawn if self.ordered else self.levels.index(drawn)

    def drawn(self, index: int) -> Any:
        return index if self.ordered else self.levels[index]


@dataclass(frozen=True)
class Row:
    """One configuration.

    Attributes:
        curves: The metric after each epoch, larger is better; a curve for each seed. It is shorter, or ends with nan,
            where training diverged.
        epoch_s: Seconds of an epoch, the median.
    """

    point: Point
    curves: tuple[tuple[float, ...], ...]
    epoch_s: float


@dataclass(frozen=True)
class Table:
    """All configurations of a grid.

    Attributes:
        first: The configuration that every study trains first.
        made: How the table was made.
    """

    name: str
    metric: str
    max_epochs: int
    dimensions: tuple[Dimension, ...]
    first: Point
    rows: tuple[Row, ...]
    made: Mapping[str, Any] = field(default_factory=dict)

    @cached_property
    def by_point(self) -> dict[Point, Row]:
        return {row.point: row for row in self.rows}

    @cached_property
    def distributions(self) -> dict[str, BaseDistribution]:
        return {d.name: d.distribution for d in self.dimensions}

    @cached_property
    def finals(self) -> list[float]:
        """The final values, best first; -inf for a training that diverged."""
        return sorted((self.final(row.point) for row in self.rows), reverse=True)

    def curve(self, point: Point, seed: int) -> tuple[float, ...]:
        """The curve that a search with this seed sees: that of one of the trainings, at random."""
        curves = self.by_point[point].curves
        return curves[derive_seed(seed, "curve", *point) % len(curves)]

    def final(self, point: Point) -> float:
        """The mean over the seeds of the value after the last epoch; -inf where a training diverged."""
        return statistics.mean(_value(curve, self.max_epochs) for curve in self.by_point[point].curves)

    def threshold(self, share: float) -> float:
        """The final value that the best `share` of the rows reach; equal values count too."""
        return self.finals[max(1, round(share * len(self.rows))) - 1]

    def in_better_half(self, share: float, epochs: int) -> float:
        """The share of the best rows that are in the better half after so many epochs, by their values then."""
        best = [row for row in self.rows if self.final(row.point) >= self.threshold(share)]
        middle = statistics.median(_value(curve, epochs) for row in self.rows for curve in row.curves)
        return statistics.mean(_value(curve, epochs) >= middle for row in best for curve in row.curves)

    def lasting(self, share: float, seeds: int = 200) -> float:
        """The probability that a search leads with one of the best rows once it has trained all rows to the end."""
        found = []
        for seed in range(seeds):
            values = {row.point: _value(self.curve(row.point, seed), self.max_epochs) for row in self.rows}
            most = max(values.values())
            leading = [point for point, value in values.items() if value == most]
            found.append(statistics.mean(self.final(point) >= self.threshold(share) for point in leading))
        return statistics.mean(found)

    def spread(self, share: float) -> float:
        """The standard deviation over the seeds of the final values of the best rows."""
        best = [row for row in self.rows if self.final(row.point) >= self.threshold(share)]
        found = [statistics.variance(_value(curve, self.max_epochs) for curve in row.curves) for row in best]
        return math.sqrt(statistics.mean(found))

    def point_of(self, params: Mapping[str, Any]) -> Point:
        """Convert what a sampler drew."""
        return tuple(d.index(params[d.name]) for d in self.dimensions)

    def params_of(self, point: Point) -> dict[str, Any]:
        """Convert a point to what a sampler would have drawn."""
        return {d.name: d.drawn(i) for d, i in zip(self.dimensions, point, strict=True)}

    def write(self, path: Path) -> None:
        """Write the table as JSON, with a line for each row."""
        head = {
            "name": self.name,
            "metric": self.metric,
            "max_epochs": self.max_epochs,
            "dimensions": [[d.name, d.ordered, d.levels] for d in self.dimensions],
            "first": self.first,
            "made": self.made,
            "columns": [
                "index of the level of each dimension",
                "seconds of an epoch",
                "metric after each epoch, by seed",
            ],
        }
        lines = [f"{json.dumps(key)}: {json.dumps(value)}" for key, value in head.items()]
        rows = ",\n".join(json.dumps([row.point, row.epoch_s, row.curves]) for row in self.rows)
        path.write_text("{\n" + ",\n".join(lines) + f',\n"rows": [\n{rows}\n]\n}}\n')


def _value(curve: Sequence[float], epochs: int) -> float:
    value = curve[epochs - 1] if epochs <= len(curve) else math.nan
    return value if math.isfinite(value) else -math.inf


def read(path: Path) -> Table:
    found = json.loads(path.read_text())
    return Table(
        found["name"],
        found["metric"],
        found["max_epochs"],
        tuple(Dimension(name, ordered, tuple(levels)) for name, ordered, levels in found["dimensions"]),
        tuple(found["first"]),
        tuple(Row(tuple(point), tuple(map(tuple, curves)), epoch_s) for point, epoch_s, curves in found["rows"]),
        found["made"],
    )


def read_all() -> list[Table]:
    return [read(path) for path in sorted(FOLDER.glob("*.json"))]
