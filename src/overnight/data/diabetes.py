"""Diabetes: the progression of the disease after one year, for 442 patients, from scikit-learn."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from overnight.data.bundled import read_table
from overnight.data.split import SplitData
from overnight.data.split_60_20_20 import split_60_20_20
from overnight.data.tensors import Part


class Diabetes(SplitData):
    """The diabetes data of Efron et al. (2004, Least Angle Regression), from scikit-learn.

    442 rows, one for each patient, of ten features (age, sex, body mass index, blood pressure, six blood serum values)
    and a measure of the disease's progression, 25 to 346. The split is 60% training, 20% validation and 20% test.

    Targets have mean 0 and standard deviation 1 over the training rows, so that the usual learning rates fit. An MAE or
    RMSE is in standard deviations (about 77 points of progression); R2 does not depend on the unit.
    """

    task = "regression"
    input_shape = (10,)
    columns = ("age", "sex", "bmi", "bp", "s1", "s2", "s3", "s4", "s5", "s6")

    def split(self, seed: int) -> dict[str, Part]:
        rows = torch.from_numpy(read_table("diabetes_data_raw", delimiter=" ")).float()  # (442, 10)
        targets = torch.from_numpy(read_table("diabetes_target", delimiter=" "))  # (442,)
        return split_60_20_20(rows, targets, seed, stratify=False)

    def prepare_targets(self, parts: dict[str, Part]) -> dict[str, Part]:
        targets = parts["train"].targets
        train_targets = targets[parts["train"].rows]
        self._mean, self._deviation = float(train_targets.mean()), float(train_targets.std(correction=0))
        standardised = ((targets - self._mean) / self._deviation).float()
        return {name: Part(part.inputs, standardised, part.rows) for name, part in parts.items()}

    def to_target_units(self, outputs: Tensor) -> Tensor:
        """Convert predictions to points of progression."""
        return outputs * self._deviation + self._mean

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "mean": self._mean, "deviation": self._deviation}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self._mean, self._deviation = state_dict["mean"], state_dict["deviation"]
