"""A trained network, taken up from its weights with what prepares its rows: to be asked, or put into a file."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from overnight.data.split import SplitData
from overnight.models.supervised import Supervised
from overnight.trial import fit


@dataclass(frozen=True)
class TrainedModel:
    """prepared: raw rows -> what the network was fed in training; None where its data module does not say.

    task: binary, multiclass or regression; None where nobody says.
    """

    data: Any
    model: Any
    prepared: Callable[[Tensor], Tensor] | None
    task: str | None


def take(weights: Path, cache: Path | None) -> TrainedModel:
    """The network of a trial's weights, and its data module. Raises whatever a person's own classes raise.

    A data module of ours has left in the weights how it prepares rows; one of a person's, and older weights, need the
    data for that.
    """
    torch.set_num_threads(1)
    fit.quiet()
    kept = torch.load(weights, map_location="cpu", weights_only=True)
    ours = kept["overnight"]
    torch.manual_seed(ours["seed"])
    data, model = fit.build(ours["config"], cache)
    model.load_state_dict(kept["state_dict"])
    model.eval()
    prepared = getattr(data, "prepared", None)
    if callable(prepared):
        # By the name that Lightning gave it, of a module that was clothed for the other Lightning the base's.
        state = kept.get(type(data).__qualname__, kept.get("LightningDataModule"))
        if state is None or not isinstance(data, SplitData):  # who knows what theirs keeps in its state
            data.prepare_data()
            data.setup("fit")
        if state is not None:
            data.load_state_dict(state)
    task = getattr(data, "task", None) or ours["config"]["data"].get("task")
    return TrainedModel(data, model, prepared if callable(prepared) else None, task)


class Served(nn.Module):
    """From rows to answers: prepared as in training, asked, and put in the terms of the question.

    Of a network or a data module of somebody's own, whose terms nobody knows, only what is known.
    """

    def __init__(self, taken: TrainedModel) -> None:
        super().__init__()
        self.model = taken.model
        self._taken = [taken]  # in a list: nn.Module would take the data module's parts for its own

    def forward(self, rows: Tensor) -> Tensor:
        """(B, ...) -> (B,) or (B, K)."""
        (taken,) = self._taken
        outputs = self.model(taken.prepared(rows) if taken.prepared else rows)
        if isinstance(self.model, Supervised):
            outputs = self.model.task.predict(outputs)
        in_units = getattr(taken.data, "in_units", None)
        return in_units(outputs) if callable(in_units) else outputs
