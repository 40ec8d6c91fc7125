"""The weights that gave a trial its objective, which are the ones that are kept.

They are not always the weights at the end of an epoch, or of the training: callbacks that average weights exchange them
for the validation, or after the last one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from overnight.protocol import TrialSpec
from overnight.trial.state import copy_to_cpu


class MeasuredWeights:
    """Keeps a copy of the weights with which the metric of the study was measured.

    Attributes:
        weights: those of the best or of the last measurement, as the study's objective asks; None before any.
    """

    def __init__(self, spec: TrialSpec) -> None:
        self._spec = spec
        self.weights: dict[str, Any] | None = None
        self._value: float | None = None
        self._validated: dict[str, Any] | None = None  # the weights of this epoch's last validation

    def validated(self, module: Any) -> None:
        """Note the weights of a validation. To be called before callbacks exchange them again."""
        if self._is_needed:
            self._validated = copy_to_cpu(module.state_dict())

    def epoch_ended(self, metrics: Mapping[str, float], module: Any) -> None:
        """Keep the weights of an epoch if they gave the objective so far."""
        value, validated = metrics.get(self._spec.metric), self._validated
        self._validated = None
        if not self._is_needed or value is None:
            return
        if self._spec.objective == "best":
            sign = 1 if self._spec.direction == "maximize" else -1
            if value != value or (self._value is not None and sign * value <= sign * self._value):
                return
        self._value = value
        self.weights = copy_to_cpu(module.state_dict()) if validated is None else validated

    def trained(self, module: Any) -> None:
        """Keep the last weights of a trial that logged no metric."""
        if self._is_needed and self.weights is None:
            self.weights = copy_to_cpu(module.state_dict())

    @property
    def _is_needed(self) -> bool:
        return self._spec.keep_weights

    def state(self, current: Mapping[str, Any]) -> dict[str, Any]:
        """Return what `restore` needs. Weights that equal the current ones are shared with them."""
        weights = self.weights
        if weights is not None:
            shared = {
                name: current[name] if name in current and _equal(tensor, current[name]) else tensor
                for name, tensor in weights.items()
            }
            self.weights = weights = shared
        return {"measured": weights, "measured_value": self._value}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Set what `state` returned."""
        self.weights, self._value = state["measured"], state["measured_value"]


def _equal(one: Any, other: Any) -> bool:
    alike = isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor) and one.dtype == other.dtype
    return alike and torch.equal(one, other)
