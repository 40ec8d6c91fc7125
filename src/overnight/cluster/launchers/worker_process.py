"""A worker: one process on this machine, which is restarted when something kills it."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

MAX_RESTARTS = 3  # in a row
HEALTHY_AFTER_S = 600.0  # a worker that ran for so long may be restarted MAX_RESTARTS times again
_LOG_TAIL_LINES = 12


@dataclass(frozen=True)
class WorkerExit:
    """How a worker ended.

    Args:
        code: The exit code as shells report it: 128 + N after signal N.
        machine: The name of the machine, or of the launcher if the machine is unknown.
        log_tail: The last lines that it printed, if it failed.
    """

    code: int
    machine: str
    log_tail: str = ""


class Workers(Protocol):
    """The workers of one launch. Every launcher has a class with these methods."""

    def poll(self) -> list[WorkerExit | None]:
        """Return how each worker ended, in order; None if it is running, queued, or about to be restarted."""
        ...

    def stop(self) -> None:
        """Ask every worker to save and stop. Returns at once."""
        ...

    def close(self) -> None:
        """Kill every worker that is running, and release all resources."""
        ...


def missing_package(launcher: str, package: str) -> list[str]:
    """Return the problem that a launcher's package is not installed, or nothing."""
    if sys.modules.get(package) is not None or (package not in sys.modules and importlib.util.find_spec(package)):
        return []
    return [
        f"launcher: {launcher} needs the package {package}; pip install 'overnight[{launcher}]', or use launcher=local"
    ]


class WorkerProcess:
    """A worker and its restarts.

    It is a process, not a thread or a Ray actor, because a supervisor needs signals and a main thread to fork from.

    Args:
        arguments: The arguments of the Python interpreter that runs the worker.
        log: The file to which its output is appended.
    """

    def __init__(self, arguments: Sequence[str], log: Path) -> None:
        self._arguments, self._log = list(arguments), log
        self._restarts, self._stopping = 0, False
        self._exit: WorkerExit | None = None
        self._start()

    def poll(self) -> WorkerExit | None:
        """Return how the worker ended; None if it is running. Restarts it if a signal killed it."""
        code = self._process.poll()
        if self._exit is not None or code is None:
            return self._exit
        if time.monotonic() - self._started_at > HEALTHY_AFTER_S:
            self._restarts = 0
        if code < 0 and not self._stopping and self._restarts < MAX_RESTARTS:
            self._restarts += 1
            self._start()
            return None
        self._exit = WorkerExit(
            code if code >= 0 else 128 - code, platform.node(), "" if code == 0 else self._read_log_tail()
        )
        return self._exit

    def stop(self) -> None:
        """Ask the worker to save and stop. Only the first call sends a signal, as a second one ends it at once."""
        if self._stopping:
            return
        self._stopping = True
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self._stopping = True
        self._process.kill()  # its trial processes die with it
        self._process.wait()

    def _start(self) -> None:
        self._log.parent.mkdir(parents=True, exist_ok=True)
        self._started_at = time.monotonic()
        watchdog = [sys.executable, "-P", "-m", "overnight.cluster.launchers.parent_watchdog", str(os.getpid())]
        with open(self._log, "ab") as log:
            self._process = subprocess.Popen(
                [*watchdog, sys.executable, *self._arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C in the terminal reaches the launcher alone
            )

    def _read_log_tail(self) -> str:
        return "\n".join(self._log.read_text(errors="replace").splitlines()[-_LOG_TAIL_LINES:])
