"""What training changes in a trial's objects and no state_dict holds: it is found, saved and restored.

Examples are `requires_grad`, the states of a torchmetrics object, the generator of a DataLoader, a list that a module
appends to. The module, the callbacks, the data module, the loaders and the optimizers are walked once, before the first
epoch. At the end of an epoch, every attribute that has changed since then is saved. A trial that resumes has built the
same objects in the same way, so that the changed attributes are all that it lacks.
"""

from __future__ import annotations

import functools
import sys
import types
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.data import DataLoader
from torchmetrics import Metric

from overnight.trial.changes import MAX_ITEMS, differs, has_elements, is_data, mark_of
from overnight.trial.plain_values import ATOMS, GENERATORS, Decoder, Encoder, NotPlain

# Objects of these packages hold no state of a training, or restore it themselves.
_OF_PYTHON = ("builtins", "types", "typing", "functools", "inspect", "abc", "weakref", "contextlib", "importlib", "re")
_OF_PROCESSES = ("threading", "_thread", "multiprocessing", "concurrent", "asyncio", "subprocess", "logging")
_OF_FILES = ("socket", "io", "_io", "ctypes", "_ctypes")
_OF_OTHERS = ("numpy", "hydra", "omegaconf", "lightning_fabric", "matplotlib", "PIL", "overnight")
_FOREIGN = (*_OF_PYTHON, *_OF_PROCESSES, *_OF_FILES, *_OF_OTHERS)
_WALKED_OF_TORCH = (
    *(nn.Module, torch.utils.data.Dataset, torch.utils.data.Sampler, DataLoader),
    *(torch.optim.Optimizer, LRScheduler, torch.amp.GradScaler),
)
_LIGHTNING = ("pytorch_lightning", "lightning")
_OF_TRAINER = (*_LIGHTNING, "torch")  # of these packages only callbacks and what is walked of torch
# Attributes that hold no state, or whose state is in a state_dict or is restored by name here.
_HOOKS = {"_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks"}
_OF_MODULE = frozenset(vars(nn.Module())) - {"training", *_HOOKS}
_OF_METRIC = frozenset({"_defaults", "_persistent", "_reductions", "_update_signature", "update", "compute"})
_OF_LOADER = frozenset({"_iterator", "_DataLoader__multiprocessing_context"})
_OF_OPTIMIZER = frozenset({"defaults", "step"})  # schedulers exchange `step`
_OF_SCALER = frozenset({"_per_optimizer_states"})  # empty between two steps
_PARTS_OF_MODULE = ("requires_grad", "grad", "data", "buffer", "module")
_MAX_OBJECTS = 2000  # that are no modules: those that are nearest to the roots
_MAX_DEPTH = 8  # of containers in containers
_GONE = ("gone",)


@dataclass
class _Owner:
    """An object whose attributes are watched. seen: attribute -> (value, mark)."""

    path: str
    object: Any
    skipped: frozenset[str]
    outside: bool  # a module that is no part of the trained one: its weights are in no state_dict of the trainer
    seen: dict[str, tuple[Any, Any]] = field(default_factory=dict)


