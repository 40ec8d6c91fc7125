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
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
# A mid-sized part of a command's lines are kept for a failure's message.
_LAST_WORDS = 3000
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

    The CPU time is the kernel's own sum. A trial is a child of the forkserver, not of ours, and outlives nobody; so
    this process has the kernel hand it every orphan (PR_SET_CHILD_SUBREAPER), and waits for all: what a process took
    then reaches us either through its parent, which waited for it, or directly. Nothing is sampled, nothing that ends
    early is missed. Linux only; elsewhere orphans are missing from cpu_s, and `counts_all_cpu` is False.
    """
    if counts_all_cpu():
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1)
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    variables = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "PYTHONWARNINGS": "ignore", **(environment or {})}
    before = _children_cpu_s()
    log = folder / "output.txt"
    with open(log, "ab") as output:
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
    _bury_orphans()
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


def _alarm(pid: int, timeout_s: float) -> signal.Handlers:
    def kill(*_: object) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)

    before = signal.signal(signal.SIGALRM, kill)
    signal.setitimer(signal.ITIMER_REAL, timeout_s)
    return before  # type: ignore[return-value]


def _bury_orphans() -> None:
    """Wait for what the command left behind; it ends by itself, or is ended."""
    deadline = time.monotonic() + _LINGER_S
    while True:
        try:
            pid, _ = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if pid == 0:
            if time.monotonic() > deadline:
                raise RuntimeError(f"a command left processes behind that were there {_LINGER_S:.0f} s later")
            time.sleep(0.01)
