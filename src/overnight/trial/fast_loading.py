"""Two shortcuts in torch and Lightning for a user's own module: the same batches and the same logged values, sooner.

A DataLoader over a TensorDataset fetches row by row and stacks the rows. `fetch` takes whole batches by index. Every
`self.log` walks through all attributes of Lightning's metric to move them to a device that they are on. `move` returns
early. Both apply only where the types are exactly those that they know, and both only replace code that they know.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from types import CodeType
from typing import Any

import torch
from torch.utils.data import Subset, TensorDataset, default_collate, get_worker_info
from torch.utils.data._utils import collate
from torch.utils.data._utils import fetch as torch_fetch

# The names that the replaced functions use. In a version that uses others, nothing is replaced.
_FETCH_NAMES = {"auto_collation", "hasattr", "dataset", "__getitems__", "collate_fn"}
_MOVE_NAMES = {"dict", "__dict__", "update", "apply_to_collection", "Tensor", "Metric", "move_data_to_device"}
_COLLATE_NAMES = {"collate", "default_collate_fn_map"}


def enable(lightning: Any) -> None:
    """Use both shortcuts in this process. lightning: the Lightning package of the model."""
    fetcher = torch_fetch._MapDatasetFetcher
    if _uses(fetcher.fetch, _FETCH_NAMES) and _uses(default_collate, _COLLATE_NAMES):
        fetcher.fetch = _fetch(fetcher.fetch)  # type: ignore[method-assign]
    try:
        result = importlib.import_module(f"{lightning.__name__}.trainer.connectors.logger_connector.result")
        metric = result._ResultMetric
    except (ImportError, AttributeError):  # another version
        return
    if _uses(metric.to, _MOVE_NAMES):
        metric.to = _move(metric.to)


def _uses(function: Any, names: set[str]) -> bool:
    """Whether a function is the one that we know. One that is replaced already is not."""
    code = getattr(function, "__code__", None)
    return isinstance(code, CodeType) and set(code.co_names) == names


def _fetch(original: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    @functools.wraps(original)
    def fetch(self: Any, index: Any) -> Any:
        """Return the batch of these rows, as torch's default collate function makes it: a new list of new tensors."""
        if self.collate_fn is not default_collate or not self.auto_collation or get_worker_info() is not None:
            return original(self, index)
        dataset: Any = self.dataset
        rows = index
        while type(dataset) is Subset:  # as random_split makes it
            dataset, rows = dataset.dataset, [dataset.indices[i] for i in rows]
        if type(dataset) is not TensorDataset or type(rows) is not list or not rows:
            return original(self, index)
        if collate.default_collate_fn_map.get(torch.Tensor) is not collate.collate_tensor_fn:
            return original(self, index)
        if not all(map(_is_plain, dataset.tensors)) or not all(type(row) is int and row >= 0 for row in rows):
            return original(self, index)
        chosen = torch.tensor(rows)
        return [tensor.index_select(0, chosen) for tensor in dataset.tensors]

    return fetch


def _is_plain(tensor: torch.Tensor) -> bool:
    """Whether a copy of some rows is the same as a stack of them, in strides and gradients too."""
    return (
        type(tensor) is torch.Tensor
        and tensor.device.type == "cpu"
        and tensor.layout is torch.strided
        and not tensor.requires_grad
        and not tensor.is_quantized
        and not tensor.is_nested
        and tensor.is_contiguous()
    )


def _move(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def to(self: Any, *args: Any, **kwargs: Any) -> Any:
        """Move the metric to a device, unless it is there."""
        if self.is_tensor and not kwargs and len(args) == 1 and self.value.device == args[0]:
            count = self.__dict__.get("cumulated_batch_size")
            if count is None or count.device == args[0]:
                return self
        return original(self, *args, **kwargs)

    return to
