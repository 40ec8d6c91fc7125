"""The charts of the report: SVG with a caption, for a page with a light and a dark theme.

Charts are drawn in placeholder colours. They are replaced by CSS variables, so that one drawing fits both themes.
"""

from __future__ import annotations

import io
import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from overnight.config.paths import trial_name
from overnight.config.values import short_text
from overnight.plots.figures import literal
from overnight.report import advice
from overnight.report.importance import comparable_trials
from overnight.report.report import Report
from overnight.report.statistics import Array
from overnight.search.record import TrialRecord, format_value

# Placeholder colour -> CSS variable.
_INK, _FAINT, _MAIN, _SECOND = "#010101", "#020202", "#030303", "#040404"
_COLOURS = {_INK: "var(--ink)", _FAINT: "var(--faint)", _MAIN: "var(--main)", _SECOND: "var(--second)"}
_SERIES = ("#030303", "#040404", "#d55e00", "#cc79a7")  # Okabe and Ito (2008): distinguishable with colour blindness
_STYLE: Any = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 10.5,
    "text.color": _INK,
    "axes.labelcolor": _INK,
    "axes.edgecolor": _FAINT,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "axes.unicode_minus": False,
}


@dataclass(frozen=True)
class Chart:
    """A chart. caption: describes what the chart shows, for readers who cannot see it."""

    title: str
    caption: str
    svg: str


def charts(report: Report) -> list[Chart]:
    """Draw every chart for which the study has enough data."""
    drawn = [
        _curves(report),
        _history(report),
        _importance(report),
        _slices(report),
        _contour(report),
        _parallel(report),
    ]
    return [p for p in drawn if p is not None]


def _draw(name: str, draw: Callable[[Axes], None], height: float = 3.2) -> str:
    """Draw an SVG that is reproducible: without a date, and with text instead of glyph outlines."""
    with matplotlib.rc_context({**_STYLE, "svg.hashsalt": name}):
        figure = Figure(figsize=(5.6, height), layout="constrained")
        draw(figure.subplots())
        return _svg(figure)


def _svg(figure: Figure) -> str:
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    for placeholder, variable in _COLOURS.items():
        text = text.replace(placeholder, variable)
    return text


def _history(report: Report) -> Chart | None:
    done = [r for r in report.records if r.state in ("complete", "pruned") and r.objective is not None]
    if len(done) < 2:
        return None
    metric = report.plan.settings.study.metric
    better = max if report.plan.settings.study.direction == "maximize" else min
    complete = [r for r in done if r.state == "complete"]
    pruned = [r for r in done if r.state == "pruned"]
    best = [better(r.objective or 0.0 for r in complete[: i + 1]) for i in range(len(complete))]

    def draw(ax: Axes) -> None:
        ax.scatter([r.number for r in pruned], _objectives(pruned), marker="x", s=22, color=_FAINT, label="pruned")
        ax.scatter([r.number for r in complete], _objectives(complete), s=22, color=_MAIN, label="complete")
        ax.step([r.number for r in complete], best, where="post", color=_SECOND, label="best so far")
        ax.set(xlabel="trial", ylabel=literal(metric))
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        ax.legend(loc="best")

    words = f"{metric} of {len(complete)} complete and {len(pruned)} pruned trials, in the order of their numbers"
    if best:
        last = next(r.number for r, b in zip(complete, best, strict=True) if b == best[-1])
        words += f"; the best value, {format_value(best[-1], metric)}, is from trial {last}"
    return Chart("The search", words + ".", _draw("history", draw))


