"""The progress of a running study: a live table in a terminal or notebook, plain lines elsewhere."""

from __future__ import annotations

import contextlib
import io
import os
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from rich.console import Console
from rich.live import Live

from overnight.report.live_table import LiveTable
from overnight.search import deadline
from overnight.search.formatting import describe, format_duration, format_value, trial_title
from overnight.search.plan import Plan
from overnight.search.record import TrialRecord, best_of, provisional_best, typical_units
from overnight.search.schedulers.study import epochs_in_all, progress_text, share_spent, trained_epochs

REDRAW_EVERY_S = 0.5


@dataclass(frozen=True)
class RunningTrial:
    """A running trial.

    Attributes:
        index: The last complete epoch or validation, counted from 0; -1 before the first.
        value: Its objective so far.
        started_at: Unix time in seconds.
        fold, fold_start: The fold of a cross-validation that it is in, and the index with which that began.
    """

    number: int
    index: int
    value: float | None
    started_at: float
    fold: int | None = None
    fold_start: int = 0


@dataclass(frozen=True)
class ProgressSnapshot:
    """The progress of a study at one moment.

    Attributes:
        records: All trials, by number.
        ended: The trials that ended in this session, in order.
        activity: What is done before the end, without "...", e.g. "saving the running trials"; None while trials train.
        warning: A problem that the user should know of, e.g. a full disk.
        forecast: What is still to come before a deadline; None without a deadline.
        finishes: The search starts no more trials and completes its best ones, because of study.patience.
    """

    plan: Plan
    records: Mapping[int, TrialRecord]
    running: tuple[RunningTrial, ...]
    ended: tuple[TrialRecord, ...]
    slots: int
    activity: str | None
    warning: str | None
    forecast: str | None = None
    finishes: bool = False

    def count(self, state: str) -> int:
        return sum(r.state == state for r in self.records.values())

    @property
    def done(self) -> int:
        return sum(r.done for r in self.records.values())

    @property
    def best(self) -> TrialRecord | None:
        return best_of(self.records.values(), self.plan.settings)

    @property
    def provisional_best(self) -> TrialRecord | None:
        """The trial with the best latest value, where that is better than the best complete one's."""
        return provisional_best(self.records.values(), self.plan.settings)

    @property
    def share_done(self) -> float:
        """The share of the search that is done, from 0 to 1."""
        return share_spent(self.records.values(), self.plan, self.finishes)

    def seconds_left(self) -> float | None:
        """Estimate the seconds until the budget is used, from the median duration; None before the first progress."""
        now, units = time.time(), typical_units(self.records.values(), self.plan)
        if self.plan.pauses:
            return self._seconds_of_epochs(units)
        spent = [self._spent_s(trial, now) for trial in self.running]
        durations = [s for r in self.ended if (s := deadline.whole_s(r)) is not None] or [
            s / (trial.index + 1) * units for s, trial in zip(spent, self.running, strict=True) if trial.index >= 0
        ]
        if not durations:
            return None
        typical = statistics.median(durations)  # the first trial waited for imports
        running = sum(max(typical - s, 0.0) for s in spent)
        waiting = max(self.plan.budget.trials - self.done - len(self.running), 0)
        # Trials of a confirmation are never pruned, so they take as long as the longest trial.
        return (waiting * typical + running + self.plan.confirmation_trials * max(durations)) / self.slots

    def _spent_s(self, trial: RunningTrial, now: float) -> float:
        """The seconds that a running trial has worked for, without its pauses."""
        record = self.records.get(trial.number)
        if record is None or record.first_started_at in (None, record.started_at):
            return now - trial.started_at
        return sum(e.seconds for e in record.history) + now - max(trial.started_at, record.history[-1].at)

    def _seconds_of_epochs(self, epochs: int) -> float | None:
        """Estimate the seconds of the epochs that are left, and of the confirmation, whose trials have so many."""
        records = self.records.values()
        epoch_s = deadline.epoch_s(records)
        if epoch_s is None:
            return None
        left = max(epochs_in_all(records, self.plan, self.finishes) - trained_epochs(records), 0)
        longest_s = max((s for r in records if (s := deadline.whole_s(r)) is not None), default=epochs * epoch_s)
        return (left * epoch_s * deadline.MARGIN + self.plan.confirmation_trials * longest_s) / self.slots


class Screen(Protocol):
    """Shows progress. `update` is called often and decides whether to draw."""

    def update(self, take_snapshot: Callable[[], ProgressSnapshot], force: bool = False) -> None: ...
    def close(self) -> None: ...


