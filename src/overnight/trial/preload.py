"""Imported once by the forkserver, so that each trial process starts with the whole stack in memory."""

import contextlib
import gc
import os

# One thread per slot: on two cores, two trials side by side finish several times sooner than one with two threads.
os.environ.setdefault("OMP_NUM_THREADS", "1")

from overnight.config import credentials
from overnight.system import child_process
from overnight.trial import process

# The parent has hidden them already, unless multiprocessing restarted a forkserver that had died.
credentials.delete_secrets()

# Descriptor of the pipe on which the supervisor waits for the end of these imports; None if nothing waits.
_imported: int | None = None


def _supervisor_is_alive() -> bool:
    global _imported
    if "OVERNIGHT_IMPORTED" in os.environ:
        try:
            _imported = os.open(os.environ["OVERNIGHT_IMPORTED"], os.O_WRONLY | os.O_NONBLOCK)
        except OSError:  # the supervisor has closed it
            return False
    return True


# Otherwise the forkserver outlives a supervisor that is killed, above all during these imports.
child_process.die_with_parent(_supervisor_is_alive)
child_process.forkserver_pid = os.getpid()

# The garbage collector would take a sixth of the time of these imports. It runs once they are done.
gc.disable()

# All bundled components: after torch and Lightning, the rest takes milliseconds (torchmetrics, which Lightning
# imports, imports torchvision).
from overnight.data import diabetes, digits, images, purchase  # noqa: E402
from overnight.models import cnn, mlp  # noqa: E402
from overnight.trial import fit  # noqa: E402

# Lightning's other package, if it is installed: otherwise a tenth of a second in every trial that uses it.
with contextlib.suppress(Exception):  # a broken installation concerns only its users
    import lightning.pytorch  # noqa: F401

fit.silence_lightning()

if os.environ.pop("OVERNIGHT_NO_GPU", None):  # for this machine only; processes that a trial starts may see a GPU
    from overnight.trial import prewarm

    with contextlib.suppress(Exception):  # trials work without it, and report what is wrong
        prewarm.run_prewarm_trials()

# Without freeze, the first full collection in a forked trial writes to every imported object, and so copies its page:
# half a second of the first epoch.
gc.collect()
gc.freeze()
gc.enable()

if _imported is not None:
    with contextlib.suppress(OSError):
        os.write(_imported, b"1")

__all__ = ["cnn", "diabetes", "digits", "fit", "images", "mlp", "process", "purchase"]
