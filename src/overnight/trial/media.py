"""Images, figures, tables and histograms of a trial's code as the bytes of files."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch


def image_png(image: Any, layout: str | None = None) -> bytes:
    """Return a PNG file.

    Args:
        image: of PIL, or a tensor or array. Floats are from 0 to 1, integers from 0 to 255.
        layout: the order of the axes, such as CHW, HWC or HW; None to recognise it by the number of channels.
    """
    from PIL import Image

    if not isinstance(image, Image.Image):
        image = Image.fromarray(_pixels(image, layout))
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def grid_png(images: Any, layout: str = "NCHW") -> bytes:
    """Return several images as one PNG file. images: a tensor or array with an axis N."""
    from torchvision.utils import make_grid

    batch = torch.as_tensor(np.asarray(_array(images)))
    batch = batch.permute(*(layout.upper().index(axis) for axis in "NCHW"))  # (N, C, H, W)
    return image_png(make_grid(batch), "CHW")


def figure_png(figure: Any, close: bool = False) -> bytes:
    """Return a figure of Matplotlib as a PNG file. close: free the figure."""
    if not hasattr(figure, "savefig"):
        raise TypeError(f"a figure must be one of Matplotlib, got {type(figure).__module__}.{type(figure).__name__}")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", bbox_inches="tight")
    if close:
        import matplotlib.pyplot as plt

        plt.close(figure)
    return buffer.getvalue()


def table_json(columns: Sequence[Any] | None, data: Any) -> bytes:
    """Return a table as MLflow's log_table writes it.

    Args:
        columns: their names; None to take them from the data.
        data: rows, a mapping from column to values, or a DataFrame.
    """
    if hasattr(data, "to_dict") and hasattr(data, "columns"):
        data = {column: list(data[column]) for column in data.columns}
    if isinstance(data, Mapping):
        values = [list(v) if isinstance(v, list | tuple | np.ndarray | torch.Tensor) else [v] for v in data.values()]
        columns, data = list(data), list(zip(*values, strict=True))
    if columns is None:
        raise TypeError("a table must have columns: pass columns and data, a mapping from column to values, or a frame")
    rows = [list(row) for row in data]
    return json.dumps({"columns": list(columns), "data": rows}, default=plain).encode()


def histogram_json(values: Any, bins: Any) -> bytes:
    """Return the counts of values in bins as a table. bins: as numpy.histogram has them, or a name of TensorBoard."""
    numbers = np.asarray(_array(values), dtype=float).ravel()
    known = ("auto", "fd", "doane", "scott", "stone", "rice", "sturges", "sqrt")
    counts, edges = np.histogram(
        numbers[np.isfinite(numbers)], 30 if isinstance(bins, str) and bins not in known else bins
    )
    rows = zip(edges[:-1].tolist(), edges[1:].tolist(), counts.tolist(), strict=True)
    return table_json(["from", "to", "count"], list(rows))


def plain(value: Any) -> Any:
    """Convert a tensor, an array or another object to what JSON holds."""
    if isinstance(value, torch.Tensor | np.ndarray | np.generic):
        return value.tolist()
    return list(value) if isinstance(value, set | tuple) else str(value)


def _array(value: Any) -> Any:
    return value.detach().cpu().float().numpy() if isinstance(value, torch.Tensor) and value.is_floating_point() else (
        value.detach().cpu().numpy() if isinstance(value, torch.Tensor) else np.asarray(value)
    )  # fmt: skip


def _pixels(image: Any, layout: str | None) -> Any:
    """Return an array of bytes, (H, W), (H, W, 3) or (H, W, 4)."""
    array = _array(image)
    if layout is None:
        first_is_channels = array.ndim == 3 and array.shape[0] in (1, 3, 4) and array.shape[2] not in (1, 3, 4)
        layout = "HW" if array.ndim == 2 else "CHW" if first_is_channels or isinstance(image, torch.Tensor) else "HWC"
    layout = layout.upper()
    if sorted(layout) not in (sorted("CHW"), sorted("HW")) or array.ndim != len(layout):
        raise ValueError(f"an image must have the axes {layout}, in the layouts CHW, HWC or HW, got {array.shape}")
    array = array.transpose([layout.index(axis) for axis in "HWC" if axis in layout])
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    if array.dtype == bool or np.issubdtype(array.dtype, np.floating):
        array = np.nan_to_num(array.astype(float)) * 255
    return np.clip(array, 0, 255).astype(np.uint8)
