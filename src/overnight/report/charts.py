"""The charts of the report: the learning curves, the search over time, the importance of parameters, the space."""

from __future__ import annotations

import math
import statistics

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from overnight.config.paths import trial_name
from overnight.config.trainer import unit_of
from overnight.plots.figures import literal
from overnight.report import parameter_charts
from overnight.report.figures import (
    FAINT,
    INK,
    MAIN,
    SECOND,
    Chart,
    draw_svg,
    legend,
    maximizes,
    scatter,
    shown_range,
    valued,
)
from overnight.report.report import Report
from overnight.report.rung_chart import draw_rungs
from overnight.search.formatting import format_value
from overnight.search.history import mean_curve

_SERIES = (MAIN, SECOND, "#d55e00", "#cc79a7")  # Okabe and Ito (2008): distinguishable with colour blindness
_MAX_BARS = 10


def charts(report: Report) -> list[Chart]:
    """Draw every chart for which the study has enough data."""
    search = draw_rungs(report) if report.plan.pauses else _history(report)
    drawn = [_curves(report), search, _importance(report), *parameter_charts.charts(report)]
    return [p for p in drawn if p is not None]


def _history(report: Report) -> Chart | None:
    done = valued(report.records)
    if len(done) < 2:
        return None
    metric = report.plan.settings.study.metric
    better = max if maximizes(report) else min
    complete = [r for r in done if r.state == "complete"]
    best = [better(r.objective or 0.0 for r in complete[: i + 1]) for i in range(len(complete))]
    shown = shown_range(report)

    def draw(figure: Figure) -> None:
        ax = figure.subplots()
        scatter(ax, [(r.number, r) for r in done], shown, report.finding.best)
        (steps,) = ax.step(
            [r.number for r in complete], best, where="post", color=SECOND, label="best so far", zorder=0
        )
        ax.set(xlabel="trial", ylabel=literal(metric))
        shown.apply(ax)
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        legend(figure, done, shown, steps)

    words = (
        f"{metric} of {len(complete)} complete and {len(done) - len(complete)} pruned trials, in the order of their "
        "numbers"
    )
    if best:
        last = next(r.number for r, b in zip(complete, best, strict=True) if b == best[-1])
        words += f"; the best value, {format_value(best[-1], metric)}, is from trial {last}"
    return Chart("The search", f"{words}.{shown.words()}", draw_svg("history", draw))


def _curves(report: Report) -> Chart | None:
    metric, unit = report.plan.settings.study.metric, unit_of(vars(report.plan.settings.trainer))
    found = report.finding
    shown = [(trial_name(f.trial.number), f.runs) for f in found.finalists if f.runs]
    if (
        found.baseline is not None
        and found.baseline.runs
        and not any(f.trial.number == found.baseline.trial.number for f in found.finalists)
    ):
        shown.append(("baseline", found.baseline.runs))
    if not shown and found.best is not None:
        shown = [(trial_name(found.best.number), (found.best,))]
    curves = {name: [mean_curve(r.history, metric) for r in runs if r.history] for name, runs in shown[:4]}
    curves = {name: cs for name, cs in curves.items() if cs and max(map(len, cs)) > 1}
    if not curves:
        return None

    def draw(figure: Figure) -> None:
        ax = figure.subplots()
        for (name, runs), colour in zip(curves.items(), _SERIES, strict=False):
            for run in runs:
                ax.plot(range(len(run)), run, color=colour, linewidth=0.6, alpha=0.4)
            length = min(map(len, runs))
            mean = [statistics.fmean(run[i] for run in runs) for i in range(length)]
            ax.plot(range(length), mean, color=colour, linewidth=2, label=name)
        ax.set(xlabel=f"{unit}, the first is 0", ylabel=literal(metric))
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        values = sorted(v for runs in curves.values() for run in runs for v in run if math.isfinite(v))
        # The values of the first epochs would hide the differences between the last ones.
        low, high = np.quantile(values, [0.1, 1.0]) if values else (0, 1)
        if not maximizes(report):
            low, high = np.quantile(values, [0.0, 0.9])
        if high > low:
            ax.set_ylim(low - 0.05 * (high - low), high + 0.05 * (high - low))
        ax.legend(loc="best")

    means = {name: statistics.fmean(curve[-1] for curve in of_one) for name, of_one in curves.items()}
    ends = ", ".join(f"{name} {format_value(mean, metric)}" for name, mean in means.items())
    words = f"{metric} by {unit}. A thin line is one seed, a thick line is the mean. Values at the end: {ends}."
    title = "Learning curves on new seeds" if found.confirmed else "Learning curve"
    return Chart(title, words, draw_svg("curves", draw))


def _importance(report: Report) -> Chart | None:
    """Draw the importance of all parameters, if that of any exceeds chance."""
    found = report.importances
    if not found.certain:
        return None
    shown = found.keys[:_MAX_BARS][::-1]

    def draw(figure: Figure) -> None:
        ax = figure.subplots()
        for y, i in enumerate(shown):
            ax.barh(y, i.share, color=MAIN if i.exceeds_chance else FAINT, height=0.6)
            ax.plot([min(i.chance, 1)] * 2, [y - 0.4, y + 0.4], color=INK, linewidth=1.5)
        ax.set_yticks(range(len(shown)), [literal(i.key) for i in shown])
        ax.set_xlim(0, 1)
        ax.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        ax.set_xlabel("share of the importance")

    shares = ", ".join(f"{i.key} {i.share:.0%} (chance {min(i.chance, 1):.0%})" for i in found.keys[:_MAX_BARS])
    words = (
        f"{found.sentence()} A bar is the share of the importance for being among the best {found.best} trials "
        f"(PED-ANOVA). A line is what chance reaches; a grey bar does not exceed it. {shares}."
    )
    return Chart("Parameter importance", words, draw_svg("importance", draw, 0.9 + 0.36 * len(shown)))
