"""Dry runs: train a configuration for one batch in a forked process, or prepare its data, before the study starts."""

from __future__ import annotations

import contextlib
import io
import math
import multiprocessing
import os
import re
import resource
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import replace
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Any, TextIO

from overnight.protocol import Alive, ClassSpec, DataSpec, Decision, DryRunResult, Progress, TrialMessage, TrialSpec
from overnight.system import child_process

if TYPE_CHECKING:
    from overnight.trial.one_batch import OneBatchEpochs

_PROGRESS_BAR = re.compile(r"(\d+)%\|")
_LINE_EVERY_S = 10.0  # of a progress bar, where the output is no terminal
# A dry run ends once the study's metric is logged, or else after so many epochs and the first validation.
_MOST_EPOCHS = 10


def main(connection: Connection) -> None:
    """Receive a job, send one DryRunResult and exit.

    Args:
        connection: brings a DataSpec, a ClassSpec, or a TrialSpec to train and a list of configurations to build.
    """
    child_process.begin()
    multiprocessing.set_start_method("fork", force=True)
    try:
        job = connection.recv()
    except (EOFError, OSError):  # the user pressed Ctrl-C before there was a job
        os._exit(0)
    if isinstance(job, DataSpec | ClassSpec) or job[0].device == "cpu":
        child_process.disable_gpus()
    terminal, devnull = os.fdopen(os.dup(2), "w", errors="replace"), os.open(os.devnull, os.O_WRONLY)
    child_process.redirect_output(devnull)

    def show_life(waits_for: str = "") -> None:
        connection.send(Alive(0, waits_for))

    bars = ProgressBars(terminal, show_life)
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(bars):
        if isinstance(job, DataSpec):
            result = prepare_data(job, show_life)
        elif isinstance(job, ClassSpec):
            result = check_classes(job)
        else:
            result = dry_run_batch(job[0], job[1], show_life)
    with contextlib.suppress(OSError):
        connection.send(result)
    os._exit(0)


def dry_run_batch(
    spec: TrialSpec, builds: list[dict[str, Any]], show_life: Callable[[str], None] = lambda _: None
) -> DryRunResult:
    """Train `spec` for one batch, then build the data module and the model of each other configuration.

    Where the model validates in some epochs only, it trains one batch of each epoch until the metric is logged.

    Args:
        show_life: called once a second, with what it waits for, while another process prepares the data.
    """
    from overnight.trial import class_check
    from overnight.trial.callbacks import build_callbacks
    from overnight.trial.components import build
    from overnight.trial.fit import fit
    from overnight.trial.lightning_packages import lightning_of
    from overnight.trial.one_batch import OneBatchEpochs

    configs = [replace(spec, config=config).of_fold(0).config for config in builds]
    arguments = class_check.argument_problems(spec.config)
    problems = class_check.import_problems(spec.config)
    if problems:
        problems.extend(arguments.values())
    spec = spec.of_fold(0)
    one_batch = OneBatchEpochs()
    link = _StopWithMetric(spec.metric, one_batch, show_life)
    unsaved: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    if not problems:
        try:
            finished = fit(spec, link, one_batch)
            unsaved, notes = finished.unsaved, finished.notes
        except BaseException as error:
            problems.extend(_explain(error, arguments))
    built: list[str] = []
    for given, config in zip(builds, configs, strict=True):
        try:
            build_callbacks(config, lightning_of(*build(config)))
        except BaseException as error:
            built.extend(_explain(error, class_check.argument_problems(given)))
    problem_lines, built_lines = tuple(dict.fromkeys(problems)), tuple(dict.fromkeys(built))
    return DryRunResult(spec.number, link.metrics, problem_lines, link.private_bytes, unsaved, built_lines, notes)


def prepare_data(spec: DataSpec, show_life: Callable[[str], None] = lambda _: None) -> DryRunResult:
    """Download and read the data of each configuration. Only missing files count as problems."""
    from overnight.trial.components import build_data

    problems = []
    for config in spec.configs:
        try:
            data = build_data(config, spec.cache, spec.locks, show_life)
            data.prepare_data()
            data.setup("fit")
        except OSError as error:
            problems.append(_describe(error))
        except Exception:  # a user's data module may need a Trainer or a GPU; the dry run of a trial finds real errors
            continue
    return DryRunResult(0, None, tuple(dict.fromkeys(problems)), 0)


def check_classes(spec: ClassSpec) -> DryRunResult:
    """Import the classes of a configuration and compare their arguments with it. Nothing is built."""
    from overnight.trial import class_check

    problems = (*class_check.import_problems(spec.config), *class_check.argument_problems(spec.config).values())
    return DryRunResult(0, None, problems, 0)


