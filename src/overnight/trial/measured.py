"""The weights that gave a trial its objective, which are the ones that are kept.

They are not always the weights at the end of an epoch, or of the training: callbacks that average weights exchange them
for the validation, or after the last one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from overnight.protocol import TrialSpec
from overnight.trial import lightning_packages
from overnight.trial.state import copy_to_cpu

# Hooks in which a callback or a module may give the network other weights between a validation and the next epoch.
_EXCHANGE_HOOKS = (
    *(f"on_validation_{when}" for when in ("start", "epoch_start", "batch_start", "batch_end", "epoch_end", "end")),
    *("on_validation_model_eval", "on_validation_model_train", "on_train_epoch_end"),
)
_EXCHANGE_CALLBACKS = ("WeightAveraging", "StochasticWeightAveraging", "ModelPruning")  # of Lightning's own


class MeasuredWeights:
    """Keeps a copy of the weights with which the metric of the study was measured.

    Attributes:
        weights: those of the best or of the last measurement, as the study's objective asks; None before any, and
            until the next boundary or the end of the training if they are the network's.
    """

    def __init__(self, spec: TrialSpec) -> None:
        self._spec = spec
        self.weights: dict[str, Any] | None = None
        self._value: float | None = None
        self._is_new = False  # whether there was a measurement since the last boundary
        self._validated: dict[str, Any] | None = None  # the weights of this epoch's last validation

    def validated(self, trainer: Any, module: Any) -> None:
        """Note the weights of a validation, unless the network has them until the next epoch.

        To be called before callbacks exchange them again.
        """
        ends_epoch = trainer.fit_loop.epoch_loop.batch_progress.is_last_batch
        if self._is_needed and not (ends_epoch and not may_exchange_weights(trainer, module)):
            self._validated = copy_to_cpu(module.state_dict())

    def unit_ended(self, metrics: Mapping[str, float]) -> None:
        """Keep the weights of an epoch or a validation if they gave the objective so far."""
        value, validated = metrics.get(self._spec.metric), self._validated
        self._validated = None
        if not self._is_needed or value is None:
            return
        if self._spec.objective == "best":
            sign = 1 if self._spec.direction == "maximize" else -1
            if value != value or (self._value is not None and sign * value <= sign * self._value):
                return
        self._value = value
        self.weights, self._is_new = validated, True

    def trained(self, module: Any) -> None:
        """Keep the last weights of a trial that measured them last, or that logged no metric."""
        if self._is_needed and self.weights is None:
            self.weights = copy_to_cpu(module.state_dict())

    @property
    def _is_needed(self) -> bool:
        return self._spec.keep_weights

    def state(self, current: dict[str, Any]) -> dict[str, Any]:
        """Return what `restore` needs. Weights that equal the current ones are shared with them.

        Args:
            current: a copy of the network's weights.
        """
        if self._is_new and self.weights is None:
            self.weights = current
        elif self._is_new and self.weights is not None:
            self.weights = {
                name: current[name] if name in current and _equal(tensor, current[name]) else tensor
                for name, tensor in self.weights.items()
            }
        self._is_new = False
        return {"measured": self.weights, "measured_value": self._value}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Set what `state` returned."""
        self.weights, self._value = state["measured"], state["measured_value"]


def may_exchange_weights(trainer: Any, module: Any) -> bool:
    """Return whether a callback or the module may give the network other weights after a validation."""
    return any(
        any(hook in vars(thing) or lightning_packages.overrides(type(thing), hook) for hook in _EXCHANGE_HOOKS)
        or any(k.__name__ in _EXCHANGE_CALLBACKS for k in type(thing).__mro__)
        for thing in (module, *trainer.callbacks)
        if not type(thing).__module__.startswith("overnight.")
    )


def _equal(one: Any, other: Any) -> bool:
    alike = isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor) and one.dtype == other.dtype
    return alike and torch.equal(one, other)
