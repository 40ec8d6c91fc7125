"""Whether a step of the Trainer may take several batches: only where no one can tell the difference.

Lightning then calls its hooks once for each group of batches, and does not count the optimizer's steps. A class of a
user that overrides one of the methods that Lightning calls in training gets Lightning's usual loop.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import pytorch_lightning as pl

from overnight.config.trainer import FREE_OF_BATCHES
from overnight.data.split import SplitData
from overnight.models.supervised import Supervised

# Packages whose classes train in the same way with several batches per step.
KNOWN_PACKAGES = {
    *("overnight", "pytorch_lightning", "lightning", "lightning_fabric", "lightning_utilities", "torch"),
    *("builtins", "abc", "typing"),
}
# What is called for each batch in both cases, only before the first step, or never in training.
_FREE = frozenset(
    {
        *("forward", "configure_model", "setup", "prepare_data", "teardown"),
        *("val_dataloader", "test_dataloader", "predict_dataloader", "test_step", "predict_step"),
    }
)
_FREE_PREFIXES = ("_", "on_test_", "on_predict_")


def possible(data: Any, model: Any, options: Mapping[str, Any]) -> bool:
    """Return whether both objects train as ours do, and no argument of the Trainer counts batches."""
    if options.get("precision") != "32-true" or not set(options) <= set(FREE_OF_BATCHES):
        return False
    if not isinstance(model, Supervised) or type(model).training_step is not Supervised.training_step:
        return False
    if not isinstance(data, SplitData) or type(data).train_dataloader is not SplitData.train_dataloader:
        return False
    return not _overrides(model, pl.LightningModule) and not _overrides(data, pl.LightningDataModule)


def _overrides(thing: Any, base: type) -> bool:
    """Return whether a method that Lightning may call in training is a user's, of a class or of the object alone."""
    users = (vars(kind) for kind in type(thing).__mro__ if kind.__module__.partition(".")[0] not in KNOWN_PACKAGES)
    return any(not _methods_of(base).isdisjoint(attributes) for attributes in (*users, vars(thing)))


@functools.cache
def _methods_of(base: type) -> frozenset[str]:
    """Return the names of the methods and properties of a Lightning class, without those that are free."""
    found = {name: getattr(base, name, None) for name in dir(base) if not name.startswith(_FREE_PREFIXES)}
    return frozenset(n for n, v in found.items() if callable(v) or isinstance(v, property)) - _FREE