class ProgressBars(io.TextIOBase):
    """A stream that passes on the progress bars of downloads, as tqdm and pip draw them, and drops everything else.

    Args:
        terminal: where the bars go. If it is no terminal, it gets a line every ten seconds.
        on_progress: called at most once a second while a bar moves.
    """

    def __init__(self, terminal: TextIO, on_progress: Callable[[], None]) -> None:
        self._terminal, self._on_progress = terminal, on_progress
        self._reported_at = self._drawn_at = -math.inf
        self._completed = ""  # label of the bar that was drawn at 100% last
        self._line_is_open = False

    def write(self, text: str) -> int:
        now = time.monotonic()
        bar = _PROGRESS_BAR.search(text)
        if bar is None:
            if self._line_is_open and text.endswith("\n"):
                self._draw("\n")
                self._line_is_open = False
            return len(text)
        if now - self._reported_at >= 1:
            self._reported_at = now
            self._on_progress()
        label = text.partition("[")[0]
        complete = bar[1] == "100"
        if self._terminal.isatty():
            self._draw(text)
            self._line_is_open = True
        elif now - self._drawn_at >= _LINE_EVERY_S or (complete and label != self._completed):
            self._drawn_at = now
            self._draw(text.strip() + "\n")
        self._completed = label if complete else ""  # tqdm may draw a complete bar once more when it closes
        return len(text)

    def _draw(self, text: str) -> None:
        with contextlib.suppress(OSError, ValueError):  # the terminal was closed
            self._terminal.write(text)
            self._terminal.flush()


class _StopWithMetric:
    """A Link that stops the trial when it has logged the metric, and keeps what the result needs."""

    def __init__(self, metric: str, one_batch: OneBatchEpochs, show_life: Callable[[str], None]) -> None:
        self._metric, self._one_batch, self._show_life = metric, one_batch, show_life
        self.metrics: tuple[str, ...] | None = None
        self.private_bytes = 0

    def send(self, message: TrialMessage) -> None:
        if isinstance(message, Alive) and self.metrics is None:  # it may wait for another process
            self._show_life(message.waits_for)

    def ask(self, message: Progress) -> Decision:
        self.metrics = tuple(sorted({*(self.metrics or ()), *message.metrics}))
        self.private_bytes = _peak_private_bytes()
        tried_enough = message.index + 1 >= max(_MOST_EPOCHS, self._one_batch.first_validation)
        return Decision.STOP if self._metric in self.metrics or tried_enough else Decision.CONTINUE

    def stop_wanted(self) -> bool:
        return False


def _peak_private_bytes() -> int:
    """Return the peak memory of this process without the pages that it shares with the forkserver."""
    import psutil

    now = psutil.Process().memory_full_info()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return int(now.uss + max(peak - now.rss, 0))


def _explain(error: BaseException, arguments: Mapping[str, str]) -> list[str]:
    """Describe an error of a configuration, after the arguments that its classes do not take by their signatures.

    Without an error, they take them after all.
    """
    is_named = any(f"'{key.rpartition('.')[2]}'" in str(error) for key in arguments)
    return [*arguments.values(), *([] if is_named else [_describe(error)])]


def _describe(error: BaseException) -> str:
    """Describe an error in one line: the key it concerns, its message, and the line of the user's code that raised."""
    cause: BaseException = error
    while type(cause).__name__ == "InstantiationException" and cause.__cause__ is not None:
        cause = cause.__cause__
    message = " ".join(str(cause).split())
    lower = message.lower()
    if re.match(r"(data|model|optimizer|schedule|callbacks|trainer)(\.\w+)*: ", message):
        return message  # it names the key itself
    described = f"{type(cause).__name__}: {message}" if message else type(cause).__name__
    described += _location_in_user_code(cause)
    if "precision" in lower:
        return f"trainer.precision: must be one that Lightning's Trainer takes; {described}"
    if isinstance(cause, MemoryError) or "out of memory" in lower or "can't allocate memory" in lower:
        return f"memory: must hold a trial; take a smaller batch or model; {described}"
    if "target" in lower and "out of bounds" in lower:
        return f"data: each label must be from 0 to below the number of the model's outputs; {described}"
    if "output size is too small" in lower or "kernel size can't be greater than actual input size" in lower:
        return f"model: the image must be larger than its convolutions and pooling leave of it; {described}"
    return f"conf: must train; {described}"


def _location_in_user_code(error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    installed = (os.sep + "site-packages" + os.sep, os.sep + "lib" + os.sep + "python", os.sep + "overnight" + os.sep)
    of_user = [f for f in frames if not any(part in f.filename for part in installed)]
    return f" ({of_user[-1].filename}:{of_user[-1].lineno}, in {of_user[-1].name})" if of_user else ""
