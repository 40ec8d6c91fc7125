"""Trials of networks and data that users wrote."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest

from overnight.protocol import TrialSpec

USER_PACKAGE = "user_package.with_loaders."

HABITS = "user_package.habits."

MANUAL = "user_package.with_manual_optimisation.Adversaries"

needs_lightning = pytest.mark.skipif(
    importlib.util.find_spec("lightning") is None, reason="lightning is not installed: pip install 'lightning>=2.6.6'"
)


def spec_for(
    folder: Path,
    model: str,
    data: str = f"{USER_PACKAGE}DigitsData",
    *,
    arguments: dict[str, Any] | None = None,
    of_data: dict[str, Any] | None = None,
    epochs: int = 6,
    metric: str = "val/accuracy",
    every_s: float = 1e9,
) -> TrialSpec:
    config = {
        "model": {"_target_": model, **(arguments or {})},
        "data": {"_target_": data, **(of_data or {})},
        "optimizer": {"_target_": "torch.optim.Adam"},
        "trainer": {"max_epochs": epochs},
    }
    return TrialSpec("s", 7, 11, config, metric, "maximize", "last", folder, every_s)
