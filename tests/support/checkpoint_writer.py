"""A process that saves checkpoints. In a module of its own, so that its processes import no pytest."""

from __future__ import annotations

import itertools
from multiprocessing.connection import Connection
from pathlib import Path

import torch

from overnight.trial import checkpoint


def write_states(folder: Path, sender: Connection) -> None:
    """Save a checkpoint after the other, starting at the stored one, and send the step of each saved one."""
    state, refused = checkpoint.load(folder)
    assert not refused
    for step in itertools.count(state["step"] + 1 if state else 0):
        checkpoint.save(folder, {"step": step, "weights": torch.full((50_000,), float(step))})
        sender.send(step)
