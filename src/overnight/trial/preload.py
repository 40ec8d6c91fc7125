"""Imported once by the forkserver, so that a trial process starts with the whole stack in memory."""

import contextlib
import gc
import os

# One thread a slot: two trials side by side on two cores finish several times sooner than one on two threads.
os.environ.setdefault("OMP_NUM_THREADS", "1")

from overnight.config import credentials
from overnight.system import child_process
from overnight.trial import process

# Whoever started this hid them, unless multiprocessing did so by itself, after a forkserver had died.
credentials.delete_secrets()

# Where the supervisor waits to hear that all of this is imported, if anybody does.
_imported: int | None = None


def _supervisor_lives() -> bool:
    global _imported
    if "OVERNIGHT_IMPORTED" in os.environ:
        try:
            _imported = os.open(os.environ["OVERNIGHT_IMPORTED"], os.O_WRONLY | os.O_NONBLOCK)
        except OSError:  # nobody reads it any more
            return False
    return True


# A forkserver would outlive a supervisor that is killed, the more so while it still imports.
child_process.die_with_parent(_supervisor_lives)
child_process.forkserver_pid = os.getpid()

# The collector would take a sixth of the time of these imports. What there is to collect, it finds once they are done.
gc.disable()

# All that comes with it: once torch and Lightning are there, the rest takes milliseconds (torchmetrics, which Lightning
# imports, has brought torchvision along).
from overnight.data import diabetes, digits, pictures, purchase  # noqa: E402
from overnight.models import cnn, mlp  # noqa: E402
from overnight.trial import fit  # noqa: E402

# The other name that people's networks know Lightning by, where it is installed: a tenth of a second in every trial.
with contextlib.suppress(Exception):  # a broken one is the business of those who use it
    import lightning.pytorch  # noqa: F401

fit.quiet()

if os.environ.pop("OVERNIGHT_NO_GPU", None):  # of this machine: what a trial starts may be told otherwise
    from overnight.trial import prewarm

    with contextlib.suppress(Exception):  # a trial would do without, and say what is wrong
        prewarm.get_warm()

# In a forked trial the first full collection would write to every object that was imported, and so copy it: half a
# second of a trial's first epoch.
gc.collect()
gc.freeze()
gc.enable()

if _imported is not None:
    with contextlib.suppress(OSError):
        os.write(_imported, b"1")

__all__ = ["cnn", "diabetes", "digits", "fit", "mlp", "pictures", "process", "purchase"]
