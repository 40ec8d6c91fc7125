"""Run one command and measure the time and memory of it and of all its descendants."""

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
_OUTPUT_TAIL = 3000  # characters of the output of a failed command in the error
_LINGER_S = 15.0
_PR_SET_CHILD_SUBREAPER = 36


@dataclass(frozen=True)
class Ran:
    """The result of a command.

    Attributes:
        started_at: Start, in seconds since 1970.
        wall_s: Seconds until its own process ended.
        cpu_s: User and system seconds of all its processes.
        peak_mib: Peak resident memory of its own process, or of a child that it waited for.
        output: stdout and stderr.
    """

    started_at: float
    wall_s: float
    cpu_s: float
    peak_mib: float
    output: str


def python(
    *arguments: str, folder: Path, environment: Mapping[str, str] | None = None, timeout_s: float = 900.0
) -> Ran:
    """Run this interpreter with `arguments`. Its output goes into `folder`.

    The kernel sums the CPU time of a process and of the children that it waited for. A trial is a child of the
    forkserver, which outlives its own parent. This process therefore adopts all orphans (PR_SET_CHILD_SUBREAPER) and
    waits for them, so that the time of every descendant is counted. This works on Linux only. On other systems cpu_s
    lacks the time of orphans.

    Raises:
        RuntimeError: The command failed.
    """
    others = _children()
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    variables = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "PYTHONWARNINGS": "ignore", **(environment or {})}
    before = _children_cpu_s()
    log = folder / "output.txt"
    with _adopt_orphans(), open(log, "ab") as output:
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
        _wait_for_orphans(others)
    text = log.read_text(errors="replace")
    if process.returncode != 0:
        line = " ".join(arguments)
        raise RuntimeError(f"`python {line}` ended with {process.returncode}:\n{text[-_OUTPUT_TAIL:]}")
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
def _adopt_orphans() -> Iterator[None]:
    if not counts_all_cpu():
        yield
        return
    library = ctypes.CDLL(None)
    library.prctl(_PR_SET_CHILD_SUBREAPER, 1)
    try:
        yield
    finally:
        library.prctl(_PR_SET_CHILD_SUBREAPER, 0)


def _wait_for_orphans(others: set[int]) -> None:
    """Wait until the remaining processes of the command have ended: all children except `others`."""
    deadline = time.monotonic() + _LINGER_S
    while remaining := _children() - others:
        for pid in remaining:
            os.waitpid(pid, os.WNOHANG)
        if time.monotonic() > deadline:
            raise RuntimeError(
                f"processes of the command are still running {_LINGER_S:.0f} s after its end: {remaining}"
            )
        time.sleep(0.01)


def _children() -> set[int]:
    return {child.pid for child in psutil.Process().children()}
