"""Run the overnight command in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from support.paths import python_path

# Tolerance of tests with time limits, because other load shares the machine.
LATE = 2.0
# Overrides that tune six short trials.
SMALL = (
    "study.trials=6",
    "trainer.max_epochs=6",
    "scheduler=median",
    "scheduler.startup_trials=2",
    "scheduler.warmup_epochs=1",
)


def start(*arguments: str, **options: Any) -> subprocess.Popen[Any]:
    """Start the command with the user networks on its path, without output unless `options` of Popen redirect it."""
    path = python_path()
    given = {"stdout": subprocess.DEVNULL, "env": {**os.environ, "PYTHONPATH": path}, **options}
    return subprocess.Popen([sys.executable, "-m", "overnight", *arguments], **given)


@contextmanager
def running(*arguments: str, **options: Any) -> Iterator[subprocess.Popen[Any]]:
    """Start the command and wait for it at the end; kill it if the test fails."""
    with start(*arguments, **options) as process:
        try:
            yield process
        except BaseException:
            process.kill()
            raise
