"""Launch a hyperparameter study in the evening, read the answer in the morning."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from overnight.api import Result, Trial, train, tune
    from overnight.config.problems import ConfigError
    from overnight.study.storage.lock import StudyInUse

__all__ = ["ConfigError", "Result", "StudyInUse", "Trial", "train", "tune"]
_HOMES = {"ConfigError": "config.problems", "StudyInUse": "study.storage.lock"}


def __getattr__(name: str) -> Any:
    """Import on first use: `overnight --help` and a trial process need none of it."""
    if name not in __all__:
        raise AttributeError(f"module 'overnight' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(f"overnight.{_HOMES.get(name, 'api')}"), name)