def choose_screen(kind: Literal["terminal", "plain", "notebook", "none"] | None = None) -> Screen:
    """Return the screen of a kind, or the one that fits the output."""
    console = Console(highlight=False)
    if kind is None:
        kind = "notebook" if _in_notebook() else "terminal" if console.is_terminal else "plain"
    screens: dict[str, Callable[[], Screen]] = {
        "terminal": lambda: TerminalScreen(console),
        "plain": PlainScreen,
        "notebook": NotebookScreen,
        "none": NullScreen,
    }
    return screens[kind]()


class NullScreen:
    def update(self, take_snapshot: Callable[[], ProgressSnapshot], force: bool = False) -> None:
        pass

    def close(self) -> None:
        pass


class BrokenPipeSafe:
    """Wraps a screen and ignores its errors: a closed terminal or pipe must not stop a study."""

    def __init__(self, screen: Screen) -> None:
        self._screen = screen

    def update(self, take_snapshot: Callable[[], ProgressSnapshot], force: bool = False) -> None:
        try:
            self._screen.update(take_snapshot, force)
        except (OSError, ValueError):
            self._screen = NullScreen()

    def close(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            self._screen.close()


class PlainScreen:
    """Prints one line for each trial that ended, for each paused one that is the best so far, and each new warning."""

    def __init__(self, skip: int = 0) -> None:
        """skip: Number of ended trials that are not printed."""
        self._printed = skip
        self._warning: str | None = None
        self._provisional: tuple[int, int] | None = None  # the number and the epochs of the best paused trial

    def update(self, take_snapshot: Callable[[], ProgressSnapshot], force: bool = False) -> None:  # noqa: ARG002
        now = take_snapshot()
        for record in now.ended[self._printed :]:
            print(_line(record, now), flush=True)
        self._printed = len(now.ended)
        best = now.provisional_best
        if best is not None and best.waits_at_rung and self._provisional != (best.number, len(best.history)):
            self._provisional = best.number, len(best.history)
            print(_line(best, now), flush=True)
        if now.warning and now.warning != self._warning:
            print(now.warning, flush=True)
        self._warning = now.warning

    def close(self) -> None:
        pass


def _line(record: TrialRecord, now: ProgressSnapshot) -> str:
    best, left, metric = now.best, now.seconds_left(), now.plan.settings.study.metric
    progress = progress_text(now.records.values(), now.plan)
    if best is not None and best.objective is not None:
        progress += f", best {format_value(best.objective, metric)}"
    if now.forecast:
        progress += f"; {now.forecast}"
    elif left:
        progress += f", {format_duration(left)} left"
    state = f"after {len(record.history)}" if record.waits_at_rung else record.state
    return f"{trial_title(record)} {state:8} {_objective(record, metric):>9}  {describe(record)}  [{progress}]"


class TerminalScreen:
    """Redraws a table in a terminal, at most twice a second."""

    def __init__(self, console: Console) -> None:
        self._live = Live(console=console, auto_refresh=False, transient=True)
        self._drawn_at = 0.0
        self._live.start()

    def update(self, take_snapshot: Callable[[], ProgressSnapshot], force: bool = False) -> None:
        if force or time.monotonic() - self._drawn_at >= REDRAW_EVERY_S:
            self._drawn_at = time.monotonic()
            self._live.update(render(take_snapshot()), refresh=True)

    def close(self) -> None:
        self._live.stop()


class NotebookScreen:
    """Redraws the table as HTML in one output of a notebook, at most twice a second."""

    def __init__(self) -> None:
        self._handle: Any = None
        self._drawn_at = 0.0

    def update(self, take_snapshot: Callable[[], ProgressSnapshot], force: bool = False) -> None:
        from IPython.display import HTML, display

        if not force and time.monotonic() - self._drawn_at < REDRAW_EVERY_S:
            return
        self._drawn_at = time.monotonic()
        console = Console(record=True, file=io.StringIO(), width=110, force_jupyter=False)
        console.print(render(take_snapshot()))
        html = HTML(console.export_html(inline_styles=True, code_format="<pre style='line-height:1.2'>{code}</pre>"))
        if self._handle is None:
            self._handle = display(html, display_id=True)
        else:
            self._handle.update(html)

    def close(self) -> None:
        pass


def render(now: ProgressSnapshot) -> LiveTable:
    """Return the live table."""
    return LiveTable(now)


def _objective(record: TrialRecord, metric: str) -> str:
    if record.state == "failed":
        return record.reason or ""
    return "" if record.objective is None else format_value(record.objective, metric)


def _in_notebook() -> bool:
    get_ipython = getattr(sys.modules.get("IPython"), "get_ipython", None)
    if get_ipython is None:  # IPython is not running, and its import is slow
        return False
    shell = get_ipython()
    return (
        shell is not None
        and shell.__class__.__name__ == "ZMQInteractiveShell"
        and "PYTEST_CURRENT_TEST" not in os.environ
    )
