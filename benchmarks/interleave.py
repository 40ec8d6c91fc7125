"""Sides of a benchmark in turn, A B A B, and what comes of it: medians, quartiles, ratios pair by pair."""

from __future__ import annotations

import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

AGAIN = " again"  # comes after a side's name, for a second run of it in the same round
Measured = dict[str, Any]  # what one run of a side took and left behind
Round = dict[str, Measured]  # of each side, in one repeat


class GateFailed(Exception):
    """The sides did not do the same work, or what they should have stored is not there: there is nothing to compare."""


@dataclass(frozen=True)
class Figure:
    """A number of one round: a time, or a ratio of two sides that ran next to each other.

    limit: the most that its median over the rounds may be, or with `least` the least; None where it is only reported.
    needs: sides without which a round has no such number; see Benchmark.seldom.
    """

    name: str
    unit: str
    of: Callable[[Round], float]
    limit: float | None = None
    least: bool = False
    needs: tuple[str, ...] = ()


@dataclass(frozen=True)
class Benchmark:
    """sides: name -> run it in a folder of its own. gate: raises GateFailed for a round. round_s: a guess, for a start.

    prepare: what all rounds share, given a folder that is kept for them. seldom: sides that take long -> in how many
    rounds, the first ones, they run; the gate is given rounds without them too.
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
    """A figure over all rounds that have it. low and high: the quartiles. count: how many rounds those are. met: None
    where there is no limit."""

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
    """Says how long is left: by what rounds took, where there was one, and by the guess before."""

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


def run(benchmark: Benchmark, clock: Clock, say: Callable[[str], None]) -> list[Round]:
    """All rounds of a benchmark, each through its gate."""
    with tempfile.TemporaryDirectory(prefix=f"overnight-bench-{benchmark.name}-") as name:
        kept = Path(name)
        say(f"{benchmark.name}: {clock.left()}")
        benchmark.prepare(kept)
        clock.prepared.add(benchmark.name)
        return [_round(benchmark, kept, i, clock, say) for i in range(clock.repeats)]


def _round(benchmark: Benchmark, kept: Path, number: int, clock: Clock, say: Callable[[str], None]) -> Round:
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
        say(f"  round {number + 1} of {clock.repeats}, {side}: {time.monotonic() - began:.0f} s; {clock.left()}")
    benchmark.gate(measured)
    clock.took.setdefault(benchmark.name, []).append(time.monotonic() - started)
    clock.round_began = None
    return measured


def mean(measured: Round, side: str, key: str) -> float:
    """Of a side's runs in a round, one or two. A, B, B again, A again: where a machine's pace changes steadily from one
    run to the next, both sides' means are slowed alike."""
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
