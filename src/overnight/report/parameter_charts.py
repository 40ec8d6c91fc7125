"""Charts of the values that trials reached over the space of the search."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.collections import LineCollection
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from overnight.config.values import short_text
from overnight.plots.figures import literal
from overnight.report.axes import Axis, axis_of
from overnight.report.figures import (
    FAINT,
    INK,
    MAIN,
    PAPER,
    RING,
    SECOND,
    Chart,
    ShownRange,
    draw_svg,
    legend,
    maximizes,
    scatter,
    shown_range,
    valued,
)
from overnight.report.report import Report
from overnight.search.record import TrialRecord, searched_values

_MAX_SLICES = 4
_SLICES_IN_ROW = 2
_MIN_TRIALS_OF_PAIR = 6


def charts(report: Report) -> Iterable[Chart | None]:
    """Draw every chart of the space for which the study has enough data."""
    trials = [(r, searched_values(r, report.plan)) for r in valued(report.compared.records)]
    if not trials:
        return
    shown = shown_range(report)
    yield _slices(report, trials, shown)
    yield _pair(report, trials, shown)
    yield _parallel(report, trials, shown)


Trials = list[tuple[TrialRecord, dict[str, Any]]]  # with searched key -> value


def _slices(report: Report, trials: Trials, shown: ShownRange) -> Chart | None:
    keys = [i.key for i in report.importances.keys[:_MAX_SLICES]]
    if not keys:
        return None
    metric, rows = report.plan.settings.study.metric, math.ceil(len(keys) / _SLICES_IN_ROW)
    axes = {key: axis_of(key, report.plan.space) for key in keys}

    def draw(figure: Figure) -> None:
        columns = min(len(keys), _SLICES_IN_ROW)
        grid = figure.subplots(rows, columns, sharey=True, squeeze=False)
        for ax, (key, axis) in zip(grid.flat, axes.items(), strict=False):
            points = [(at, r) for r, v in trials if (at := _spread(axis, key, v, r)) is not None]
            scatter(ax, points, shown, report.finding.best)
            _label(ax, "x", axis)
            shown.apply(ax)
        for ax in grid[:, 0]:
            ax.set_ylabel(literal(metric))
        for ax in grid.flat[len(keys) :]:
            ax.set_axis_off()
        legend(figure, [r for r, _ in trials], shown)

    won = _of_winner(report, keys)
    words = (
        f"{metric}{_when(report)} against each of {', '.join(keys)}; each point is a trial{won}.{shown.words()}"
        f"{_on(axes)}"
    )
    return Chart("Slices", words, draw_svg("slices", draw, 0.4 + 2.6 * rows))


def _pair(report: Report, trials: Trials, shown: ShownRange) -> Chart | None:
    """Draw the trials over the two most important parameters, if both are more important than chance explains."""
    keys = [i.key for i in report.importances.certain[:2]]
    if len(keys) < 2:
        return None
    x, y = (axis_of(key, report.plan.space) for key in keys)
    points = [
        (ax, ay, r)
        for r, v in trials
        if (ax := _spread(x, keys[0], v, r)) is not None and (ay := _spread(y, keys[1], v, r)) is not None
    ]
    if len(points) < _MIN_TRIALS_OF_PAIR:
        return None
    points.sort(key=lambda p: shown.share(p[2].objective or 0.0))  # better ones on top
    metric, best = report.plan.settings.study.metric, report.finding.best

    def draw(figure: Figure) -> None:
        ax = figure.subplots()
        scale = Normalize(shown.low, shown.high)
        colours = "viridis" if maximizes(report) else "viridis_r"
        values = [shown.clip(r.objective or 0.0) for *_, r in points]
        ax.scatter(
            [p[0] for p in points], [p[1] for p in points], c=values, cmap=colours, norm=scale, s=36,
            edgecolor=INK, linewidth=0.5,
        )  # fmt: skip
        for at_x, at_y, record in points:
            if best is not None and record.number == best.number:
                ax.scatter([at_x], [at_y], label="winner", **RING)
                figure.legend(loc="outside upper left")
        _label(ax, "x", x)
        _label(ax, "y", y)
        extend = "neither" if not shown.beyond else "min" if maximizes(report) else "max"
        figure.colorbar(ScalarMappable(scale, colours), ax=ax, label=literal(metric), extend=extend)

    words = (
        f"{metric}{_when(report)} over {keys[0]} and {keys[1]}; each point is a trial, and a lighter one is better"
        f"{_of_winner(report, keys)}.{_on({keys[0]: x, keys[1]: y})}"
    )
    return Chart("The two most important parameters", words, draw_svg("pair", draw, 3.8))


def _parallel(report: Report, trials: Trials, shown: ShownRange) -> Chart | None:
    axes = {key: axis_of(key, report.plan.space) for key in dict.fromkeys(p.key for p in report.plan.space.parameters)}
    axes = {k: a for k, a in axes.items() if sum(_at(a, k, v) is not None for _, v in trials) > len(trials) / 2}
    if len(axes) < 2 or len(trials) < 3 or shown.best == shown.limit:
        return None
    best = report.finding.best
    order = sorted(trials, key=lambda t: shown.share(t[0].objective or 0.0))

    def line(values: dict[str, Any]) -> list[tuple[float, float]]:
        ats = [_at(axis, key, values) for key, axis in axes.items()]
        return [(i, math.nan if at is None else at) for i, at in enumerate(ats)]

    def draw(figure: Figure) -> None:
        ax = figure.subplots()
        # One collection: a thousand single lines would take many seconds.
        strengths = [0.08 + 0.72 * shown.share(r.objective or 0.0) ** 2 for r, _ in order]
        ax.add_collection(LineCollection([line(v) for _, v in order], colors=MAIN, linewidths=1.2, alpha=strengths))
        for _, values in (t for t in order if best is not None and t[0].number == best.number):
            ax.add_collection(LineCollection([line(values)], colors=SECOND, linewidths=2.4, label="winner"))
            figure.legend(loc="outside upper left")
        ax.set_ylim(-0.05, 1.05)
        for i, axis in enumerate(axes.values()):
            ax.axvline(i, color=FAINT, linewidth=0.8)
            for position, text in axis.ticks:
                ground = {"facecolor": PAPER, "edgecolor": "none", "alpha": 0.7, "pad": 0.6}
                ax.text(i + 0.03, position, literal(text), fontsize=8, va="center", bbox=ground, zorder=3)
        # A label is broken into lines, so that it does not overlap with the next one.
        ax.set_xticks(range(len(axes)), [literal(a.label.replace(".", ".\n")) for a in axes.values()], fontsize=8)
        ax.set_yticks([])
        ax.set_xlim(-0.1, len(axes) - 0.5)
        ax.spines[["left", "bottom"]].set_visible(False)

    words = (
        f"Each line is a trial through {', '.join(axes)}; the scale is logarithmic where the space is. "
        f"A stronger line is a trial that is better{_when(report)}.{_on(axes)}"
    )
    return Chart("All parameters at once", words, draw_svg("parallel", draw, 3.8))


# Parts ----------------------------------------------------------------------------------------------------------------


def _at(axis: Axis, key: str, values: dict[str, Any]) -> float | None:
    return axis.position_of(values[key]) if key in values else None


def _spread(axis: Axis, key: str, values: dict[str, Any], record: TrialRecord) -> float | None:
    return axis.spread_position(values[key], record.number) if key in values else None


def _label(ax: Axes, which: str, axis: Axis) -> None:
    """Label an axis of a chart. Long choices are turned."""
    long = axis.slot and sum(len(text) for _, text in axis.ticks) > 20
    turned = {"rotation": 30, "ha": "right"} if long and which == "x" else {}
    getattr(ax, f"set_{which}ticks")([at for at, _ in axis.ticks], [literal(text) for _, text in axis.ticks], **turned)
    getattr(ax, f"set_{which}lim")(-0.5 * axis.slot - 0.03, 1 + 0.5 * axis.slot + 0.03)
    getattr(ax, f"set_{which}label")(axis.label)
    for border in axis.borders:
        (ax.axvline if which == "x" else ax.axhline)(border, color=FAINT, linewidth=0.6, linestyle=":")


def _when(report: Report) -> str:
    """Say when the values were reached, if that is not at the end of each trial."""
    epochs = report.compared.epochs
    return "" if epochs is None else f" after {epochs} {report.plan.unit}{'s' * (epochs != 1)}"


def _of_winner(report: Report, keys: Iterable[str]) -> str:
    if report.finding.best is None:
        return ""
    values = searched_values(report.finding.best, report.plan)
    return "; the winner has " + ", ".join(f"{k} {short_text(values[k], 4)}" for k in keys if k in values)


def _on(axes: dict[str, Axis]) -> str:
    """Explain the axes of lists; empty if there are none."""
    lists = [key for key, axis in axes.items() if axis.borders]
    if not lists:
        return ""
    return (
        f" {', '.join(lists)}: a band for each number of entries; in a band, trials lie at their mean entry, from the "
        "low end of its range to the high end."
    )
