"""Overnight as a process of its own, and how late a loaded machine may be."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from support.paths import python_path

# What is promised in seconds is asked for in so many times as many: other people's work shares the machine.
LATE = 2.0
# The rest of a line that tunes six short trials.
SMALL = ("study.trials=6", "trainer.max_epochs=6", "pruner.startup_trials=2", "pruner.warmup_epochs=1")


def start(*arguments: str, **options: Any) -> subprocess.Popen[Any]:
    """Start the command line, silent unless `options`, subprocess.Popen's, say otherwise; it finds user_networks."""
    path = python_path()
    given = {"stdout": subprocess.DEVNULL, "env": {**os.environ, "PYTHONPATH": path}, **options}
    return subprocess.Popen([sys.executable, "-m", "overnight", *arguments], **given)


@contextmanager
def running(*arguments: str, **options: Any) -> Iterator[subprocess.Popen[Any]]:
    """The same, waited for at the end; where the test fails before that, it is killed."""
    with start(*arguments, **options) as process:
        try:
            yield process
        except BaseException:
            process.kill()
            raise
