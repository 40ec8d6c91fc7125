"""A process is killed a hundred times while it writes a checkpoint."""

from __future__ import annotations

import random
import time
from multiprocessing import Pipe
from pathlib import Path

import pytest
import torch

from overnight.system import forkserver
from overnight.trial import checkpoint
from support.checkpoint_writer import write_states

pytestmark = pytest.mark.chaos
KILLS = 100


def test_a_writer_killed_a_hundred_times_leaves_an_intact_state_every_time(tmp_path: Path, rng: random.Random) -> None:
    forkserver.warm_up()
    assert forkserver.is_warm(within_s=60)
    inside = 0
    for _ in range(KILLS):
        receiver, sender = Pipe(duplex=False)
        writer = forkserver.fork(write_states, tmp_path, sender)
        sender.close()
        assert receiver.poll(60)
        time.sleep(rng.uniform(0, 0.05))
        writer.kill()
        writer.join()
        saved = -1
        try:
            while receiver.poll():
                saved = receiver.recv()
        except EOFError:
            pass
        receiver.close()
        state, refused = checkpoint.load(tmp_path)
        assert state is not None
        assert refused == [], "the newest is intact, and the previous one is not needed"
        assert saved <= state["step"] <= saved + 1, "what was reported as saved is saved"
        assert torch.equal(state["weights"], torch.full((50_000,), float(state["step"])))
        inside += (tmp_path / "state.ckpt.writing").exists()
    assert inside > KILLS // 10, "many kills hit a write"
