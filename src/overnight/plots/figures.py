"""Draw arrays as figures, each with a description for readers who can't see it.

Colours: blue and orange of Okabe and Ito (2008), and schemes of ColorBrewer that are safe for colour blindness.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from matplotlib import colormaps
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import Colormap, LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter
from numpy.typing import NDArray

Array = NDArray[Any]

MAX_TILES = 100
MAX_PANELS = 4
MAX_NAMED_CLASSES = 20
BLUE, ORANGE, GREY = "#0072B2", "#D55E00", "#767676"
_BLACK_ZERO = LinearSegmentedColormap.from_list(
    "black_zero", ["#bfe0ff", "#2b8cde", "#0b3a63", "#000000", "#6b3000", "#e0751a", "#ffe0b8"]
)
# Share of the weights within the colour scale; larger ones get the colour of its end.
_SCALE_QUANTILE = 0.995
_DPI = 100


@dataclass(frozen=True)
class Plot:
    """A figure.

    Attributes:
        name: of its file, without .png.
        figure: the figure itself.
        description: what it shows, as text.
    """

    name: str
    figure: Figure
    description: str


def literal(text: str) -> str:
    """Return a label that matplotlib draws as it is: not as a formula between dollars, and not left out of a legend."""
    return text.replace("$", r"\$") if not text.startswith("_") else literal(f" {text}")


def weights(tiles: Array, layer: str, of: str, look: str = "white_zero", noun: str = "neurons") -> Plot:
    """Draw one tile for each neuron, blue below zero and red or orange above, on one symmetric scale.

    Args:
        tiles: (N, H, W), or (N, 3, H, W) for weights of red, green and blue; the N neurons or kernels of a layer.
        layer: name of the layer.
        of: name of the trial, for the title.
        look: white_zero or black_zero, the colour of zero.
        noun: what a tile shows, in the plural.
    """
    count = len(tiles)
    shown = _strongest(tiles) if count > MAX_TILES else np.arange(count)
    limit = float(np.quantile(np.abs(tiles), _SCALE_QUANTILE)) or 1.0
    coloured = tiles.ndim == 4
    height, width = tiles.shape[-2:]
    sheet = _mosaic(tiles[shown].transpose(0, 2, 3, 1) if coloured else tiles[shown])
    # A weight is a square of whole pixels, such that the sheet has about 900 by 800 pixels.
    zoom = max(1, min(64, round(min(900 / sheet.shape[1], 800 / sheet.shape[0]))))
    title = f"First weights of {of}\n{layer}: {count} {noun} of {height}x{width}"
    if len(shown) < count:
        title += f", the {len(shown)} with the largest weights"
    figure, axes = _sheet(sheet.shape[1] * zoom, sheet.shape[0] * zoom, title)
    if coloured:
        axes.imshow(np.nan_to_num(0.5 + sheet / (2 * limit), nan=1.0).clip(0, 1), interpolation="nearest")
        axes.set_xlabel("weights on red, green and blue; zero is mid-grey", fontsize=11)
    else:
        image = axes.imshow(sheet, cmap=_diverging(look), vmin=-limit, vmax=limit, interpolation="nearest")
        bar = figure.colorbar(image, cax=figure.add_axes(_beside(axes, figure)), extend="both")
        bar.set_label(f"weight (zero is {look.removesuffix('_zero')})", fontsize=11)
    description = (
        f"{len(shown)} of the {count} {noun} of {layer}, one tile each, by number from the top left, row by row: "
        f"a pixel's colour is the weight of that input pixel, from {-limit:.2g} over 0 to {limit:.2g}."
    )
    return Plot("weights", figure, description)


def matrix(values: Array, layer: str, of: str, look: str = "white_zero") -> Plot:
    """Draw the weights of a layer with few inputs that are no image, a row for each neuron, a column for each input.

    Args:
        values: (neurons, inputs). Up to MAX_NAMED_CLASSES by MAX_NAMED_CLASSES cells show their numbers.
        layer: name of the layer.
        of: name of the trial, for the title.
        look: white_zero or black_zero, the colour of zero.
    """
    rows, columns = values.shape
    limit = float(np.abs(values).max()) or 1.0
    figure = _figure(max(5.0, 1.8 + 0.62 * columns), max(3.0, 1.4 + 0.34 * rows))
    axes = figure.add_subplot()
    image = axes.imshow(values, cmap=_diverging(look), vmin=-limit, vmax=limit, aspect="auto")
    figure.colorbar(image, ax=axes).set_label(f"weight (zero is {look.removesuffix('_zero')})")
    axes.set(xlabel="input", ylabel="neuron", xticks=range(columns))
    axes.set_title(f"First weights of {of}: {layer}", fontsize=12, wrap=True)
    if rows <= MAX_NAMED_CLASSES and columns <= MAX_NAMED_CLASSES:
        _numbers(axes, values, np.abs(values) / limit > 0.6, "{:.2f}", dark_ground=look == "black_zero")
        axes.set_yticks(range(rows))
    description = f"The weights of {layer}: a row for each of {rows} neurons, a column for each of {columns} inputs."
    return Plot("weights", figure, description)


def curves(
    history: Mapping[str, Sequence[tuple[int, float]]],
    metric: str,
    of: str,
    unit: Literal["epoch", "validation"] = "epoch",
) -> Plot:
    """Draw learning curves, a panel for each kind of metric with training and validation.

    Args:
        history: metric name -> (epoch, value) in order; (step, value) where the unit is a validation.
        metric: the study's metric, whose panel comes first.
        of: name of the trial, for the title.
        unit: epoch or validation.
    """
    panels = _panels(history, metric)
    columns = min(len(panels), 2)
    rows = math.ceil(len(panels) / columns)
    figure = _figure(5.2 * columns, 3.8 * rows + 0.4)
    for index, (kind, lines) in enumerate(panels.items(), 1):
        axes = figure.add_subplot(rows, columns, index)
        for label, points in lines.items():
            training = label.startswith("train")
            epochs, values = zip(*points, strict=True)
            colour, line, marker = (BLUE, "--", "s") if training else (ORANGE, "-", "o")
            size = 4 if len(points) < 40 else 0
            axes.plot(
                epochs, values, color=colour, linestyle=line, marker=marker, markersize=size, label=literal(label)
            )
        axes.set(xlabel="step" if unit == "validation" else "epoch, the first is 0", ylabel=literal(kind))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
        axes.legend(frameon=False)
    figure.suptitle(f"Learning curves of {of}", fontsize=12)
    last = ", ".join(f"{name} {points[-1][1]:.4g}" for name, points in sorted(history.items()))
    return Plot("curves", figure, f"Each metric over the {unit}s. At the last one: {last}.")


def confusion(counts: Array, names: Sequence[str], of: str) -> Plot:
    """Draw a confusion matrix, counts (true, predicted). Colours show mistakes as a share of the true class."""
    classes, rows = len(counts), counts.sum()
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    right = np.eye(classes, dtype=bool)
    # On one scale with the correct predictions, everything off the diagonal would look white.
    most = float(shares[~right].max(initial=0.0)) or 1.0
    size = max(4.6, min(10.0, 2.2 + 0.52 * classes))
    figure = _figure(size + 0.9, size)
    axes = figure.add_subplot()
    blues = colormaps["Blues"].with_extremes(bad="#e4e4e4")
    image = axes.imshow(np.where(right, np.nan, shares), cmap=blues, vmin=0, vmax=most)
    bar = figure.colorbar(image, ax=axes, shrink=0.8, format=PercentFormatter(1, decimals=None))
    bar.set_label("mistakes, as a share of the true class")
    hits = int(np.trace(counts))
    axes.set(xlabel="predicted", ylabel="true")
    axes.set_title(f"Confusion matrix of {of}\n{hits} of {rows} validation rows right ({hits / max(rows, 1):.2%})")
    if classes <= MAX_NAMED_CLASSES:
        axes.set_xticks(range(classes), names, rotation=90 if max(map(len, names)) > 4 else 0)
        axes.set_yticks(range(classes), names)
        _numbers(axes, counts, (shares > 0.55 * most) & ~right, "{:d}", skip_zero=True)
    wrong = counts.copy()
    np.fill_diagonal(wrong, 0)
    t, p = (int(i) for i in np.unravel_index(wrong.argmax(), wrong.shape))
    description = f"{hits} of {rows} validation rows are right."
    if wrong.any():
        description += f" Most often taken for another: {names[t]} for {names[p]}, {wrong[t, p]} times."
    return Plot("confusion", figure, description)


def mistakes(images: Array, labels: Sequence[tuple[str, str, float]], of: str) -> Plot:
    """Draw the wrong predictions with the highest probability as images, the worst first.

    Args:
        images: (N, C, H, W), with C of 1 or 3.
        labels: (true, predicted, probability from 0 to 1) for each image.
        of: name of the trial, for the title.
    """
    columns = min(len(images), 6)
    rows = math.ceil(len(images) / columns)
    figure = _figure(1.75 * columns + 0.2, 2.15 * rows + 0.7)
    for index, (pixels, (true, predicted, sure)) in enumerate(zip(images, labels, strict=True), 1):
        axes = figure.add_subplot(rows, columns, index)
        low, high = float(pixels.min()), float(pixels.max())
        scaled = (pixels - low) / (high - low or 1.0)
        axes.imshow(scaled[0] if len(scaled) == 1 else scaled.transpose(1, 2, 0), cmap="gray", vmin=0, vmax=1)
        axes.set_title(f"true {true}\npredicted {predicted}, {sure:.1%}", fontsize=10)
        axes.set_axis_off()
    figure.suptitle(f"The most confident mistakes of {of}", fontsize=12)
    listed = "; ".join(f"a {true} taken for a {guess} with {sure:.1%}" for true, guess, sure in labels)
    return Plot("mistakes", figure, f"Validation rows that were predicted wrong, the most confident first: {listed}.")


def regression(true: Array, predicted: Array, of: str) -> Plot:
    """Draw predicted over true values, with the line on which both are equal."""
    figure = _figure(5.6, 5.6)
    axes = figure.add_subplot()
    low, high = min(true.min(), predicted.min()), max(true.max(), predicted.max())
    axes.plot([low, high], [low, high], color=GREY, linestyle="--", label="predicted = true")
    axes.scatter(true, predicted, s=16, alpha=0.6, color=BLUE, edgecolors="none", label=f"{len(true)} validation rows")
    error = float(np.abs(true - predicted).mean())
    spread = float(((true - true.mean()) ** 2).sum())
    r2 = 1 - float(((true - predicted) ** 2).sum()) / spread if spread else math.nan
    axes.set(xlabel="true", ylabel="predicted", aspect="equal")
    axes.set_title(f"Predictions of {of}\nmean absolute error {error:.4g}, R2 {r2:.3f}")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    description = f"{len(true)} validation rows: mean absolute error {error:.4g}, R2 {r2:.3f}."
    return Plot("predictions", figure, description)


# Parts ----------------------------------------------------------------------------------------------------------------


def _figure(width: float, height: float) -> Figure:
    """Make a figure of a size in inches, with _DPI pixels each."""
    figure = Figure(figsize=(width, height), dpi=_DPI, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _sheet(width: int, height: int, title: str) -> tuple[Figure, Any]:
    """Make a figure whose axes cover exactly width x height pixels, so that no pixel is interpolated."""
    left, right, top, bottom = 16, 110, 64, 34
    whole = (width + left + right, height + top + bottom)
    figure = Figure(figsize=(whole[0] / _DPI, whole[1] / _DPI), dpi=_DPI)
    FigureCanvasAgg(figure)
    axes = figure.add_axes((left / whole[0], bottom / whole[1], width / whole[0], height / whole[1]))
    axes.set(xticks=[], yticks=[])
    for spine in axes.spines.values():
        spine.set_visible(False)
    longest = max(map(len, title.splitlines()))
    size = max(7.0, min(12.0, 1.2 * whole[0] / longest))
    figure.text(0.5, 1 - 0.5 * top / whole[1], title, ha="center", va="center", fontsize=size)
    return figure, axes


def _beside(axes: Any, figure: Figure) -> tuple[float, float, float, float]:
    box, width = axes.get_position(), figure.get_figwidth() * _DPI
    return (box.x1 + 14 / width, box.y0, 16 / width, box.height)


def _mosaic(tiles: Array) -> Array:
    """Arrange tiles (N, H, W, ...) in one sheet, about 1.6 times as wide as high, with gaps of nan between them."""
    count, height, width = tiles.shape[:3]
    columns = min(count, max(1, math.ceil(math.sqrt(1.6 * count * height / width))))
    # A last row that is nearly empty looks like a mistake: choose a number of columns that fills it better.
    columns = min(range(max(1, columns - 3), min(count, columns + 3) + 1), key=lambda c: (-count % c, abs(c - columns)))
    rows = math.ceil(count / columns)
    gap = max(1, round(min(height, width) / 16))
    shape = (rows * (height + gap) - gap, columns * (width + gap) - gap, *tiles.shape[3:])
    sheet = np.full(shape, np.nan)
    for index, tile in enumerate(tiles):
        y, x = (height + gap) * (index // columns), (width + gap) * (index % columns)
        sheet[y : y + height, x : x + width] = tile
    return sheet


def _strongest(tiles: Array) -> Array:
    norms = np.linalg.norm(tiles.reshape(len(tiles), -1), axis=1)
    return np.sort(np.argsort(-norms, kind="stable")[:MAX_TILES])


def _diverging(look: str) -> Colormap:
    chosen = _BLACK_ZERO if look == "black_zero" else colormaps["RdBu_r"]
    return chosen.with_extremes(bad="#555555" if look == "black_zero" else "#d9d9d9")


def _numbers(
    axes: Any, values: Array, strong: Array, form: str, *, skip_zero: bool = False, dark_ground: bool = False
) -> None:
    """Write values into their cells, in white on strong colours, or in black if the colour of zero is dark."""
    for (row, column), value in np.ndenumerate(values):
        if value or not skip_zero:
            colour = "white" if strong[row, column] != dark_ground else "black"
            axes.text(column, row, form.format(value), ha="center", va="center", color=colour, fontsize=9)


def _panels(
    history: Mapping[str, Sequence[tuple[int, float]]], metric: str
) -> dict[str, dict[str, Sequence[tuple[int, float]]]]:
    """Group metric names by what they measure: val/loss and train_loss belong to loss. The study's comes first."""
    kinds: dict[str, dict[str, Sequence[tuple[int, float]]]] = {}
    for name, points in history.items():
        # Lightning gives a metric that is logged on steps and epochs three names.
        if not points or name.endswith("_step") or f"{name}_epoch" in history:
            continue
        kinds.setdefault(_kind(name), {})[name.removesuffix("_epoch")] = points
    first = [_kind(metric), "loss"]
    order = sorted(kinds, key=lambda k: (first.index(k) if k in first else len(first), k))
    return {kind: dict(sorted(kinds[kind].items())) for kind in order[:MAX_PANELS]}


def _kind(name: str) -> str:
    found = re.match(r"(?:train|training|val|valid|validation)[/_.-](.+)", name)
    return (found[1] if found else name).removesuffix("_epoch")
