"""The two names that Lightning is published under, whose classes do not mix: each trial uses its model's own."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

NAMES = ("pytorch_lightning", "lightning.pytorch")
# What comes with overnight is written against the first, and fits a model of either: `at_home`.
_OURS = "overnight.data."


def lightning_of(data: Any, model: Any) -> ModuleType:
    """The Lightning that the model is a module of, and whose Trainer it must therefore be trained by.

    Raises:
        TypeError: where the model is no LightningModule, the data no LightningDataModule, or the two are of
        different Lightnings.
    """
    # One that was never imported has no instances.
    known = [sys.modules[name] for name in NAMES if name in sys.modules]
    mine = next((lightning for lightning in known if isinstance(model, lightning.LightningModule)), None)
    if mine is None:
        raise TypeError(_no_instance("model", model, "LightningModule"))
    theirs = next((lightning for lightning in known if isinstance(data, lightning.LightningDataModule)), None)
    if theirs is None:
        raise TypeError(_no_instance("data", data, "LightningDataModule"))
    if theirs is not mine and not type(data).__module__.startswith(_OURS):
        raise TypeError(
            f"data._target_: must be of the model's Lightning, whose classes do not mix with the other's, got "
            f"{_name(data)} of {theirs.__name__} and {_name(model)} of {mine.__name__}; import the same one in both"
        )
    return mine


def at_home(lightning: ModuleType, data: Any) -> Any:
    """The data module as one of `lightning`'s: itself, or a plain one that has its hooks."""
    base = lightning.LightningDataModule
    if isinstance(data, base):
        return data
    clothed = base()
    for name in dir(type(data)):
        if not name.startswith("_") and not _inherited(type(data), name) and callable(getattr(data, name)):
            setattr(clothed, name, getattr(data, name))
    return clothed


def joined(own: type, base: type) -> Any:
    """Our class as a subclass of one of Lightning's too, which only the model decides on."""
    return type(base)(own.__name__, (own, base), {})


def own(kind: type, name: str) -> bool:
    """Whether a class has a method of its own making, and not Lightning's empty one."""
    return hasattr(kind, name) and not _inherited(kind, name)


def _inherited(kind: type, name: str) -> bool:
    """Whether a class has an attribute from Lightning rather than of its own making."""
    owner = next(k for k in kind.__mro__ if name in vars(k))
    return owner.__module__.startswith(NAMES) or owner is object


def _no_instance(key: str, built: Any, kind: str) -> str:
    return f"{key}._target_: must be a {kind} of {' or '.join(NAMES)}, got {_name(built)}"


def _name(built: Any) -> str:
    return f"{type(built).__module__}.{type(built).__name__}"
