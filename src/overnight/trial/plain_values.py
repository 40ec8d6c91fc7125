"""Python values as plain data that a checkpoint may hold: tensors, numbers, texts, and lists, tuples and dicts.

A container becomes a tuple of its kind and its content, so that the copy says what it was. Random generators become
their states. An object of any other class is named by a reference, if the caller knows it, or refused.
"""

from __future__ import annotations

import contextlib
import random
import sys
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Mapping
from enum import Enum, EnumMeta
from pathlib import Path
from typing import Any

import numpy as np
import torch

ATOMS = frozenset({type(None), bool, int, float, complex, str, bytes, torch.dtype, torch.device})
GENERATORS = (torch.Generator, np.random.Generator, np.random.RandomState, random.Random)
_CHANGEABLE = {kind.__name__: kind for kind in (list, set)}
_CONSTANT = {kind.__name__: kind for kind in (tuple, frozenset, torch.Size)}
_MAPPINGS = {kind.__name__: kind for kind in (dict, OrderedDict, Counter)}
_FACTORIES = {kind.__name__: kind for kind in (int, float, str, list, dict, set, tuple)}
_BIT_GENERATORS = ("MT19937", "PCG64", "PCG64DXSM", "Philox", "SFC64")


class NotPlain(TypeError):
    """A value that is no plain data, or that can't be made again from plain data."""


class Encoder:
    """Makes plain data of values, which shares no memory with them. A value that occurs twice is encoded once.

    Args:
        reference: returns the plain name of an object of any other class, or of a tensor, or raises NotPlain.
        originals: id -> (name, value) of the values that are there in the process that decodes, too.
    """

    def __init__(self, reference: Callable[[Any], Any], originals: Mapping[int, tuple[str, Any]]) -> None:
        self._reference, self._originals = reference, originals
        self._encoded: dict[int, tuple[int, Any]] = {}  # id -> (number, value)

    def encode(self, value: Any) -> Any:
        """Return a value as plain data.

        Raises:
            NotPlain: if it can't be made again from plain data.
        """
        encoded_before = len(self._encoded)
        try:
            return self._encode(value)
        except BaseException:
            while len(self._encoded) > encoded_before:  # no later value may refer to a part of this one
                self._encoded.popitem()
            raise

    def _encode(self, value: Any) -> Any:
        kind = type(value)
        if kind in ATOMS:
            return value
        if isinstance(value, Enum):
            return _encode_enum(value)
        if isinstance(value, Path):
            return "path", str(value)
        if isinstance(value, np.generic):
            return _encode_array(value)
        if kind in _CONSTANT.values():
            return kind.__name__, [self._encode(item) for item in value]
        if id(value) in self._encoded:
            return "again", self._encoded[id(value)][0]
        if kind is torch.Tensor:
            with contextlib.suppress(NotPlain):
                return self._reference(value)
        content = self._content(value)
        if content is None:
            return self._reference(value)
        number = len(self._encoded)
        self._encoded[id(value)] = number, value
        return "value", number, self._originals.get(id(value), ("", None))[0], content

    def _content(self, value: Any) -> tuple[Any, ...] | None:
        """Return the content of a value that can be changed in place; None for an object of any other class."""
        kind = type(value)
        if kind is torch.Tensor:
            return _encode_tensor(value)
        if kind is np.ndarray:
            return _encode_array(value)
        if is_generator(value):
            return encode_generator(value)
        if kind in _CHANGEABLE.values():
            return kind.__name__, [self._encode(item) for item in value]
        if kind is deque:
            return "deque", [self._encode(item) for item in value], value.maxlen
        if isinstance(value, dict):
            factory = getattr(value, "default_factory", None)
            name = getattr(factory, "__name__", None)
            known = kind is defaultdict and (factory is None or _FACTORIES.get(name or "") is factory)
            filled_again = id(value) in self._originals and not getattr(value, "__dict__", None)
            if not known and kind not in _MAPPINGS.values() and not filled_again:
                raise NotPlain(f"a {kind.__name__}")
            return "mapping", kind.__name__, [(self._encode(k), self._encode(v)) for k, v in value.items()], name
        return None


class Decoder:
    """Makes values again of what an Encoder returned.

    Args:
        dereference: returns the object of a reference.
        originals: name -> value. A value that was one of them in the process that encoded it is changed in place,
            because other objects may hold it too.
    """

    def __init__(self, dereference: Callable[[Any], Any], originals: Mapping[str, Any]) -> None:
        self._dereference, self._originals = dereference, originals
        self._decoded: dict[int, Any] = {}

    def decode(self, value: Any) -> Any:
        """Return the value that was encoded.

        Raises:
            NotPlain: if it can't be made again.
            KeyError: if it is a part of another one that can't be made again.
        """
        if not isinstance(value, tuple):
            return value
        kind = value[0]
        if kind == "again":
            return self._decoded[value[1]]
        if kind == "value":
            _, number, name, content = value
            self._decoded[number] = self._fill(self._originals.get(name), content)
            return self._decoded[number]
        if kind in _CONSTANT:
            return _CONSTANT[kind](self._items(value[1]))
        if kind == "scalar":
            return _decode_array(value, None)[()]
        if kind == "path":
            return Path(value[1])
        if kind == "enum":
            return _enum_class(value[1], value[2])[value[3]]
        return self._dereference(value)

    def _items(self, items: list[Any]) -> list[Any]:
        return [self.decode(item) for item in items]

    def _fill(self, current: Any, content: tuple[Any, ...]) -> Any:
        """Return `current` with the given content, if it is of the same kind, or a new value."""
        kind = content[0]
        if kind == "tensor":
            return _decode_tensor(content, current)
        if kind == "array":
            return _decode_array(content, current)
        if kind == "generator":
            return decode_generator(content, current)
        if kind == "mapping":
            _, name, pairs, factory = content
            return _fill_mapping(current, name, [(self.decode(k), self.decode(v)) for k, v in pairs], factory)
        items = self._items(content[1])
        return _refill(current, deque(items, content[2]) if kind == "deque" else _CHANGEABLE[kind](items))


