"""Diabetes: how far the disease will have come in a year; 442 patients, bundled with scikit-learn."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from overnight.data.bundled import table
from overnight.data.split import SplitData
from overnight.data.split_60_20_20 import by_fifths
from overnight.data.tensors import Part


class Diabetes(SplitData):
    """The diabetes data of Efron et al. (2004, Least Angle Regression), as scikit-learn carries it.

    442 rows of ten features (age, sex, body mass index, blood pressure, six blood serum values) and a measure of the
    disease's progression, 25 to 346, one a patient. Three fifths train, a fifth validation, a fifth test.

    Targets come with mean 0 and standard deviation 1 over the training rows, so that learning rates mean what they mean
    elsewhere: an MAE or RMSE is in such deviations (about 77 points of progression); R2 is the same in any unit.
    """

    task = "regression"
    input_shape = (10,)
    columns = ("age", "sex", "bmi", "bp", "s1", "s2", "s3", "s4", "s5", "s6")

    def split(self, seed: int) -> dict[str, Part]:
        rows = torch.from_numpy(table("diabetes_data_raw", delimiter=" ")).float()  # (442, 10)
        targets = torch.from_numpy(table("diabetes_target", delimiter=" "))  # (442,)
        parts = by_fifths(rows, targets, seed, stratify=False)
        known = targets[parts["train"].rows]
        self._mean, self._deviation = float(known.mean()), float(known.std(correction=0))
        standard = ((targets - self._mean) / self._deviation).float()
        return {name: Part(part.inputs, standard, part.rows) for name, part in parts.items()}

    def in_units(self, answers: Tensor) -> Tensor:
        """In points of the measure."""
        return answers * self._deviation + self._mean

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "mean": self._mean, "deviation": self._deviation}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self._mean, self._deviation = state_dict["mean"], state_dict["deviation"]