def _curves(report: Report) -> Chart | None:
    metric = report.plan.settings.study.metric
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
    curves = {name: [_curve(r, metric) for r in runs if r.history] for name, runs in shown[:4]}
    curves = {name: cs for name, cs in curves.items() if cs and max(map(len, cs)) > 1}
    if not curves:
        return None

    def draw(ax: Axes) -> None:
        for (name, runs), colour in zip(curves.items(), _SERIES, strict=False):
            for run in runs:
                ax.plot(range(len(run)), run, color=colour, linewidth=0.6, alpha=0.4)
            length = min(map(len, runs))
            mean = [statistics.fmean(run[i] for run in runs) for i in range(length)]
            ax.plot(range(length), mean, color=colour, linewidth=2, label=name)
        ax.set(xlabel="epoch, the first is 0", ylabel=literal(metric))
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        values = sorted(v for runs in curves.values() for run in runs for v in run if math.isfinite(v))
        # The values of the first epochs would hide the differences between the last ones.
        low, high = np.quantile(values, [0.1, 1.0]) if values else (0, 1)
        if report.plan.settings.study.direction == "minimize":
            low, high = np.quantile(values, [0.0, 0.9])
        if high > low:
            ax.set_ylim(low - 0.05 * (high - low), high + 0.05 * (high - low))
        ax.legend(loc="best")

    means = {name: statistics.fmean(curve[-1] for curve in of_one) for name, of_one in curves.items()}
    ends = ", ".join(f"{name} {format_value(mean, metric)}" for name, mean in means.items())
    words = f"{metric} by epoch. A thin line is one seed, a thick line is the mean. Values at the end: {ends}."
    return Chart("Learning curves on new seeds" if found.confirmed else "Learning curve", words, _draw("curves", draw))


def _curve(record: TrialRecord, metric: str) -> list[float]:
    return [e.metrics.get(metric, math.nan) for e in record.history]


def _importance(report: Report) -> Chart | None:
    found = report.importances[:10][::-1]
    if not found:
        return None

    def draw(ax: Axes) -> None:
        at = range(len(found))
        ax.barh(at, [i.share for i in found], color=_MAIN, height=0.6)
        for y, i in zip(at, found, strict=True):
            ax.plot([i.low, i.high], [y, y], color=_INK, linewidth=1.5)
        ax.set_yticks(list(at), [i.name for i in found])
        ax.set_xlim(0, 1)
        ax.set_xlabel("share of the variance explained by this parameter alone")

    shares = ", ".join(f"{i.name} {i.share:.0%} ({i.low:.0%} to {i.high:.0%})" for i in reversed(found))
    words = (
        "Share of the objective's variance that each parameter explains alone (fANOVA). The line spans 80% of the "
        f"bootstrap resamples. {shares}."
    )
    return Chart("Parameter importance", words, _draw("importance", draw, 0.9 + 0.36 * len(found)))


def _slices(report: Report) -> Chart | None:
    names = [i.name for i in report.importances[:2]]
    if not names:
        return None
    dists, metric = report.plan.space.names(), report.plan.settings.study.metric
    with matplotlib.rc_context({**_STYLE, "svg.hashsalt": "slices"}):
        figure = Figure(figsize=(5.6, 3.0), layout="constrained")
        for ax, name in zip(figure.subplots(1, len(names), sharey=True, squeeze=False)[0], names, strict=True):
            stored = {r.number: report.plan.space.encode(r.params).get(name) for r in _valued(report)}
            shown = [r for r in _valued(report) if stored[r.number] is not None]
            for state, marker, colour in (("pruned", "x", _FAINT), ("complete", "o", _MAIN)):
                rows = [r for r in shown if r.state == state]
                ax.scatter(
                    [_at(dists[name], stored[r.number]) for r in rows], _objectives(rows),
                    marker=marker, s=22, color=colour, label=state,
                )  # fmt: skip
            _scale(ax, "x", dists[name])
            ax.set_xlabel(name)
        figure.axes[0].set_ylabel(literal(metric))
        figure.axes[0].legend(loc="best")
        svg = _svg(figure)
    best = report.finding.best
    where = (
        f"; the winner has {', '.join(f'{n} {_text(best.params[n])}' for n in names if n in best.params)}"
        if best
        else ""
    )
    return Chart("Slices", f"{metric} against {' and '.join(names)}; each point is a trial{where}.", svg)


