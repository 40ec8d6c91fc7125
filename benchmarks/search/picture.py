"""Draw the regret of the incumbent over the trained epochs, one panel for each table."""

from __future__ import annotations

import math
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from benchmarks.commands import ROOT
from benchmarks.search.compare import Comparison, budget
from benchmarks.search.sides import OURS, RANDOM
from benchmarks.search.tables import Table

PATH = ROOT / "benchmarks" / "search.png"
# Colours of Okabe and Ito (2008), which are safe for colour blindness: side -> (colour, line style)
_LINES = {
    OURS: ("#0072B2", "-"),
    "halving, random points": ("#56B4E9", "-"),
    "TPE + Hyperband": ("#D55E00", "-"),
    "TPE + SHA": ("#E69F00", "-"),
    "TPE + median": ("#CC79A7", "-"),
    "TPE": ("#009E73", "-"),
    "ASHA": ("#767676", "--"),
    RANDOM: ("#767676", ":"),
}


def draw(found: Comparison, slots: int) -> Path:
    """Draw the mean over the seeds, for one number of slots."""
    columns = min(len(found.tables), 2 if len(found.tables) == 4 else 3)
    rows = math.ceil(len(found.tables) / columns)
    figure = Figure(figsize=(4.8 * columns, 3.6 * rows + 0.8), layout="constrained", dpi=110)
    FigureCanvasAgg(figure)
    panels = figure.subplots(rows, columns, squeeze=False).flat
    for axes, table in zip(panels, found.tables, strict=False):
        _panel(axes, found, table, slots)
    for axes in list(panels)[len(found.tables) :]:
        axes.set_visible(False)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False)
    figure.suptitle(f"Regret of the incumbent, mean of {found.seeds} seeds, slots {slots}", fontsize=12)
    figure.savefig(PATH, metadata={"Software": None})
    return PATH


def _panel(axes: Axes, found: Comparison, table: Table, slots: int) -> None:
    spent = range(1, budget(table) + 1)
    for side, (colour, style) in _LINES.items():
        regret = [found.regret(table, slots, side, n) for n in spent]
        width, order = (2.6, 3) if side == OURS else (1.4, 2)
        axes.plot(spent, regret, color=colour, linestyle=style, linewidth=width, zorder=order, label=side)
    top = table.finals[0] - table.threshold(0.01)
    if top > 0:
        axes.axhline(top, color="#999999", linewidth=0.8, zorder=1)
        axes.annotate("top 1%", (4, top), ha="left", va="top", fontsize=8, color="#666666")
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.set(xlabel="epochs trained", ylabel=f"regret in {table.metric}", title=table.name)
    axes.set_xlim(0, budget(table))
    axes.grid(True, axis="y", color="#eeeeee", linewidth=0.8)
    axes.spines[["top", "right"]].set_visible(False)
