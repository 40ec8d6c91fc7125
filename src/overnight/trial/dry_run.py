"""A configuration is tried: one training batch and one validation batch, in a process forked for it; or its data."""

from __future__ import annotations

import contextlib
import io
import math
import os
import re
import resource
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from typing import Any, TextIO

from overnight.protocol import Alive, DataSpec, Decision, DryRunResult, EpochEnd, TrialSpec, Up
from overnight.system import child_process
from overnight.trial import targets

_BAR = re.compile(r"(\d+)%\|")
# What would keep the first epoch from ending after one batch, with validation.
_SHORT = {
    "limit_train_batches": 1,
    "limit_val_batches": 1,
    "check_val_every_n_epoch": 1,
    "val_check_interval": None,
    "accumulate_grad_batches": 1,
}


def main(connection: Connection) -> None:
    """Try what `connection` brings, send one Rehearsed, and do not return.

    It brings a spec to train and configs to build, or a DataSpec.
    """
    import multiprocessing

    child_process.begin()
    multiprocessing.set_start_method("fork", force=True)
    try:
        asked = connection.recv()
    except (EOFError, OSError):  # somebody pressed Ctrl-C before it was said
        os._exit(0)
    if isinstance(asked, DataSpec) or asked[0].device == "cpu":
        child_process.disable_gpus()
    terminal, devnull = os.fdopen(os.dup(2), "w"), os.open(os.devnull, os.O_WRONLY)
    child_process.redirect_output(devnull)
    bars = Bars(terminal, lambda: connection.send(Alive(0)))
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(bars):
        tried = get_ready(asked) if isinstance(asked, DataSpec) else dry_run_batch(*asked)
    with contextlib.suppress(OSError):
        connection.send(tried)
    os._exit(0)


def dry_run_batch(spec: TrialSpec, builds: list[dict[str, Any]]) -> DryRunResult:
    """Train `spec` for one batch; of each other config no more than data module and model are built."""
    from overnight.trial.fit import build, fit

    problems = list(_misnamed(spec.config))
    link = _Link()
    if not problems:
        trainer = {**spec.config["trainer"], **_SHORT, "max_epochs": max(2, spec.config["trainer"]["max_epochs"])}
        shortened = TrialSpec(**{**vars(spec), "config": {**spec.config, "trainer": trainer}})
        try:
            fit(shortened, link)
        except BaseException as error:
            problems.append(_told(error))
    for config in builds if not problems else ():
        try:
            build(config)
        except BaseException as error:
            problems.append(_told(error))
    return DryRunResult(spec.number, link.metrics, tuple(dict.fromkeys(problems)), link.own_bytes)


def get_ready(asked: DataSpec) -> DryRunResult:
    """Fetch the data of each config and read it; what files are lacking is told, and nothing else."""
    from overnight.trial.fit import build_data

    problems = []
    for config in asked.configs:
        try:
            data = build_data(config, asked.cache)
            data.prepare_data()
            data.setup("fit")
        except OSError as error:
            problems.append(_told(error))
        except Exception:  # somebody's own module may want a Trainer, or a GPU: its trials tell
            continue
    return DryRunResult(0, None, tuple(dict.fromkeys(problems)), 0)


class Bars(io.TextIOBase):
    """A stream that passes on progress bars, as tqdm and pip draw them, and nothing else: a download has to be seen.

    moved: called at most once a second while one moves. Where `terminal` is none, a line every ten seconds is enough.
    """

    def __init__(self, terminal: TextIO, moved: Callable[[], None]) -> None:
        self._terminal, self._moved = terminal, moved
        self._told_at = self._drawn_at = -math.inf
        self._ended = ""
        self._open = False  # a bar stands there, and its line has not ended

    def write(self, text: str) -> int:
        now = time.monotonic()
        bar = _BAR.search(text)
        if bar is None:
            if self._open and text.endswith("\n"):
                self._draw("\n")
                self._open = False
            return len(text)
        if now - self._told_at >= 1:
            self._told_at = now
            self._moved()
        if self._terminal.isatty():
            self._draw(text)
            self._open = True
        elif now - self._drawn_at >= 10 or (bar[1] == "100" and text.partition("[")[0] != self._ended):
            self._drawn_at = now
            self._draw(text.strip() + "\n")
        self._ended = text.partition("[")[0] if bar[1] == "100" else ""  # which tqdm may say once more as it closes
        return len(text)

    def _draw(self, text: str) -> None:
        with contextlib.suppress(OSError, ValueError):  # whoever looked has gone
            self._terminal.write(text)
            self._terminal.flush()


class _Link:
    """A supervisor that has heard enough after one epoch."""

    metrics: tuple[str, ...] | None = None
    own_bytes = 0

    def send(self, message: Up) -> None:
        pass

    def ask(self, message: EpochEnd) -> Decision:
        self.metrics, self.own_bytes = tuple(sorted(message.metrics)), _own_bytes()
        return Decision.STOP

    def stop_wanted(self) -> bool:
        return False


def _own_bytes() -> int:
    """The most that this process has held of its own: what it shares with the forkserver is not counted."""
    import psutil

    now = psutil.Process().memory_full_info()
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return int(now.uss + max(most - now.rss, 0))


def _misnamed(config: dict[str, Any]) -> Iterator[str]:
    """What is wrong with each component's _target_."""
    for node in ("data", "model", "optimizer", "schedule"):
        try:
            targets.find_all(config, node)
        except ImportError as error:
            yield str(error)


def _told(error: BaseException) -> str:
    """An exception as one line: what it is about, what it said, and where in a person's code it arose."""
    cause: BaseException = error
    while type(cause).__name__ == "InstantiationException" and cause.__cause__ is not None:
        cause = cause.__cause__
    text = " ".join(str(cause).split())
    lower = text.lower()
    if re.match(r"(data|model|optimizer|schedule|trainer)(\.\w+)*: ", text):
        return text  # its own words name the key
    said = f"{type(cause).__name__}: {text}" if text else type(cause).__name__
    said += _where(cause)
    if "precision" in lower:
        return f"trainer.precision: must be one that Lightning's Trainer takes; {said}"
    if isinstance(cause, MemoryError) or "out of memory" in lower or "can't allocate memory" in lower:
        return f"memory: must hold a trial; take a smaller batch or model; {said}"
    if "target" in lower and "out of bounds" in lower:
        return f"data: each label must be from 0 to below the number of the model's outputs; {said}"
    if "output size is too small" in lower or "kernel size can't be greater than actual input size" in lower:
        return f"model: the image must be larger than its convolutions and pooling leave of it; {said}"
    return f"conf: must train; {said}"


def _where(error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    installed = (os.sep + "site-packages" + os.sep, os.sep + "lib" + os.sep + "python", os.sep + "overnight" + os.sep)
    theirs = [f for f in frames if not any(part in f.filename for part in installed)]
    return f" ({theirs[-1].filename}:{theirs[-1].lineno}, in {theirs[-1].name})" if theirs else ""
