"""What the charts of the report share: their look, their output as SVG, and the range of values that they show.

Charts are drawn in placeholder colours. They are replaced by CSS variables, so that one drawing fits both themes.
"""

from __future__ import annotations

import io
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from overnight.report.report import Report
from overnight.search.formatting import format_value
from overnight.search.record import TrialRecord

# Placeholder colour -> CSS variable.
INK, FAINT, MAIN, SECOND, PAPER = "#010101", "#020202", "#030303", "#040404", "#050505"
_COLOURS = {
    INK: "var(--ink)",
    FAINT: "var(--faint)",
    MAIN: "var(--main)",
    SECOND: "var(--second)",
    PAPER: "var(--paper)",
}
_STYLE: Any = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 10.5,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": FAINT,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "axes.unicode_minus": False,
}
# Marks the winner.
RING: Any = {"s": 110, "facecolor": "none", "edgecolor": SECOND, "linewidth": 1.8, "clip_on": False}
_WIDTH = 5.6  # in inches
# The better half of the trials gets at least this share of an axis of values.
_BETTER_HALF = 1 / 4


@dataclass(frozen=True)
class Chart:
    """A chart. caption: describes what the chart shows, for readers who cannot see it."""

    title: str
    caption: str
    svg: str


def draw_svg(name: str, draw: Callable[[Figure], None], height: float = 3.2) -> str:
    """Draw an SVG that is reproducible: without a date, and with text instead of glyph outlines.

    Args:
        name: Distinguishes the ids in this chart from those in others.
        height: In inches.
    """
    with matplotlib.rc_context({**_STYLE, "svg.hashsalt": name}):
        figure = Figure(figsize=(_WIDTH, height), layout="constrained")
        draw(figure)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    for placeholder, variable in _COLOURS.items():
        text = text.replace(placeholder, variable)
    return text


def valued(records: Iterable[TrialRecord]) -> list[TrialRecord]:
    """Return the trials that ended with a value of the metric."""
    return [r for r in records if r.state in ("complete", "pruned") and r.objective is not None]


def maximizes(report: Report) -> bool:
    return report.plan.settings.study.direction == "maximize"


@dataclass(frozen=True)
class ShownRange:
    """The values that an axis shows. A few bad trials do not decide how much the others are compressed.

    Attributes:
        best: The best value of all trials.
        limit: The value beyond which trials are drawn at the edge of the chart.
        beyond: The trials beyond the limit, the worst one first.
    """

    metric: str
    best: float
    limit: float
    beyond: tuple[TrialRecord, ...]

    @property
    def low(self) -> float:
        return min(self.best, self.limit)

    @property
    def high(self) -> float:
        return max(self.best, self.limit)

    @property
    def edge_marker(self) -> str:
        """The marker that points to the values beyond the limit."""
        return "v" if self.limit < self.best else "^"

    def clip(self, value: float) -> float:
        """Return the value, or the limit for a value beyond it."""
        return min(max(value, self.low), self.high)

    def share(self, value: float) -> float:
        """Return 1 for the best value, 0 for the limit and beyond."""
        return 1.0 if self.best == self.limit else (self.clip(value) - self.limit) / (self.best - self.limit)

    def apply(self, ax: Axes) -> None:
        """Limit the vertical axis of a chart."""
        margin = 0.06 * (self.high - self.low) or 0.06 * abs(self.high) or 1.0
        ax.set_ylim(self.low - margin, self.high + margin)

    def words(self) -> str:
        """Describe what is beyond the edge; empty if nothing is."""
        if not self.beyond:
            return ""
        edge = "lower" if self.limit < self.best else "upper"
        trials = "1 trial is" if len(self.beyond) == 1 else f"{len(self.beyond)} trials are"
        worst = self.beyond[0]
        value = format_value(worst.objective or 0.0, self.metric)
        return f" {trials} beyond the {edge} edge, as triangles, the farthest with {value} (trial {worst.number})."


def shown_range(report: Report) -> ShownRange:
    """Return the range from the best value to the worst complete one, without those far beyond the better half."""
    trials = valued(report.compared.records)
    sign = 1 if maximizes(report) else -1
    losses = {r.number: -sign * (r.objective or 0.0) for r in trials}
    complete = [losses[r.number] for r in trials if r.state == "complete"] or list(losses.values())
    best, middle = min(losses.values()), statistics.median(complete)
    farthest = best + (middle - best) / _BETTER_HALF
    limit = min(max(complete), farthest) if farthest > best else max(complete)
    beyond = sorted((r for r in trials if losses[r.number] > limit), key=lambda r: -losses[r.number])
    return ShownRange(report.plan.settings.study.metric, -sign * best, -sign * limit, tuple(beyond))


def scatter(
    ax: Axes, points: Sequence[tuple[float, TrialRecord]], shown: ShownRange, winner: TrialRecord | None
) -> None:
    """Draw trials by their values: complete ones as dots, pruned ones as crosses, those beyond as triangles.

    Args:
        points: Horizontal position and trial.
        winner: The trial to draw a ring around.
    """
    beyond = {r.number for r in shown.beyond}
    for state, marker, colour in (("pruned", "x", FAINT), ("complete", "o", MAIN)):
        of_state = [(at, r) for at, r in points if r.state == state]
        within = [(at, r.objective or 0.0) for at, r in of_state if r.number not in beyond]
        outside = [(at, shown.limit) for at, r in of_state if r.number in beyond]
        for form, rows in ((marker, within), (shown.edge_marker, outside)):
            if rows:
                at_x, at_y = zip(*rows, strict=True)
                ax.scatter(at_x, at_y, marker=form, s=24, color=colour, clip_on=False)
    for at, r in points:
        if winner is not None and r.number == winner.number:
            ax.scatter([at], [r.objective or 0.0], **RING)


def legend(figure: Figure, trials: Sequence[TrialRecord], shown: ShownRange, *lines: Line2D) -> None:
    """Explain the markers of `scatter`, and lines, above the charts of a figure."""
    states = {r.state for r in trials}
    marks = [m for m in (("complete", "o", MAIN), ("pruned", "x", FAINT)) if m[0] in states]
    if shown.beyond:
        marks.append(("beyond the edge", shown.edge_marker, INK))
    handles = [Line2D([], [], linestyle="", marker=m, color=c, markersize=5, label=name) for name, m, c in marks]
    ring = Line2D([], [], linestyle="", marker="o", color=SECOND, fillstyle="none", markersize=8, label="winner")
    figure.legend(
        handles=[*handles, ring, *lines],
        loc="outside upper left",
        ncols=5,
        fontsize=8.5,
        columnspacing=1.0,
        handletextpad=0.3,
        handlelength=1.5,
    )
