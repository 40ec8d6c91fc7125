"""The chart of a search that pauses trials: each trial as far as it was trained."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import NullLocator

from overnight.plots.figures import literal
from overnight.report.figures import FAINT, MAIN, SECOND, Chart, draw_svg, maximizes
from overnight.report.report import Report
from overnight.report.rungs import Rung, find_rungs
from overnight.search.formatting import format_value
from overnight.search.record import TrialRecord
from overnight.search.schedulers.study import scores_of

Curve = list[tuple[float, float]]  # (epochs, value)

# The share of the values that are beyond the edge of the chart, so that a few do not decide how the others are drawn.
_BEYOND = 0.03
# The least distance between two labels of the axis of values, as a share of its height.
_BETWEEN_TICKS = 0.07


def draw_rungs(report: Report) -> Chart | None:
    """Draw the value of each trial against its epochs; None where fewer than two trials have a value."""
    plan, winner, rungs = report.plan, report.finding.best, find_rungs(report.plan, report.records)
    curves = {r.number: curve for r in report.records if (curve := _curve(r, report))}
    if len(curves) < 2 or not rungs:
        return None
    complete = {r.number for r in report.records if r.state == "complete"} & curves.keys()
    first = int(min(at for curve in curves.values() for at, _ in curve))
    scale = _scale(curves, complete, maximizes(report))
    won = winner.number if winner is not None else None

    def draw(figure: Figure) -> None:
        ax = figure.subplots()
        for rung in rungs:
            ax.axvline(rung.epochs, color=FAINT, linewidth=0.6, linestyle=":", zorder=0)
        handles = []
        for label, colour, width, numbers in (
            ("pruned", FAINT, 0.7, [n for n in curves if n not in complete and n != won]),
            ("complete", MAIN, 1.2, [n for n in complete if n != won]),
            ("winner", SECOND, 2.4, [n for n in curves if n == won]),
        ):
            if numbers:
                lines = [[(at, scale.clip(value)) for at, value in curves[n]] for n in numbers]
                # One collection: a thousand single lines would take many seconds.
                ax.add_collection(LineCollection(lines, colors=colour, linewidths=width, alpha=0.8))
                at, values = zip(*(line[-1] for line in lines), strict=True)
                ax.scatter(at, values, s=8 * width, color=colour, linewidth=0, clip_on=False)
                handles.append(Line2D([], [], color=colour, linewidth=width, label=label))
        scale.apply(ax)
        ax.set_xscale("log", base=2)
        ax.set_xlim(0.95 * first, 1.03 * rungs[-1].epochs)
        ticks = sorted({first, *(r.epochs for r in rungs)})
        ax.set_xticks(ticks, [str(tick) for tick in ticks])
        ax.xaxis.set_minor_locator(NullLocator())
        ax.set(xlabel=f"{plan.unit}s", ylabel=literal(plan.settings.study.metric))
        figure.legend(handles=handles, loc="outside upper left", ncols=3, fontsize=8.5)

    return Chart("The search", _words(report, curves, len(complete)), draw_svg("rungs", draw, 3.8))


def rung_rows(rungs: Sequence[Rung]) -> list[tuple[str, ...]]:
    """Return one row for each rung; see `rung_columns`."""
    all_epochs = sum(r.trained for r in rungs)
    return [
        (
            f"{r.epochs}",
            f"{r.reached:,}",
            f"{r.sent_on:,}" if r.sent_on else "",
            f"{r.trained:,} ({r.trained / all_epochs:.0%})",
        )
        for r in rungs
    ]


def rung_columns(unit: str) -> tuple[str, ...]:
    """Return the heads of the columns of `rung_rows`."""
    return f"after {unit}", "trials", "trained further", f"{unit}s since the rung before"


def _curve(record: TrialRecord, report: Report) -> Curve:
    sign = 1 if maximizes(report) else -1
    scores = enumerate(scores_of(record.history, report.plan.settings), start=1)
    return [(float(at), sign * score) for at, score in scores if not math.isnan(score)]


def _words(report: Report, curves: Mapping[int, Curve], complete: int) -> str:
    metric = report.plan.settings.study.metric
    paused = sum(r.waits_at_rung for r in report.records if r.number in curves)
    words = (
        f"{metric} of each trial against its {report.plan.unit}s: {complete} trials were trained to the end, "
        f"{paused} were paused before and not resumed. Trials may be paused at the dotted lines. The "
        "scale of the values is logarithmic in the distance to the best one."
    )
    best = report.finding.best
    if best is not None and best.number in curves:
        value = format_value(curves[best.number][-1][1], metric)
        unit, epochs = report.plan.unit, len(best.history)
        ended = "ended" if best.state == "complete" else f"was paused after {epochs} {unit}{'s' * (epochs != 1)}"
        words += f" The winner, trial {best.number}, {ended} with {value}."
    return words


@dataclass(frozen=True)
class _ValueScale:
    """A scale that is logarithmic in the distance to the best value, so that good trials are distinguishable.

    Attributes:
        best: The best value.
        step: A distance that is as large on the chart as the next ten times as large one.
        worst: The value at the edge of the chart. Worse ones are drawn there.
    """

    best: float
    step: float
    worst: float

    @property
    def sign(self) -> float:
        """1 if a higher value is better, -1 if a lower one is."""
        return 1.0 if self.worst <= self.best else -1.0

    def clip(self, value: float) -> float:
        return min(max(value, min(self.worst, self.best)), max(self.worst, self.best))

    def place(self, values: Any) -> Any:
        """The position of values on the axis, rising with the value."""
        distance = np.maximum(self.sign * (self.best - np.asarray(values, dtype=float)), 0.0)
        return -self.sign * np.log10(distance / self.step + 1.0)

    def value(self, places: Any) -> Any:
        """The values at positions; the inverse of `place`."""
        distance = self.step * (10.0 ** (-self.sign * np.asarray(places, dtype=float)) - 1.0)
        return self.best - self.sign * distance

    def apply(self, ax: Axes) -> None:
        ax.set_yscale("function", functions=(self.place, self.value))
        ax.set_ylim(*sorted((self.worst, self.best)))
        ticks = self.ticks()
        ax.set_yticks(ticks, [f"{tick:.10g}" for tick in ticks])
        ax.yaxis.set_minor_locator(NullLocator())

    def ticks(self) -> list[float]:
        """Round values, from the best one to the worst one, that are far enough from each other on the chart."""
        span, height = abs(self.best - self.worst), abs(float(self.place(self.worst)))
        decade = math.floor(math.log10(self.step))
        distances = [m * 10.0**d for d in range(decade, decade + 12) for m in (1, 2, 5) if m * 10.0**d <= span]
        found: list[float] = []
        for distance in distances:
            tick = round(self.best - self.sign * distance, -math.floor(math.log10(distance)))
            is_free = all(abs(float(self.place(tick) - self.place(t))) > _BETWEEN_TICKS * height for t in found)
            if is_free and self.clip(tick) == tick:
                found.append(tick)
        return found or [self.best]


def _scale(curves: Mapping[int, Curve], complete: set[int], higher_is_better: bool) -> _ValueScale:
    sign = 1 if higher_is_better else -1
    losses = [-sign * value for curve in curves.values() for _, value in curve]
    best, worst = min(losses), float(np.quantile(losses, 1 - _BEYOND))
    ends = [-sign * curves[n][-1][1] for n in complete or curves]
    step = max(statistics.median(ends) - best, (worst - best) / 1000, abs(best) * 1e-9, 1e-12)
    return _ValueScale(-sign * best, step, -sign * max(worst, best + step))