def _contour(report: Report) -> Chart | None:
    names = [i.name for i in report.importances[:2]]
    trials = comparable_trials(report.plan, report.records)
    if len(names) < 2 or len(trials) < 2 * len(names):
        return None
    from sklearn.ensemble import ExtraTreesRegressor

    metric, dists = report.plan.settings.study.metric, report.plan.space.names()
    points = np.array([[_unit(dists[n], t.params[n]) for n in names] for t in trials])
    forest = ExtraTreesRegressor(200, min_samples_leaf=2, random_state=0).fit(points, [t.value for t in trials])
    x, y = (_grid(dists[n]) for n in names)
    grid = np.stack(np.meshgrid(x, y), axis=-1)  # (rows of y, columns of x, 2)
    surface = forest.predict(grid.reshape(-1, 2)).reshape(grid.shape[:2])
    smooth = not any(isinstance(dists[n], CategoricalDistribution) for n in names)

    def draw(ax: Axes) -> None:
        if smooth:
            filled: Any = ax.contourf(x, y, surface, levels=8, cmap="viridis")
        else:  # there is nothing between two choices
            filled = ax.pcolormesh(x, y, surface, shading="nearest", cmap="viridis", rasterized=True)
        ax.scatter(points[:, 0], points[:, 1], s=14, color="#ffffff", edgecolor="#000000", linewidth=0.6)
        for axis, name in (("x", names[0]), ("y", names[1])):
            _unit_scale(ax, axis, dists[name], x if axis == "x" else y)
        ax.set(xlabel=names[0], ylabel=names[1])
        ax.figure.colorbar(filled, label=literal(metric))

    high = np.unravel_index(surface.argmax() if _maximizes(report) else surface.argmin(), surface.shape)
    best = [_text(_from_unit(dists[n], float(at))) for n, at in zip(names, (x[high[1]], y[high[0]]), strict=True)]
    words = (
        f"{metric} over {names[0]} and {names[1]}, as predicted by a random forest from these two parameters; best "
        f"near {names[0]} {best[0]} and {names[1]} {best[1]}. Each point is a trial."
    )
    return Chart("The two most important parameters", words, _draw("contour", draw, 3.8))


def _parallel(report: Report) -> Chart | None:
    dists = report.plan.space.names()
    shown = [r for r in _valued(report) if r.params]
    stored = {r.number: report.plan.space.encode(r.params) for r in shown}
    names = [n for n in dists if sum(n in point for point in stored.values()) > len(shown) / 2]
    values = [r.objective or 0.0 for r in shown]
    if len(names) < 2 or len(shown) < 3 or min(values) == max(values):
        return None
    order = sorted(shown, key=lambda r: r.objective or 0.0, reverse=not _maximizes(report))
    low, high = np.quantile(values, [0.1, 1.0]) if _maximizes(report) else np.quantile(values, [0.0, 0.9])
    colours = matplotlib.colormaps["viridis" if _maximizes(report) else "viridis_r"]

    def draw(ax: Axes) -> None:
        lines, shades = [], []
        for r in order:
            at = [_unit(dists[n], stored[r.number][n]) if n in stored[r.number] else math.nan for n in names]
            share = float(np.clip(((r.objective or 0.0) - low) / max(high - low, 1e-12), 0, 1))
            lines.append(list(enumerate(at)))
            shades.append(matplotlib.colors.to_hex(colours(share)))
        # One collection: a thousand single lines would take many seconds.
        ax.add_collection(LineCollection(lines, colors=shades, linewidths=1.2, alpha=0.8))
        ax.set_ylim(-0.05, 1.05)
        for i, name in enumerate(names):
            ax.axvline(i, color=_FAINT, linewidth=0.8)
            for position, text in _axis_labels(dists[name]):
                ax.text(i + 0.03, position, text, fontsize=8, va="center")
        ax.set_xticks(range(len(names)), [_in_lines(n) for n in names], fontsize=8)
        ax.set_yticks([])
        ax.set_xlim(-0.1, len(names) - 0.5)
        ax.spines[["left", "bottom"]].set_visible(False)

    words = (
        f"Each line is a trial through {', '.join(names)}; the scale is logarithmic where the space is. "
        "A lighter line is a better trial."
    )
    return Chart("All parameters at once", words, _draw("parallel", draw, 3.6))


