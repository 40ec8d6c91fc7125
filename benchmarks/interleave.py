"""Run the sides of a benchmark in turn, A B A B, and compute medians, quartiles and ratios within a round."""

from __future__ import annotations

import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

AGAIN = " again"  # suffix of a side's name for its second run in a round
Measured = dict[str, Any]  # the measurements of one run of a side
Round = dict[str, Measured]  # the measurements of each side in one round


class GateFailed(Exception):
    """The sides did not do the same work, or their records are incomplete, so they cannot be compared."""


@dataclass(frozen=True)
class Figure:
    """A number of one round: a time, or a ratio of two sides.

    Attributes:
        of: Computes the number from a round.
        limit: The maximum of its median over the rounds, or None if it is only reported.
        least: The limit is a minimum.
        needs: The sides without which a round has no such number; see Benchmark.seldom.
    """

    name: str
    unit: str
    of: Callable[[Round], float]
    limit: float | None = None
    least: bool = False
    needs: tuple[str, ...] = ()


@dataclass(frozen=True)
class Benchmark:
    """A benchmark.

    Attributes:
        sides: Functions that run a side in a folder of its own, by name.
        gate: Raises GateFailed for a round whose sides cannot be compared. It also gets rounds without seldom sides.
        round_s: Estimated seconds of a round.
        prepare: Prepares what all rounds share, in a folder that exists until the last round.
        seldom: For slow sides, in how many of the first rounds they run.
    """

    name: str
    about: str
    sides: Mapping[str, Callable[[Path], Measured]]
    gate: Callable[[Round], None]
    figures: Sequence[Figure]
    round_s: float
    prepare: Callable[[Path], None] = lambda _: None
    prepare_s: float = 0.0
    seldom: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Summary:
    """A figure over all rounds that have it.

    Attributes:
        low: The lower quartile.
        high: The upper quartile.
        count: The number of rounds that have the figure.
        met: Whether its limit is met, or None without a limit.
    """

    figure: Figure
    median: float
    low: float
    high: float
    count: int

    @property
    def met(self) -> bool | None:
        limit = self.figure.limit
        if limit is None:
            return None
        return self.median >= limit if self.figure.least else self.median <= limit


@dataclass
class Clock:
    """Estimates the remaining time from earlier rounds, or else from the estimates of the benchmarks."""

    benchmarks: Sequence[Benchmark]
    repeats: int
    took: dict[str, list[float]] = field(default_factory=dict)
    prepared: set[str] = field(default_factory=set)
    failed: set[str] = field(default_factory=set)
    round_began: float | None = None

    def left(self) -> str:
        seconds = 0.0
        for b in self.benchmarks:
            if b.name in self.failed:
                continue
            took = self.took.get(b.name, [])
            seconds += (self.repeats - len(took)) * (statistics.mean(took) if took else b.round_s)
            seconds += 0.0 if b.name in self.prepared else b.prepare_s
        if self.round_began is not None:
            seconds -= time.monotonic() - self.round_began
        return f"about {max(seconds, 0) / 60:.0f} min left" if seconds > 90 else f"about {max(seconds, 0):.0f} s left"


def run(benchmark: Benchmark, clock: Clock, report: Callable[[str], None]) -> list[Round]:
    """Run all rounds of a benchmark and apply its gate to each."""
    with tempfile.TemporaryDirectory(prefix=f"overnight-bench-{benchmark.name}-") as name:
        kept = Path(name)
        report(f"{benchmark.name}: {clock.left()}")
        benchmark.prepare(kept)
        clock.prepared.add(benchmark.name)
        return [_round(benchmark, kept, i, clock, report) for i in range(clock.repeats)]


def _round(benchmark: Benchmark, kept: Path, number: int, clock: Clock, report: Callable[[str], None]) -> Round:
    clock.round_began = started = time.monotonic()
    measured: Round = {}
    for side, measure in benchmark.sides.items():
        if number >= benchmark.seldom.get(side, clock.repeats):
            continue
        folder = kept / f"{side.replace(' ', '-')}-{number}"
        folder.mkdir()
        began = time.monotonic()
        measured[side] = measure(folder)
        shutil.rmtree(folder)
        report(f"  round {number + 1} of {clock.repeats}, {side}: {time.monotonic() - began:.0f} s; {clock.left()}")
    benchmark.gate(measured)
    clock.took.setdefault(benchmark.name, []).append(time.monotonic() - started)
    clock.round_began = None
    return measured


def mean(measured: Round, side: str, key: str) -> float:
    """Return the mean of a side's one or two runs in a round.

    In the order A, B, B, A, a machine that slows down steadily changes the means of both sides equally.
    """
    return statistics.mean(measured[s][key] for s in (side, f"{side}{AGAIN}") if s in measured)


def summarise(figures: Sequence[Figure], rounds: Sequence[Round]) -> list[Summary]:
    found = []
    for figure in figures:
        values = [figure.of(r) for r in rounds if all(side in r for side in figure.needs)]
        low, _, high = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else values * 3
        found.append(Summary(figure, statistics.median(values), low, high, len(values)))
    return found


def require(condition: bool, otherwise: str) -> None:
    if not condition:
        raise GateFailed(otherwise)
