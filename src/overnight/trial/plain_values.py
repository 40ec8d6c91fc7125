"""Python values as plain data that a checkpoint may hold: tensors, numbers, texts, and lists, tuples and dicts.

A container becomes a tuple of its kind and its content, so that the copy says what it was. Random generators become
their states. An object of any other class is named by a reference, if the caller knows it, or refused.
"""

from __future__ import annotations

import random
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np
import torch

ATOMS = frozenset({type(None), bool, int, float, complex, str, bytes, torch.dtype, torch.device})
SEQUENCES = {kind.__name__: kind for kind in (list, tuple, set, frozenset, torch.Size)}
MAPPINGS = {kind.__name__: kind for kind in (dict, OrderedDict, Counter)}
GENERATORS = (torch.Generator, np.random.Generator, np.random.RandomState, random.Random)
_FACTORIES = {kind.__name__: kind for kind in (int, float, str, list, dict, set, tuple)}
_BIT_GENERATORS = ("MT19937", "PCG64", "PCG64DXSM", "Philox", "SFC64")

Reference = Callable[[Any], Any]


class NotPlain(TypeError):
    """A value that is no plain data, or that can't be made again from plain data."""


def encode(value: Any, reference: Reference) -> Any:
    """Return a value as plain data that shares no memory with it.

    Args:
        reference: returns the plain name of an object of any other class, or raises NotPlain.
    """
    kind = type(value)
    if kind in ATOMS:
        return value
    if isinstance(value, torch.Tensor):
        named = None if kind is torch.Tensor else reference(value)
        return named or ("tensor", value.detach().to("cpu", copy=True), str(value.device), value.requires_grad)
    if kind is np.ndarray or isinstance(value, np.generic):
        return _encode_array(value)
    if isinstance(value, GENERATORS):
        return encode_generator(value)
    if kind.__name__ in SEQUENCES and kind is SEQUENCES[kind.__name__]:
        return kind.__name__, [encode(item, reference) for item in value]
    if kind is deque:
        return "deque", [encode(item, reference) for item in value], value.maxlen
    if isinstance(value, dict):
        factory = getattr(value, "default_factory", None)
        pairs = [(encode(key, reference), encode(item, reference)) for key, item in value.items()]
        return "mapping", kind.__name__, pairs, getattr(factory, "__name__", None)
    if isinstance(value, Enum):
        return "enum", value.name
    if isinstance(value, Path):
        return "path", str(value)
    return reference(value)


def decode(value: Any, dereference: Reference, current: Any = None) -> Any:
    """Return the value that `encode` was given.

    Args:
        dereference: returns the object of a reference.
        current: what the value replaces. A container, an array or a generator of the same kind is changed in place,
            because other objects may hold it too.

    Raises:
        NotPlain: the value can't be made again.
    """
    if not isinstance(value, tuple):
        return value
    kind = value[0]
    if kind == "tensor":
        device = value[2] if torch.cuda.is_available() else "cpu"
        return value[1].to(device, copy=True).requires_grad_(value[3])
    if kind in SEQUENCES or kind == "deque":
        items = [decode(item, dereference) for item in value[1]]
        if kind == "deque":
            return _refill(current, deque(items, value[2]))
        return _refill(current, SEQUENCES[kind](items))
    if kind == "mapping":
        return _decode_mapping(value, dereference, current)
    if kind == "array":
        return _decode_array(value, current)
    if kind == "scalar":
        return _decode_array(value, None)[()]
    if kind == "path":
        return Path(value[1])
    if kind == "enum":
        if not isinstance(current, Enum):
            raise NotPlain("a member of an unknown enumeration")
        return type(current)[value[1]]
    if kind == "generator":
        return decode_generator(value, current)
    return dereference(value)


def same(one: Any, other: Any) -> bool:
    """Return whether two trees of plain data are equal."""
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        alike = one.dtype == other.dtype and one.device == other.device
        return one is other or (alike and torch.equal(one, other))
    if isinstance(one, tuple | list):
        return type(one) is type(other) and len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, dict):
        return isinstance(other, dict) and one.keys() == other.keys() and all(same(one[k], other[k]) for k in one)
    return one is other or (type(one) is type(other) and bool(one == other))


