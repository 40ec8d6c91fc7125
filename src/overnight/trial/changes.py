"""Whether a value has changed since it was looked at, in place or by another value, found without a copy of it all."""

from __future__ import annotations

from collections import deque
from operator import is_
from typing import Any

import numpy as np
import torch

from overnight.trial.plain_values import ATOMS, encode_generator, equal_trees, is_generator

MAX_ITEMS = 1000  # of a container, beyond which its items are compared by identity
_WHOLE_BYTES = 1 << 16  # tensors and arrays up to this size are compared whole, of larger ones a sample
_SAMPLED_ELEMENTS = 1024
_MAX_DEPTH = 8  # of containers in containers


class _Items(list[Any]):
    """The items of a container that are compared by identity."""


def mark_of(value: Any, depth: int = 0) -> Any:
    """Return what `differs` needs to know whether a value was changed in place.

    Objects that are none of tensors, arrays, generators and containers have no mark: another object is a change.
    """
    if type(value) in ATOMS:
        return None
    if isinstance(value, torch.Tensor):
        return *_place_of(value), _part_of_tensor(value).clone() if has_elements(value) else None
    if isinstance(value, np.ndarray):
        return _part_of_array(value).copy()
    if is_generator(value):
        return encode_generator(value)
    if _is_container(value) and depth < _MAX_DEPTH:
        items = _items_of(value)
        if len(items) > MAX_ITEMS or all(map(_is_constant, items)):
            return items
        return [(item, mark_of(item, depth + 1)) for item in items]
    return None


def differs(value: Any, before: Any, mark: Any) -> bool:
    """Return whether `value` is not what `before` was when `mark` was taken of it."""
    if type(value) in ATOMS:
        return value is not before and (type(value) is not type(before) or value != before)
    if type(value) is not type(before):
        return True
    if isinstance(value, torch.Tensor):
        *place, part = mark
        if part is None or not has_elements(value):
            return _place_of(value) != tuple(place)
        if value.nbytes > _WHOLE_BYTES and _place_of(value) != tuple(place):
            return True
        return not equal_trees(_part_of_tensor(value), part)
    if isinstance(value, np.ndarray):
        if value.nbytes > _WHOLE_BYTES and value is not before:
            return True
        now = _part_of_array(value)
        return now.shape != mark.shape or now.dtype != mark.dtype or now.tobytes() != mark.tobytes()
    if is_generator(value):
        return not equal_trees(encode_generator(value), mark)
    if not isinstance(mark, list):
        return value is not before
    items = _items_of(value)
    if len(items) != len(mark):
        return True
    if isinstance(mark, _Items):
        return not all(map(is_, items, mark))
    return any(differs(item, *marked) for item, marked in zip(items, mark, strict=True))


def is_data(value: Any) -> bool:
    """Return whether a value is one that training may change in place, and neither an object nor a function."""
    return (
        type(value) in ATOMS
        or isinstance(value, torch.Tensor | np.ndarray)
        or is_generator(value)
        or _is_container(value)
    )


def _is_container(value: Any) -> bool:
    return isinstance(value, list | tuple | dict | set | frozenset | deque)


def _items_of(container: Any) -> _Items:
    return _Items([*container, *container.values()] if isinstance(container, dict) else container)


def _is_constant(value: Any) -> bool:
    return type(value) in ATOMS or (type(value) is tuple and all(type(item) in ATOMS for item in value))


def has_elements(tensor: torch.Tensor) -> bool:
    """Return whether the elements of a tensor can be compared, unlike those of a sparse or nested one."""
    return tensor.layout is torch.strided and not tensor.is_nested and not tensor.is_meta


def _place_of(tensor: torch.Tensor) -> tuple[Any, int]:
    """Return torch's count of changes in place, which those through `.data` escape, and the address."""
    version = object() if tensor.is_inference() else tensor._version  # no count: it may always have changed
    return version, tensor.data_ptr() if has_elements(tensor) else id(tensor)


def _part_of_tensor(tensor: torch.Tensor) -> torch.Tensor:
    tensor = tensor.detach()
    if tensor.nbytes <= _WHOLE_BYTES:
        return tensor
    # Without a copy: a view of every n-th element of the memory, whatever the shape.
    flat = tensor.view(-1) if tensor.is_contiguous() else tensor.select(0, 0).flatten()
    return flat[:: max(1, flat.numel() // _SAMPLED_ELEMENTS)]


def _part_of_array(array: np.ndarray) -> np.ndarray:
    if array.nbytes <= _WHOLE_BYTES:
        return array
    flat = array.reshape(-1) if array.flags.c_contiguous else array[0].ravel()
    return flat[:: max(1, flat.size // _SAMPLED_ELEMENTS)]
