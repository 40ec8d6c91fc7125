"""The warm forkserver: a process that has imported the stack, from which every other process is forked."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
import types
from collections.abc import Callable, Iterator, Mapping
from multiprocessing import forkserver as multiprocessing_forkserver
from multiprocessing import resource_tracker
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from multiprocessing.util import get_temp_dir
from typing import Any

from overnight.config import credentials
from overnight.system import devices

IMPORTED = "OVERNIGHT_IMPORTED"  # the environment's name of the file to which the forkserver says that it has imported
_NO_GPU = "OVERNIGHT_NO_GPU"  # in its environment where no trial will be for one
_TUNABLES = "GLIBC_TUNABLES"
_PRELOAD = ["overnight.trial.preload"]
_imported: int | None = None  # the descriptor on which it says so


def warm_up() -> None:
    """Start the forkserver, which imports the stack while the caller does something else."""
    global _imported
    multiprocessing_forkserver.set_forkserver_preload(_PRELOAD)
    if _imported is None:
        path = os.path.join(get_temp_dir(), "imported")
        os.mkfifo(path)
        _imported = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        os.environ[IMPORTED] = path
    # What the terminal or systemd sends goes to every process there is. Only the supervisor heeds it, and tells the
    # trials to save; a forkserver that died of it would take them all along. The mask is inherited, for good.
    with credentials.hidden_secrets():
        resource_tracker.ensure_running()  # the forkserver wants one, and starting it would lift the mask
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM, signal.SIGHUP})
    try:
        with _no_main(), credentials.hidden_secrets(), _environment(_of_the_forkserver()):
            multiprocessing_forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def is_warm(within_s: float = 0.0) -> bool:
    """Whether the forkserver has imported the stack; until then a fork would wait for it, deaf to signals."""
    assert _imported is not None, "warm_up comes first"
    return bool(wait([_imported], timeout=within_s))


def fork(target: Callable[..., None], *args: Any) -> BaseProcess:
    """A process forked from the warm forkserver that calls `target`; `args` must pickle."""
    if _imported is None:
        warm_up()
    context = multiprocessing.get_context("forkserver")
    with _no_main():
        process = context.Process(target=target, args=args, daemon=False)
        process.start()
    return process


def _of_the_forkserver() -> dict[str, str]:
    """What the forkserver finds in its environment besides.

    Its C library is to ask for huge pages, where the system gives them to who asks: a fork, and the end of what was
    forked, go through every page of the half gigabyte that is imported, 21 ms, where small pages alone take 30.
    """
    theirs = os.environ.get(_TUNABLES)  # which are heeded
    told = {_TUNABLES: ":".join(["glibc.malloc.hugetlb=1", *([theirs] if theirs else [])])}
    return {**told, _NO_GPU: "1"} if sys.platform == "linux" and devices.no_gpu() else told


@contextlib.contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Have a process that starts in this block find these in its environment."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextlib.contextmanager
def _no_main() -> Iterator[None]:
    """Hide __main__ while a process starts: multiprocessing would run the caller's script again in every trial, and
    a script without a guard would then start a study in each."""
    main = sys.modules["__main__"]
    sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main
