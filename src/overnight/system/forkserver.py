"""The warm forkserver: a process that has imported torch and Lightning, from which all others are forked."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
import time
import types
from collections.abc import Callable, Iterator, Mapping
from multiprocessing import forkserver as multiprocessing_forkserver
from multiprocessing import resource_tracker
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from multiprocessing.util import get_temp_dir
from typing import Any

import psutil

from overnight.config import credentials
from overnight.system import devices
from overnight.system.kill import discard

IMPORTED = "OVERNIGHT_IMPORTED"  # environment variable: path of the pipe that reports how the imports ended
IMPORTED_ALL = b"imported"  # the report of success; any other report is the error in one line
_REPORT_BYTES = 4096  # of that pipe, which the kernel writes and reads at once
_POLL_S, _ENDS_WITHIN_S = 0.05, 1.0
_NO_GPU = "OVERNIGHT_NO_GPU"  # environment variable: set if no trial will use a GPU
_TUNABLES = "GLIBC_TUNABLES"
_PRELOAD = ["overnight.trial.preload"]
_imported: int | None = None  # descriptor of that pipe
_is_warm = False  # whether that pipe has reported success
_forking = threading.Lock()  # one process starts at a time, because __main__ is hidden meanwhile


class ImportsFailed(RuntimeError):
    """The forkserver could not import torch, Lightning or overnight itself, so no trial can start."""


def warm_up() -> None:
    """Start the forkserver, which imports the stack in the background."""
    global _imported
    multiprocessing_forkserver.set_forkserver_preload(_PRELOAD)
    if _imported is None:
        path = os.path.join(get_temp_dir(), "imported")
        os.mkfifo(path)
        _imported = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        os.environ[IMPORTED] = path
    # The terminal and systemd send their signals to every process. Only the supervisor handles them, and makes the
    # trials save; a forkserver that died would take all trials along. All children inherit the signal mask.
    with credentials.hidden_secrets():
        resource_tracker.ensure_running()  # the forkserver needs it, and starting it would reset the mask
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM, signal.SIGHUP})
    try:
        with _forking, _no_main(), credentials.hidden_secrets(), _environment(_forkserver_variables()):
            multiprocessing_forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def is_warm(within_s: float = 0.0) -> bool:
    """Return whether the forkserver has imported the stack. Until then a fork blocks, and signals with it.

    Args:
        within_s: how long to wait for it, in seconds.

    Raises:
        ImportsFailed: an import failed, or the forkserver ended during its imports.
    """
    global _is_warm
    assert _imported is not None, "call warm_up first"
    until = time.monotonic() + within_s
    while not _is_warm and wait([_imported], timeout=max(0.0, until - time.monotonic())):
        report = os.read(_imported, _REPORT_BYTES)  # empty if nothing has the other end open
        if not report and _is_running():  # it is about to end; or a system that does not wait for the first opening
            if time.monotonic() >= until:
                break
            time.sleep(_POLL_S)
        elif report == IMPORTED_ALL:
            _is_warm = True
        else:
            reason = report.decode(errors="replace") or "the process that imports them ended"
            raise ImportsFailed(
                f"environment: torch, pytorch-lightning and overnight must be importable, got {reason}; "
                "install overnight again, and look for files in the start folder with the name of a library"
            )
    return _is_warm


def _is_running() -> bool:
    pid = multiprocessing_forkserver._forkserver._forkserver_pid  # type: ignore[attr-defined]
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def fork(target: Callable[..., None], *args: Any) -> BaseProcess:
    """Fork a process from the warm forkserver that calls `target`. `args` must be picklable.

    Raises:
        ImportsFailed: the forkserver could not import the stack.
    """
    if _imported is None:
        warm_up()
    context = multiprocessing.get_context("forkserver")
    with _forking, _no_main():
        process = context.Process(target=target, args=args, daemon=False)
        try:
            process.start()  # blocks until the imports have ended
        except (EOFError, OSError):
            is_warm(within_s=_ENDS_WITHIN_S)
            raise
    try:
        is_warm()
    except ImportsFailed:
        discard(process)
        raise
    return process


def _forkserver_variables() -> dict[str, str]:
    """Return the variables that the forkserver gets in addition.

    Its C library asks for huge pages. A fork and its exit walk through every page of the half gigabyte of imports,
    which takes 21 ms instead of 30 ms.
    """
    of_user = os.environ.get(_TUNABLES)
    tunables = {_TUNABLES: ":".join(["glibc.malloc.hugetlb=1", *([of_user] if of_user else [])])}
    return {**tunables, _NO_GPU: "1"} if sys.platform == "linux" and devices.no_gpu() else tunables


@contextlib.contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Set variables for the processes that start in this block."""
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
    """Hide __main__ while a process starts. Multiprocessing would import the user's script in every trial, and a
    script without a guard would start a study there."""
    main = sys.modules["__main__"]
    sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main
