"""Imported once by the forkserver, so that each trial process starts with the whole stack in memory."""

import contextlib
import gc
import importlib
import os

# One thread per slot: on two cores, two trials side by side finish several times sooner than one with two threads.
os.environ.setdefault("OMP_NUM_THREADS", "1")

from overnight.config import credentials
from overnight.system import child_process
from overnight.system.errors import one_line
from overnight.system.forkserver import IMPORTED, IMPORTED_ALL

# The parent has hidden them already, unless multiprocessing restarted a forkserver that had died.
credentials.delete_secrets()

# Descriptor of the pipe on which the supervisor waits for the report of these imports; None if nothing waits.
_imported: int | None = None


def _supervisor_is_alive() -> bool:
    global _imported
    if IMPORTED in os.environ:
        try:
            _imported = os.open(os.environ[IMPORTED], os.O_WRONLY | os.O_NONBLOCK)
        except OSError:  # the supervisor has closed it
            return False
    return True


# Otherwise the forkserver outlives a supervisor that is killed, above all during these imports.
child_process.die_with_parent(_supervisor_is_alive)
child_process.forkserver_pid = os.getpid()


# All bundled components: after torch and Lightning, the rest takes milliseconds (torchmetrics, which
# Lightning imports, imports torchvision).
_DATA_AND_MODELS = ("data.diabetes", "data.digits", "data.images", "data.purchase", "models.cnn", "models.mlp")


def _import_stack() -> None:
    gc.disable()  # the garbage collector would take a sixth of the time of these imports; it runs once they are done
    for name in (*_DATA_AND_MODELS, "trial.fit", "trial.process"):
        importlib.import_module(f"overnight.{name}")
    # Lightning's other package, if it is installed: otherwise a tenth of a second in every trial that uses it.
    with contextlib.suppress(Exception):  # a broken installation concerns only its users
        importlib.import_module("lightning.pytorch")
    from overnight.trial import fit

    fit.silence_lightning()
    if os.environ.pop("OVERNIGHT_NO_GPU", None):  # for this machine only; processes that a trial starts may see a GPU
        from overnight.trial import prewarm

        with contextlib.suppress(Exception):  # trials work without it, and report what is wrong
            prewarm.run_prewarm_trials()
    # Without freeze, the first full collection in a forked trial writes to every imported object, and so copies its
    # page: half a second of the first epoch.
    gc.collect()
    gc.freeze()
    gc.enable()


def _report(report: bytes) -> None:
    if _imported is not None:
        with contextlib.suppress(OSError):  # the supervisor is gone
            os.write(_imported, report)


try:
    _import_stack()
except BaseException as error:
    # Multiprocessing ignores an ImportError, and the supervisor would wait for the end of the imports for ever.
    _report(one_line(error).encode())
    raise
_report(IMPORTED_ALL)