# Scales ---------------------------------------------------------------------------------------------------------------


def _valued(report: Report) -> list[TrialRecord]:
    return [r for r in report.records if r.state in ("complete", "pruned") and r.objective is not None]


def _objectives(records: Sequence[TrialRecord]) -> list[float]:
    return [r.objective for r in records if r.objective is not None]


def _maximizes(report: Report) -> bool:
    return report.plan.settings.study.direction == "maximize"


def _at(dist: BaseDistribution, value: Any) -> float:
    return float(dist.choices.index(value)) if isinstance(dist, CategoricalDistribution) else float(value)


def _unit(dist: BaseDistribution, value: Any) -> float:
    """Map a value to its position in its distribution, 0 to 1, on the scale of sampling (linear or logarithmic)."""
    if isinstance(dist, CategoricalDistribution):
        return dist.choices.index(value) / max(len(dist.choices) - 1, 1)
    assert isinstance(dist, FloatDistribution | IntDistribution)
    return advice.position(dist, value)


def _from_unit(dist: BaseDistribution, at: float) -> Any:
    if isinstance(dist, CategoricalDistribution):
        return dist.choices[round(at * (len(dist.choices) - 1))]
    assert isinstance(dist, FloatDistribution | IntDistribution)
    value = advice.value_at(dist, at)
    return round(value) if isinstance(dist, IntDistribution) else value


def _axis_labels(dist: BaseDistribution) -> list[tuple[float, str]]:
    """Return the labels of a unit axis: every choice, or both ends."""
    if isinstance(dist, CategoricalDistribution):
        return [(_unit(dist, c), str(c)) for c in dist.choices]
    assert isinstance(dist, FloatDistribution | IntDistribution)
    return [(0.0, _text(dist.low)), (1.0, _text(dist.high))]


def _scale(ax: Axes, axis: str, dist: BaseDistribution) -> None:
    if isinstance(dist, CategoricalDistribution):
        getattr(ax, f"set_{axis}ticks")(range(len(dist.choices)), list(map(str, dist.choices)), rotation=30, ha="right")
        getattr(ax, f"set_{axis}lim")(-0.5, len(dist.choices) - 0.5)
    elif isinstance(dist, FloatDistribution | IntDistribution) and dist.log:
        getattr(ax, f"set_{axis}scale")("log")


def _grid(dist: BaseDistribution) -> Array:
    """Return points on a unit axis: one for each choice, or enough for a smooth chart."""
    return np.linspace(0, 1, len(dist.choices) if isinstance(dist, CategoricalDistribution) else 40)


def _unit_scale(ax: Axes, axis: str, dist: BaseDistribution, grid: Array) -> None:
    inner = [0.0, 0.25, 0.5, 0.75, 1.0]
    marks = (
        _axis_labels(dist)
        if isinstance(dist, CategoricalDistribution)
        else [(u, _text(_from_unit(dist, u))) for u in inner]
    )
    getattr(ax, f"set_{axis}ticks")([at for at, _ in marks], [text for _, text in marks])
    spare = 0.5 / max(len(grid) - 1, 1) if isinstance(dist, CategoricalDistribution) else 0.0
    getattr(ax, f"set_{axis}lim")(-spare - 0.02, 1 + spare + 0.02)


def _text(value: Any) -> str:
    return short_text(value)


def _in_lines(name: str) -> str:
    """Break a parameter's name into lines, so that it does not overlap with the next one."""
    return name.replace(".", ".\n")
