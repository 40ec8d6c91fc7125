"""A process that saves states; apart from its test, so that a hundred of them need not import pytest."""

from __future__ import annotations

import itertools
from multiprocessing.connection import Connection
from pathlib import Path

import torch

from overnight.trial import checkpoint


def write_on(folder: Path, told: Connection) -> None:
    """Save states for ever, from the one there is; say after each that it is saved."""
    state, refused = checkpoint.load(folder)
    assert not refused
    for step in itertools.count(state["step"] + 1 if state else 0):
        checkpoint.save(folder, {"step": step, "weights": torch.full((50_000,), float(step))})
        told.send(step)
