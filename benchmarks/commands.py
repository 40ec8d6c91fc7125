"""Runs one command, and counts what it and every process that came of it took."""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil

ROOT = Path(__file__).parents[1]
_LAST_WORDS = 3000  # characters of what a command that failed has printed
_LINGER_S = 15.0
_PR_SET_CHILD_SUBREAPER = 36


@dataclass(frozen=True)
class Ran:
    """How a command went. started_at, in seconds since 1970, and wall_s: until its own process ended.

    cpu_s: user and system seconds of all its processes. peak_mib: the most memory that its own process, or a child
    that it waited for itself, had resident.
    """

    started_at: float
    wall_s: float
    cpu_s: float
    peak_mib: float
    output: str


def python(
    *arguments: str, folder: Path, environment: Mapping[str, str] | None = None, timeout_s: float = 900.0
) -> Ran:
    """Run this interpreter with `arguments`; its scratch goes into `folder`. Raises RuntimeError where it fails.

    The CPU time is the kernel's own sum. A trial is a child of the forkserver, and that outlives its parent: nobody
    here could wait for them. So this process has the kernel hand it every orphan meanwhile (PR_SET_CHILD_SUBREAPER),
    and waits for all: what a process took reaches us through its parent, which waited for it, or directly. Nothing is
    sampled, nothing that ends early is missed. Linux only; elsewhere orphans are missing from cpu_s.
    """
    others = _children()
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    variables = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "PYTHONWARNINGS": "ignore", **(environment or {})}
    before = _children_cpu_s()
    log = folder / "output.txt"
    with _orphans_are_ours(), open(log, "ab") as output:
        started_at, started = time.time(), time.perf_counter()
        process = subprocess.Popen(
            [sys.executable, *arguments], cwd=ROOT, env=variables, stdout=output, stderr=output, start_new_session=True
        )
        timer = _alarm(process.pid, timeout_s)
        _, status, usage = os.wait4(process.pid, 0)
        wall_s = time.perf_counter() - started
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, timer)
        process.returncode = os.waitstatus_to_exitcode(status)
        _bury_orphans(others)
    text = log.read_text(errors="replace")
    if process.returncode != 0:
        line = " ".join(arguments)
        raise RuntimeError(f"`python {line}` ended with {process.returncode}:\n{text[-_LAST_WORDS:]}")
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return Ran(started_at, wall_s, _children_cpu_s() - before, usage.ru_maxrss / unit, text)


def counts_all_cpu() -> bool:
    return sys.platform == "linux"


def _children_cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _alarm(pid: int, timeout_s: float) -> object:
    def kill(*_: object) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)

    before = signal.signal(signal.SIGALRM, kill)
    signal.setitimer(signal.ITIMER_REAL, timeout_s)
    return before


@contextlib.contextmanager
def _orphans_are_ours() -> Iterator[None]:
    if not counts_all_cpu():
        yield
        return
    library = ctypes.CDLL(None)
    library.prctl(_PR_SET_CHILD_SUBREAPER, 1)
    try:
        yield
    finally:
        library.prctl(_PR_SET_CHILD_SUBREAPER, 0)


def _bury_orphans(others: set[int]) -> None:
    """Wait for what the command left behind, which ends by itself: all children but `others`, there before."""
    deadline = time.monotonic() + _LINGER_S
    while left := _children() - others:
        for pid in left:
            os.waitpid(pid, os.WNOHANG)
        if time.monotonic() > deadline:
            raise RuntimeError(f"a command left processes behind that were there {_LINGER_S:.0f} s later: {left}")
        time.sleep(0.01)


def _children() -> set[int]:
    return {child.pid for child in psutil.Process().children()}
