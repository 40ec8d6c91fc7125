"""Builds the callbacks of a trial's configuration, from the Lightning package of its model."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

from hydra.errors import InstantiationException
from hydra.utils import instantiate

from overnight.config.callbacks import NODE
from overnight.config.import_allowlist import apply_guard
from overnight.config.values import escaped
from overnight.trial import lightning_packages, targets

# They draw on a terminal, which a trial does not have.
_SCREEN = ("ProgressBar", "ModelSummary")
# They train, then load a checkpoint of their own, before the first epoch.
_TUNERS = ("LearningRateFinder", "BatchSizeFinder")
# They act at the ends of epochs only.
_OF_EPOCHS = ("EarlyStopping",)


@dataclass(frozen=True)
class Callbacks:
    """The callbacks of a trial.

    Attributes:
        by_key: key in the configuration -> callback.
        notes: what is different from training without overnight, one line for each kind.
    """

    by_key: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def only_at_epoch_ends(self) -> bool:
        """Whether all of them act at the ends of epochs only, so that a step may have several batches."""
        return all(type(callback).__name__ in _OF_EPOCHS for callback in self.by_key.values())

    def raise_if_monitor_is_missing(self, error: Exception, logged: Mapping[str, Any]) -> None:
        """Raise a ValueError of one line if a callback has raised `error` because its monitor was not logged.

        Args:
            logged: the metrics that were logged so far.
        """
        for key, callback in self.by_key.items():
            monitor = getattr(callback, "monitor", None)
            if isinstance(monitor, str) and monitor not in logged and monitor in str(error):
                close = difflib.get_close_matches(monitor, logged, n=1)
                hint = f"; did you mean {close[0]}?" if close else f"; set {key}.monitor to one of them"
                known = ", ".join(sorted(logged)) or "none"
                raise ValueError(
                    f"{key}.monitor: must be a metric that the model logs, got {monitor!r}; it logged {known}{hint}"
                ) from error


def build_callbacks(config: Mapping[str, Any], lightning: ModuleType) -> Callbacks:
    """Build the callbacks of a configuration. An entry that is null is skipped.

    Args:
        config: the plain tree, which may have the node `callbacks`.
        lightning: the Lightning package of the model. A callback of the other package is built from this one.

    Raises:
        TypeError, ValueError: a callback can't be built, or can't be used here. The message names its key.
        TargetError: a `_target_` can't be imported.
    """
    node = config.get(NODE)
    if not node:
        return Callbacks()
    built: dict[str, Any] = {}
    screen, checkpoints = [], []
    for name, entry in apply_guard(config)[NODE].items():
        if entry is None:
            continue
        key = f"{NODE}.{name}"
        callback = _build(key, _of_package(entry, lightning), lightning)
        if isinstance(callback, tuple(getattr(lightning.callbacks, kind) for kind in _SCREEN)):
            screen.append(key)
            continue
        if isinstance(callback, lightning.callbacks.Checkpoint):
            checkpoints.append(key)
            if getattr(callback, "save_last", None) == "link":
                callback.save_last = True  # there is no file to link to
        built[key] = callback
    notes = []
    if screen:
        notes.append(f"{', '.join(screen)}: not used, because a trial has no terminal")
    if checkpoints:
        notes.append(f"{', '.join(checkpoints)}: writes no files, because overnight keeps the checkpoints")
    return Callbacks(built, tuple(notes))


def _build(key: str, entry: Mapping[str, Any], lightning: ModuleType) -> Any:
    targets.find_all({key: entry}, key)
    try:
        callback = instantiate({"_convert_": "all", **escaped(entry)})
    except InstantiationException as error:  # Hydra wraps the constructor's own error
        cause = error.__cause__ or error
        raise ValueError(f"{key}: must be built with these arguments; {type(cause).__name__}: {cause}") from cause
    if not isinstance(callback, lightning.Callback):
        kind = f"{type(callback).__module__}.{type(callback).__name__}"
        raise TypeError(
            f"{key}._target_: must be a Callback of the model's Lightning, {lightning.__name__}, got {kind}"
        )
    if isinstance(callback, tuple(getattr(lightning.callbacks, kind) for kind in _TUNERS)):
        raise ValueError(
            f"{key}._target_: must not be {type(callback).__name__}, which a trial that resumes would run again; "
            f"take it out with ~{key}, and search the value instead"
        )
    return callback


def _of_package(node: Any, lightning: ModuleType) -> Any:
    """Return a tree whose targets in one of the two Lightning packages are those of the given one."""
    if isinstance(node, Mapping):
        return {
            key: _renamed(value, lightning) if key == "_target_" else _of_package(value, lightning)
            for key, value in node.items()
        }
    return [_of_package(item, lightning) for item in node] if isinstance(node, list) else node


def _renamed(target: Any, lightning: ModuleType) -> Any:
    names = "|".join(map(re.escape, lightning_packages.NAMES))
    return re.sub(rf"^({names})\.", f"{lightning.__name__}.", target) if isinstance(target, str) else target