def is_generator(value: Any) -> bool:
    """Return whether a value is a random generator that has a state."""
    return isinstance(value, GENERATORS) and not isinstance(value, random.SystemRandom)


def equal_trees(one: Any, other: Any) -> bool:
    """Return whether two trees of plain data are equal."""
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        alike = one.dtype == other.dtype and one.device == other.device
        strided = one.layout is torch.strided and other.layout is torch.strided  # torch.equal takes no others
        return one is other or (alike and strided and torch.equal(one, other))
    if isinstance(one, tuple | list):
        return type(one) is type(other) and len(one) == len(other) and all(map(equal_trees, one, other))
    if isinstance(one, dict):
        return (
            isinstance(other, dict) and one.keys() == other.keys() and all(equal_trees(one[k], other[k]) for k in one)
        )
    return one is other or (type(one) is type(other) and bool(one == other))


def encode_generator(generator: Any) -> tuple[Any, ...]:
    """Return the state of a random generator."""
    if isinstance(generator, torch.Generator):
        return "generator", "torch", generator.get_state().clone(), generator.device.type
    if isinstance(generator, random.Random):
        return "generator", "python", generator.getstate()
    if isinstance(generator, np.random.RandomState):
        return "generator", "numpy", "legacy", _plain(generator.get_state(legacy=False))
    return "generator", "numpy", "new", _plain(generator.bit_generator.state)


def decode_generator(value: tuple[Any, ...], current: Any = None) -> Any:
    """Return a random generator with the given state: `current`, if it is of the same kind, or a new one."""
    if value[1] == "torch":
        fits = isinstance(current, torch.Generator) and current.device.type == value[3]
        generator = current if fits else torch.Generator(value[3])
        generator.set_state(value[2])
        return generator
    if value[1] == "python":
        of_python = current if isinstance(current, random.Random) else random.Random()
        of_python.setstate(value[2])
        return of_python
    state = Decoder(_refuse, {}).decode(value[3])
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


def _encode_tensor(tensor: torch.Tensor) -> tuple[Any, ...]:
    try:
        return "tensor", tensor.detach().to("cpu", copy=True), tensor.device.type, tensor.requires_grad
    except (RuntimeError, TypeError) as error:  # it has no data, for example on the device "meta"
        raise NotPlain(str(error)) from error


def _decode_tensor(value: tuple[Any, ...], current: Any) -> torch.Tensor:
    _, content, device, requires_grad = value
    # The trial's current GPU, which may be another one than before.
    new: torch.Tensor = content.to(device if torch.cuda.is_available() else "cpu", copy=True)
    if type(current) is not torch.Tensor or current.is_inference() or current.requires_grad or requires_grad:
        return new.requires_grad_(requires_grad)
    facts = [(t.layout, t.shape, t.dtype, t.device) for t in (current, new)]
    if facts[0] != facts[1] or new.layout is not torch.strided:
        return new
    return current.copy_(new)


def _encode_enum(member: Enum) -> tuple[Any, ...]:
    kind = type(member)
    name = ("enum", kind.__module__, kind.__qualname__, member.name)
    if _enum_class(kind.__module__, kind.__qualname__) is not kind or kind.__members__.get(member.name) is not member:
        raise NotPlain(f"a {kind.__name__}")
    return name


def _enum_class(module: str, name: str) -> Any:
    """Return an enumeration of a module that is imported.

    Raises:
        NotPlain: if there is none, as for a class that a function makes.
    """
    found: Any = sys.modules.get(module)
    for part in name.split("."):
        found = getattr(found, part, None)
    if not isinstance(found, EnumMeta):
        raise NotPlain(f"a member of {module}.{name}")
    return found


def _fill_mapping(current: Any, name: str, items: list[tuple[Any, Any]], factory: str | None) -> Any:
    if isinstance(current, dict) and type(current).__name__ == name:
        current.clear()
        for key, item in items:  # not update(): that of a Counter adds
            current[key] = item
        return current
    if name == "defaultdict" and (factory is None or factory in _FACTORIES):
        return defaultdict(_FACTORIES.get(factory or ""), items)
    if name not in _MAPPINGS:
        raise NotPlain(f"a {name}")
    return _MAPPINGS[name](dict(items))


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


def _plain(value: Any) -> Any:
    return Encoder(_refuse, {}).encode(value)


def _refuse(value: Any) -> Any:
    raise NotPlain(f"a {type(value).__name__}")