def encode_generator(generator: Any) -> tuple[Any, ...]:
    """Return the state of a random generator."""
    if isinstance(generator, torch.Generator):
        return "generator", "torch", generator.get_state().clone(), str(generator.device)
    if isinstance(generator, random.Random):
        return "generator", "python", generator.getstate()
    if isinstance(generator, np.random.RandomState):
        return "generator", "numpy", "legacy", encode(generator.get_state(legacy=False), _refuse)
    return "generator", "numpy", "new", encode(generator.bit_generator.state, _refuse)


def decode_generator(value: tuple[Any, ...], current: Any = None) -> Any:
    """Return a random generator with the given state: `current`, if it is of the same kind, or a new one."""
    if value[1] == "torch":
        generator = current if isinstance(current, torch.Generator) else torch.Generator(value[3])
        generator.set_state(value[2])
        return generator
    if value[1] == "python":
        of_python = current if isinstance(current, random.Random) else random.Random()
        of_python.setstate(value[2])
        return of_python
    state = decode(value[3], _refuse)
    if state["bit_generator"] not in _BIT_GENERATORS:
        raise NotPlain(f"a random generator of the kind {state['bit_generator']}")
    if value[2] == "legacy":
        legacy = current if isinstance(current, np.random.RandomState) else np.random.RandomState()
        legacy.set_state(state)
        return legacy
    fits = isinstance(current, np.random.Generator) and type(current.bit_generator).__name__ == state["bit_generator"]
    made = current if fits else np.random.Generator(getattr(np.random, state["bit_generator"])())
    made.bit_generator.state = state
    return made


def _encode_array(value: Any) -> tuple[Any, ...]:
    if value.dtype.kind not in "biufc":
        raise NotPlain(f"a NumPy array of {value.dtype}")
    # As bytes: torch lacks some of NumPy's types.
    content = torch.frombuffer(bytearray(np.ascontiguousarray(value).tobytes()) or bytearray(1), dtype=torch.uint8)
    return ("array" if isinstance(value, np.ndarray) else "scalar"), content, value.dtype.str, list(np.shape(value))


def _decode_array(value: tuple[Any, ...], current: Any) -> Any:
    dtype, shape = np.dtype(value[2]), tuple(value[3])
    count = int(np.prod(shape))
    array = np.frombuffer(value[1].numpy().tobytes()[: count * dtype.itemsize], dtype).reshape(shape).copy()
    fits = isinstance(current, np.ndarray) and (current.dtype, current.shape) == (dtype, shape)
    if fits and current.flags.writeable:
        current[...] = array
        return current
    return array


def _decode_mapping(value: tuple[Any, ...], dereference: Reference, current: Any) -> Any:
    _, name, pairs, factory = value
    items = [(decode(key, dereference), decode(item, dereference)) for key, item in pairs]
    if isinstance(current, dict) and type(current).__name__ == name:
        current.clear()
        for key, item in items:  # not update(): that of a Counter adds
            current[key] = item
        return current
    if name == "defaultdict" and (factory is None or factory in _FACTORIES):
        return defaultdict(_FACTORIES.get(factory), items)
    if name not in MAPPINGS:
        raise NotPlain(f"a {name}")
    return MAPPINGS[name](dict(items))


def _refill(current: Any, new: Any) -> Any:
    """Give a container the content of a new one of the same kind, or return the new one."""
    if type(current) is not type(new) or (isinstance(new, deque) and current.maxlen != new.maxlen):
        return new
    if isinstance(new, list):
        current[:] = new
    elif isinstance(new, set | deque):
        current.clear()
        current.update(new) if isinstance(new, set) else current.extend(new)
    else:
        return new
    return current


def _refuse(value: Any) -> Any:
    raise NotPlain(f"a {type(value).__name__}")