class LiveState:
    """Attributes of the given objects, and of the objects in them, that change.

    Args:
        roots: name -> object. Names appear in messages.
        ignored: objects that are not walked, such as the Trainer.
        skipped: root -> attributes that the object restores itself.
        gradients: whether gradients outlive an epoch, as they may with manual optimization.
    """

    def __init__(
        self,
        roots: Mapping[str, Any],
        *,
        ignored: tuple[Any, ...] = (),
        skipped: Mapping[str, frozenset[str]] | None = None,
        gradients: bool = False,
    ) -> None:
        self._names: dict[int, str] = {}
        self._ignored = {id(thing): thing for thing in ignored}
        self._gradients = gradients
        self._owners: dict[str, _Owner] = {}
        trained = [root for root in roots.values() if isinstance(root, nn.Module)]
        self._trained = {id(module) for root in trained for module in root.modules()}
        # Lightning saves their states, and not those of optimizers within them.
        optimizers = [root for root in roots.values() if isinstance(root, torch.optim.Optimizer)]
        self._optimizers = {id(optimizer) for optimizer in optimizers}
        self._groups = {id(group) for optimizer in optimizers for group in optimizer.param_groups}
        self._is_complete = self._walk(roots, skipped or {})
        for owner in self._owners.values():
            owner.seen = {name: (value, mark_of(value)) for name, value in self._attributes(owner)}
        self._positions = [*self._iterators()]
        self._originals = dict(self._parts())  # what can be changed in place

    def save(self, also: Mapping[str, Mapping[str, Any]] | None = None) -> tuple[dict[str, dict[str, Any]], list[str]]:
        """Return the attributes that have changed, as plain data, and the names of those that can't be saved.

        Args:
            also: what an earlier call returned. These attributes are saved even if they are what they were at first.
        """
        places: dict[Any, str] = {}
        # A value that is elsewhere now is a new one there, because its place may hold another one.
        kept = {id(part): (name, part) for name, part in self._parts() if self._originals.get(name) is part}
        encoder = Encoder(lambda thing: self._reference(thing, places), kept)
        changed: dict[str, dict[str, Any]] = {}
        lost: list[str] = []
        for path, owner in self._owners.items():
            now = dict(self._attributes(owner))
            of_owner: dict[str, Any] = {}
            wanted = also.get(path, ()) if also else ()
            for name, value in now.items():
                before = owner.seen.get(name)
                if before is not None and value is not before[0] and id(before[0]) in kept:
                    pass  # the other place of the value that was here may change it in place
                elif before is not None and name not in wanted and not differs(value, *before):
                    continue
                try:
                    of_owner[name] = encoder.encode(value)
                except (NotPlain, RecursionError):
                    lost.append(f"{path}.{name}".removesuffix(".module"))
            of_owner.update((name, _GONE) for name in owner.seen if name not in now)
            if of_owner:
                changed[path] = of_owner
        too_many = () if self._is_complete else (f"what objects beyond the nearest {_MAX_OBJECTS:,} hold",)
        return changed, [*dict.fromkeys([*lost, *self._positions]), *too_many]

    def restore(self, saved: Mapping[str, Mapping[str, Any]]) -> list[str]:
        """Set the attributes that `save` returned, and return the names of those that can't be set."""
        lost = []
        decoder = Decoder(self._dereference, self._originals)
        for path, attributes in saved.items():
            owner = self._owners.get(path)
            for name, value in attributes.items():
                try:
                    if owner is None:
                        raise NotPlain
                    _set(owner.object, name, value, decoder)
                except (NotPlain, AttributeError, KeyError, TypeError, ValueError, RuntimeError):
                    lost.append(f"{path}.{name}")
        return lost

    # Walking

    def _walk(self, roots: Mapping[str, Any], skipped: Mapping[str, frozenset[str]]) -> bool:
        """Find the objects whose attributes are watched. Return False if there are too many."""
        waiting = deque((name, root, skipped.get(name, frozenset())) for name, root in roots.items())
        remaining = _MAX_OBJECTS
        while waiting:
            path, thing, of_root = waiting.popleft()
            if id(thing) in self._names or id(thing) in self._ignored:
                continue
            if isinstance(thing, list | tuple | dict | set | deque):
                waiting.extend((p, item, frozenset()) for p, item in _items(path, thing))
                continue
            if not _is_walked(thing):
                continue
            is_module = isinstance(thing, nn.Module)
            remaining -= not is_module
            if remaining < 0:
                return False
            outside = is_module and id(thing) not in self._trained
            owner = _Owner(path, thing, of_root | self._skipped_of(thing), outside)
            self._names[id(thing)] = path
            self._owners[path] = owner
            if isinstance(thing, nn.Module):
                waiting.extend((f"{path}.{name}", child, frozenset()) for name, child in thing._modules.items())
                for name, tensor in (*thing._parameters.items(), *thing._buffers.items()):
                    if tensor is not None:
                        self._names.setdefault(id(tensor), f"{path}.{name}")
            for kind in filter(_is_users, type(thing).__mro__):
                for name, shared in ((kind.__module__, sys.modules[kind.__module__]), (_name_of(kind), kind)):
                    self._owners.setdefault(name, _Owner(name, shared, frozenset(), outside=False))
            for name, value in self._attributes(owner):
                if type(value) not in ATOMS and not isinstance(value, torch.Tensor):
                    waiting.append((f"{path}.{name}", value, frozenset()))
        return True

    def _skipped_of(self, thing: Any) -> frozenset[str]:
        if not isinstance(thing, torch.optim.Optimizer):
            return _skipped_of(thing)
        if id(thing) in self._optimizers:
            return _OF_OPTIMIZER | {"state", "param_groups"}
        is_within = any(id(group) in self._groups for group in thing.param_groups)
        return _OF_OPTIMIZER | {"param_groups"} if is_within else _OF_OPTIMIZER

    def _parts(self) -> Iterator[tuple[str, Any]]:
        """Yield the name and the value of all that can be changed in place, of all objects."""
        for owner in self._owners.values():
            for name, value in self._attributes(owner):
                yield from _parts(f"{owner.path}.{name}", value)

    def _attributes(self, owner: _Owner) -> Iterator[tuple[str, Any]]:
        thing, skipped = owner.object, owner.skipped
        if isinstance(thing, type | types.ModuleType):
            yield from ((n, v) for n, v in [*vars(thing).items()] if not n.startswith("__") and is_data(v))
            return
        for name, value in getattr(thing, "__dict__", {}).items():
            if name not in skipped and type(value) is not types.MethodType:
                yield name, value
        for kind in type(thing).__mro__:
            slots = vars(kind).get("__slots__", ())
            for name in (slots,) if isinstance(slots, str) else slots:
                if name not in ("__dict__", "__weakref__") and hasattr(thing, name):
                    yield name, getattr(thing, name)
        if isinstance(thing, nn.Module):
            for name, parameter in thing._parameters.items():
                if parameter is not None:
                    yield f"{name}.requires_grad", parameter.requires_grad
                    if self._gradients:
                        yield f"{name}.grad", parameter.grad
                    if owner.outside:
                        yield f"{name}.data", parameter.detach()
            for name, child in thing._modules.items():
                yield f"{name}.module", child
            for name, buffer in thing._buffers.items():
                if owner.outside or name in thing._non_persistent_buffers_set:
                    yield f"{name}.buffer", buffer

    def _iterators(self) -> Iterator[str]:
        """Yield the names of attributes with iterators, such as generators of functions: their position is unknown."""
        for path, owner in self._owners.items():
            for name, value in owner.seen.items():
                if any(_is_iterator(part) for _, part in _parts(name, value[0])):
                    yield f"{path}.{name}"

    def _reference(self, thing: Any, places: dict[Any, str]) -> tuple[str, str]:
        """Return the name of an object, or of the weight whose memory a tensor shares.

        Args:
            places: of the weights; filled by the first call for a tensor.
        """
        if type(thing) is not torch.Tensor:
            if id(thing) not in self._names:
                raise NotPlain(type(thing).__name__)
            return "object", self._names[id(thing)]
        if not places:
            places.update((_place(tensor), name) for name, tensor in self._weights())
            places[None] = ""
        name = places.get(_place(thing), "")
        if not name or thing.requires_grad:
            raise NotPlain("a tensor")
        return "shared", name

    def _weights(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield the tensors in the state_dict of the trained module."""
        for path, owner in self._owners.items():
            thing = owner.object
            if isinstance(thing, nn.Module) and not owner.outside:
                buffers = ((n, b) for n, b in thing._buffers.items() if n not in thing._non_persistent_buffers_set)
                for name, tensor in (*thing._parameters.items(), *buffers):
                    if tensor is not None:
                        yield f"{path}.{name}", tensor

    def _dereference(self, name: tuple[str, str]) -> Any:
        owner = self._owners.get(name[1])
        if owner is not None:
            return owner.object
        path, _, attribute = name[1].rpartition(".")
        module = self._owners[path].object
        tensor = module._parameters.get(attribute, module._buffers.get(attribute))
        return tensor.detach() if name[0] == "shared" else tensor


class ParametersChanged(Exception):
    """Training removes parameters, so that a new network has others than the trained one."""


def _place(tensor: torch.Tensor) -> Any:
    """Return which memory a tensor is, and how it is seen; None without memory."""
    if not has_elements(tensor) or tensor.numel() == 0:
        return None
    return tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype, tensor.device


def _parts(name: str, value: Any, depth: int = 0) -> Iterator[tuple[str, Any]]:
    """Yield the name and the value of all that can be changed in place in a value."""
    if type(value) in ATOMS:
        return
    yield name, value
    is_container = isinstance(value, list | tuple | dict | deque)
    if is_container and depth < _MAX_DEPTH and len(value) <= MAX_ITEMS:
        for number, item in enumerate(value.values() if isinstance(value, dict) else value):
            if type(item) not in ATOMS:
                yield from _parts(f"{name}[{number}]", item, depth + 1)


def _set(thing: Any, name: str, value: Any, decoder: Decoder) -> None:
    parameter, _, part = name.rpartition(".")
    is_gone = isinstance(value, tuple) and value[0] == _GONE[0]
    if isinstance(thing, nn.Module) and part in _PARTS_OF_MODULE and parameter:
        with torch.no_grad():
            _set_in_module(thing, parameter, part, None if is_gone else decoder.decode(value), is_gone)
        return
    if isinstance(thing, type):
        setattr(thing, name, None if is_gone else decoder.decode(value))
        return
    attributes = getattr(thing, "__dict__", {})
    if is_gone:
        attributes.pop(name, None)
        return
    new = decoder.decode(value)
    if name in attributes or hasattr(thing, "__dict__"):
        attributes[name] = new  # past properties and __setattr__, as the value was read
    else:
        object.__setattr__(thing, name, new)


def _set_in_module(module: nn.Module, name: str, part: str, value: Any, is_gone: bool) -> None:
    if is_gone and part not in ("buffer", "module"):
        raise ParametersChanged(f"the parameter {name} was removed during training; such a network can't resume")
    if part == "module":
        if is_gone:
            module._modules.pop(name, None)
        else:
            module._modules[name] = value
        return
    if part == "buffer" and is_gone:
        module._buffers.pop(name, None)
        return
    if part == "buffer":
        module._buffers[name] = value
        return
    parameter = module._parameters[name]
    assert parameter is not None
    if part == "requires_grad":
        parameter.requires_grad_(value)
    elif part == "grad":
        parameter.grad = value
    else:
        parameter.copy_(value)


def _is_users(kind: type) -> bool:
    """Return whether a class is the user's, whose own attributes, and the variables of whose module, may change."""
    package = kind.__module__.partition(".")[0]
    foreign = (*_FOREIGN, *_OF_TRAINER, "torchmetrics", "torchvision")
    return package not in foreign and kind.__module__ in sys.modules


def _name_of(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


def _items(path: str, container: Any) -> Iterator[tuple[str, Any]]:
    if len(container) <= MAX_ITEMS:
        pairs = container.items() if isinstance(container, dict) else enumerate(container)
        for key, item in pairs:
            if type(item) not in ATOMS and not isinstance(item, torch.Tensor):
                yield f"{path}[{key!r}]" if type(key) in ATOMS else f"{path}[...]", item


def _is_walked(thing: Any) -> bool:
    if isinstance(thing, _WALKED_OF_TORCH):
        return True
    if isinstance(thing, (type, BaseException, Enum, *GENERATORS)) or _is_iterator(thing):
        return False
    kind = type(thing)
    package = kind.__module__.partition(".")[0]
    if package in _FOREIGN or (package in _OF_TRAINER and not hasattr(thing, "on_train_epoch_start")):
        return False
    return hasattr(thing, "__dict__") or any("__slots__" in vars(k) for k in kind.__mro__)


def _is_iterator(thing: Any) -> bool:
    """Return whether an object is an iterator of Python or torch, such as that of a generator function or a loader."""
    package = type(thing).__module__.partition(".")[0]
    return hasattr(type(thing), "__next__") and package in ("builtins", "itertools", "torch")


def _skipped_of(thing: Any) -> frozenset[str]:
    if isinstance(thing, DataLoader):
        return _OF_LOADER
    if isinstance(thing, torch.amp.GradScaler):
        return _OF_SCALER
    skipped = _OF_MODULE if isinstance(thing, nn.Module) else frozenset()
    if isinstance(thing, Metric):
        skipped |= _OF_METRIC
    for kind in type(thing).__mro__:
        if kind.__name__ in ("LightningModule", "LightningDataModule") and kind.__module__.startswith(_LIGHTNING):
            skipped |= _of_lightning(kind) - {"training"}
    return skipped


@functools.cache
def _of_lightning(kind: type) -> frozenset[str]:
    return frozenset(vars(kind())) | {"trainer"}
