"""One worker: a process of its own on this machine, started again when something kills it."""

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

# How often in a row a worker that is killed is started again; one that lived so many seconds was well.
RESTARTS, WELL_AFTER_S = 3, 600.0
# Lines of a worker's log that are told when it fails.
_TAIL = 12


@dataclass(frozen=True)
class Ended:
    """How a worker ended. code: as shells have it, 128 + N after signal N. where: the machine. tail: its last lines."""

    code: int
    where: str
    tail: str = ""


class Workers(Protocol):
    """The workers of one launch, wherever they run."""

    def poll(self) -> list[Ended | None]:
        """How each ended, in order; None for one that runs, or waits for its place, or is to be started again."""
        ...

    def stop(self) -> None:
        """Have every one save and stop; returns at once."""
        ...

    def close(self) -> None:
        """Let go of everything; whatever runs still is killed."""
        ...


def lacking(launcher: str, package: str) -> list[str]:
    """What to say where a launcher's package is not installed."""
    if sys.modules.get(package) is not None or (package not in sys.modules and importlib.util.find_spec(package)):
        return []
    return [
        f"launcher: {launcher} needs the package {package}; pip install 'overnight[{launcher}]', or take launcher=local"
    ]


class Child:
    """A worker as whoever watches over it on its machine has it.

    It is a process for itself, not a thread or an actor: a supervisor wants signals, and a main thread to fork from.

    arguments: of the Python that runs this. log: what it prints is added there.
    """

    def __init__(self, arguments: Sequence[str], log: Path) -> None:
        self._arguments, self._log = list(arguments), log
        self._restarts, self._stopping = 0, False
        self._ended: Ended | None = None
        self._start()

    @property
    def pid(self) -> int:
        return self._process.pid

    def poll(self) -> Ended | None:
        code = self._process.poll()
        if self._ended is not None or code is None:
            return self._ended
        if time.monotonic() - self._started > WELL_AFTER_S:
            self._restarts = 0
        if code < 0 and not self._stopping and self._restarts < RESTARTS:  # nobody of ours did that
            self._restarts += 1
            self._start()
            return None
        self._ended = Ended(code if code >= 0 else 128 - code, platform.node(), "" if code == 0 else self._tail())
        return self._ended

    def stop(self) -> None:
        """Have it save and stop; said twice is said once, as a second signal would end it as it is."""
        if self._stopping:
            return
        self._stopping = True
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self._stopping = True
        self._process.kill()  # its trials die with it
        self._process.wait()

    def _start(self) -> None:
        self._log.parent.mkdir(parents=True, exist_ok=True)
        self._started = time.monotonic()
        leash = [sys.executable, "-P", "-m", "overnight.cluster.launchers.parent_watchdog", str(os.getpid())]
        with open(self._log, "ab") as log:
            self._process = subprocess.Popen(
                [*leash, sys.executable, *self._arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # a terminal's Ctrl-C is the launcher's
            )

    def _tail(self) -> str:
        return "\n".join(self._log.read_text(errors="replace").splitlines()[-_TAIL:])
