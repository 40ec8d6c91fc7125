"""A trained network with the preparation of its inputs, rebuilt from the weights of a trial."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from overnight.data.split import SplitData
from overnight.models.supervised import Supervised
from overnight.trial.components import build
from overnight.trial.fit import silence_lightning


@dataclass(frozen=True)
class TrainedModel:
    """A trained network and its data module.

    Attributes:
        data: the data module.
        model: the network, in evaluation mode.
        prepare: maps raw rows (B, *input_shape) to the network's inputs; None if the data module has no such method.
        task: binary, multiclass or regression; None if unknown.
    """

    data: Any
    model: Any
    prepare: Callable[[Tensor], Tensor] | None
    task: str | None


def load_trained_model(weights: Path, cache: Path | None, locks: Path | None) -> TrainedModel:
    """Rebuild the network of a trial from its weights file.

    Our data modules keep the preparation of rows in the weights. Other data modules, and weights without it, need the
    data for that.

    Args:
        weights: file of the trial's weights.
        cache: folder for decoded data; None keeps it in memory.
        locks: see `build`.

    Raises:
        Exception: any error that the user's classes raise.
    """
    torch.set_num_threads(1)
    silence_lightning()
    saved = torch.load(weights, map_location="cpu", weights_only=True)
    ours = saved["overnight"]
    torch.manual_seed(ours["seed"])
    data, model = build(ours["config"], cache, locks)
    model.load_state_dict(saved["state_dict"])
    model.eval()
    prepare = getattr(data, "prepare_inputs", None)
    if callable(prepare):
        # Lightning saves the state under the class name, or under the base class's for a module from `adapt_data`.
        state = saved.get(type(data).__qualname__, saved.get("LightningDataModule"))
        if state is None or not isinstance(data, SplitData):  # the state of a user's module may not be enough
            data.prepare_data()
            data.setup("fit")
        if state is not None:
            data.load_state_dict(state)
    task = getattr(data, "task", None) or ours["config"]["data"].get("task")
    return TrainedModel(data, model, prepare if callable(prepare) else None, task)


class ServedModel(nn.Module):
    """Maps raw rows to predictions: prepares rows as in training, runs the network, and converts its outputs.

    With a user's network or data module, the steps that these do not define are left out.
    """

    def __init__(self, trained: TrainedModel) -> None:
        super().__init__()
        self.model = trained.model
        self._trained = [trained]  # in a list, so that nn.Module does not register the parts of the data module

    def forward(self, rows: Tensor) -> Tensor:
        """(B, ...) -> (B,) or (B, K)."""
        (trained,) = self._trained
        outputs = self.model(trained.prepare(rows) if trained.prepare else rows)
        if isinstance(self.model, Supervised):
            outputs = self.model.task.predict(outputs)
        to_units = getattr(trained.data, "to_target_units", None)
        return to_units(outputs) if callable(to_units) else outputs
