"""Imported once by the forkserver, so that a trial process starts with the whole stack in memory."""

import gc
import os

# One thread a slot: two trials side by side on two cores finish several times sooner than one on two threads.
os.environ.setdefault("OMP_NUM_THREADS", "1")

from overnight.trial import process

# A forkserver would outlive a supervisor that is killed, the more so while it still imports.
process.die_with_parent()

from overnight.trial import fit  # noqa: E402

# In a forked trial the first full collection would write to every object that was imported, and so copy it: half a
# second of a trial's first epoch.
gc.collect()
gc.freeze()

__all__ = ["fit", "process"]
