"""Lightning is published under two names whose classes do not mix. Each trial uses the package of its model."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

NAMES = ("pytorch_lightning", "lightning.pytorch")
# Our data modules derive from the first package and work with a model of either (see adapt_data).
_OWN_DATA = "overnight.data."


def lightning_of(data: Any, model: Any) -> ModuleType:
    """Return the Lightning package of the model, whose Trainer must train it.

    Raises:
        TypeError: if the model is no LightningModule, if the data is no LightningDataModule, or if the two come from
            different packages.
    """
    imported = [sys.modules[name] for name in NAMES if name in sys.modules]
    of_model = next((package for package in imported if isinstance(model, package.LightningModule)), None)
    if of_model is None:
        raise TypeError(_wrong_type("model", model, "LightningModule"))
    of_data = next((package for package in imported if isinstance(data, package.LightningDataModule)), None)
    if of_data is None:
        raise TypeError(_wrong_type("data", data, "LightningDataModule"))
    if of_data is not of_model and not type(data).__module__.startswith(_OWN_DATA):
        raise TypeError(
            f"data._target_: must be of the model's Lightning, whose classes do not mix with the other's, got "
            f"{_name(data)} of {of_data.__name__} and {_name(model)} of {of_model.__name__}; "
            f"import the same one in both"
        )
    return of_model


def adapt_data(lightning: ModuleType, data: Any) -> Any:
    """Return the data module itself, or a plain one of the other package with the same hooks."""
    base = lightning.LightningDataModule
    if isinstance(data, base):
        return data
    adapted = base()
    for name in dir(type(data)):
        if not name.startswith("_") and not _inherits(type(data), name) and callable(getattr(data, name)):
            setattr(adapted, name, getattr(data, name))
    return adapted


def subclass(own: type, base: type) -> Any:
    """Derive a class from one of ours and a Lightning class, which is known only when the model is."""
    return type(base)(own.__name__, (own, base), {})


def overrides(kind: type, name: str) -> bool:
    """Return whether a class defines a method itself, rather than inheriting Lightning's empty one."""
    return hasattr(kind, name) and not _inherits(kind, name)


def _inherits(kind: type, name: str) -> bool:
    """Return whether an attribute of a class comes from Lightning or object."""
    owner = next(k for k in kind.__mro__ if name in vars(k))
    return owner.__module__.startswith(NAMES) or owner is object


def _wrong_type(key: str, built: Any, kind: str) -> str:
    return f"{key}._target_: must be a {kind} of {' or '.join(NAMES)}, got {_name(built)}"


def _name(built: Any) -> str:
    return f"{type(built).__module__}.{type(built).__name__}"
