"""Imported once by the forkserver, so that a trial process starts with the whole stack in memory."""

import os

# One thread a slot: two trials side by side on two cores finish several times sooner than one on two threads.
os.environ.setdefault("OMP_NUM_THREADS", "1")

from overnight.trial import fit, process  # noqa: E402

# A forkserver outlives a supervisor that is killed, unless the kernel is told.
process.die_with_parent()

__all__ = ["fit", "process"]
