"""Runs a command that ends, with every process that it has started, when the process that started it ends.

    python -m overnight.system.tether COMMAND...

waits for the end of its standard input, a pipe that the system closes however the other process ends, also at SIGKILL.
A signal from the kernel at the death of a parent would reach the command alone, and not the workers that it starts.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import threading
from typing import Any

import psutil

_PR_SET_CHILD_SUBREAPER = 36  # prctl(2): orphans below this process become its children
_EXIT_TIMEOUT_S = 3.0  # after SIGTERM
_POLL_S = 0.1


def start(command: list[str], **options: Any) -> subprocess.Popen[Any]:
    """Start a command that ends with this process. It has a session of its own.

    Args:
        options: Options of Popen.
    """
    tether = [sys.executable, "-P", "-m", "overnight.system.tether"]
    return subprocess.Popen([*tether, *command], stdin=subprocess.PIPE, start_new_session=True, **options)


def end(process: subprocess.Popen[Any]) -> None:
    """End a command that `start` has started, and wait until all of its processes are gone."""
    assert process.stdin is not None
    process.stdin.close()
    try:
        process.wait(3 * _EXIT_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def main(command: list[str]) -> None:
    """Run the command until it ends or standard input does. Exits with its code."""
    over = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: over.set())
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1)
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL)

    def wait_for_end_of_input() -> None:
        while os.read(0, 4096):
            pass
        over.set()

    threading.Thread(target=wait_for_end_of_input, daemon=True).start()
    while process.poll() is None and not over.wait(_POLL_S):
        pass
    below = psutil.Process().children(recursive=True)  # without a subreaper, orphans are no longer below this process
    if process.poll() is None:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_EXIT_TIMEOUT_S)
    code = process.poll()
    _kill(below)
    while found := psutil.Process().children(recursive=True):  # those that started meanwhile
        _kill(found)
    code = process.wait() if code is None else code
    os._exit(code if code >= 0 else 128 - code)


def _kill(processes: list[psutil.Process]) -> None:
    """Kill processes, also those that left the session, and wait until they are gone. Ended ones are no error."""
    for process in processes:
        with contextlib.suppress(psutil.Error):
            process.kill()
    psutil.wait_procs(processes, timeout=_EXIT_TIMEOUT_S)


if __name__ == "__main__":
    main(sys.argv[1:])
