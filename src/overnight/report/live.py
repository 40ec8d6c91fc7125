"""What a person sees while a study runs: a live table on a terminal, plain lines elsewhere, a table in a notebook."""

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

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from overnight.config.paths import trial_name
from overnight.search.plan import Plan
from overnight.search.record import TrialRecord, best_of, describe, format_duration, trial_title

REDRAW_EVERY_S = 0.5
_COLOURS = {"complete": "green", "pruned": "yellow", "failed": "red", "paused": "blue", "running": "cyan"}


@dataclass(frozen=True)
class RunningTrial:
    """A running trial as it is shown. epoch: the last one done, counted from 0; -1 before the first."""

    number: int
    epoch: int
    value: float | None
    since: float


@dataclass(frozen=True)
class ProgressSnapshot:
    """A study at one moment. ended: the records of this session, in order."""

    plan: Plan
    records: Mapping[int, TrialRecord]
    running: tuple[RunningTrial, ...]
    ended: tuple[TrialRecord, ...]
    slots: int
    stopping: bool
    trouble: str | None
    ahead: str | None = None  # what there is to come before a deadline

    def count(self, state: str) -> int:
        return sum(r.state == state for r in self.records.values())

    @property
    def done(self) -> int:
        return sum(r.done for r in self.records.values())

    @property
    def best(self) -> TrialRecord | None:
        return best_of(self.records.values(), self.plan.settings)

    def seconds_left(self) -> float | None:
        """Until the budget is spent, by the median of what this session's trials took; None before the first."""
        took = [r.ended_at - r.started_at for r in self.ended if r.ended_at and r.started_at]
        if not took:
            return None
        typical, now = statistics.median(took), time.time()  # the first one waited for the imports
        running = sum(max(typical - (now - slot.since), 0.0) for slot in self.running)
        left = max(self.plan.budget - self.done - len(self.running), 0)
        # The confirmation's trials run to their last epoch, as the longest ones here did.
        return (left * typical + running + self.plan.confirmation_trials * max(took)) / self.slots


class Screen(Protocol):
    """Shows glances; `update` is called often and decides itself what to draw."""

    def update(self, glance: Callable[[], ProgressSnapshot], force: bool = False) -> None: ...
    def close(self) -> None: ...


def choose_screen(kind: Literal["terminal", "plain", "notebook", "none"] | None = None) -> Screen:
    """The screen that suits where we are, or the one that is named."""
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
    def update(self, glance: Callable[[], ProgressSnapshot], force: bool = False) -> None:
        pass

    def close(self) -> None:
        pass


class BrokenPipeSafe:
    """Another screen, until that one breaks: a closed terminal or pipe must not end a study."""

    def __init__(self, screen: Screen) -> None:
        self._screen = screen

    def update(self, glance: Callable[[], ProgressSnapshot], force: bool = False) -> None:
        try:
            self._screen.update(glance, force)
        except (OSError, ValueError):
            self._screen = NullScreen()

    def close(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            self._screen.close()


class PlainScreen:
    """One plain line a finished trial, and one where something is in the way."""

    def __init__(self, told: int = 0) -> None:
        """told: how many of the ended ones need no line."""
        self._told = told
        self._trouble: str | None = None

    def update(self, glance: Callable[[], ProgressSnapshot], force: bool = False) -> None:  # noqa: ARG002
        now = glance()
        for record in now.ended[self._told :]:
            best = now.best
            left = now.seconds_left()
            print(
                f"{trial_title(record)} {record.state:8} {_objective(record):>9}  {describe(record)}"
                f"  [{now.done} of {now.plan.budget}"
                + (f", best {best.objective:.4g}" if best and best.objective is not None else "")
                + (f"; {now.ahead}" if now.ahead else f", {format_duration(left)} left" if left else "")
                + "]",
                flush=True,
            )
        self._told = len(now.ended)
        if now.trouble and now.trouble != self._trouble:
            print(now.trouble, flush=True)
        self._trouble = now.trouble

    def close(self) -> None:
        pass


class TerminalScreen:
    """A table that is drawn over, twice a second at most."""

    def __init__(self, console: Console) -> None:
        self._live = Live(console=console, auto_refresh=False, transient=True)
        self._drawn_at = 0.0
        self._live.start()

    def update(self, glance: Callable[[], ProgressSnapshot], force: bool = False) -> None:
        if force or time.monotonic() - self._drawn_at >= REDRAW_EVERY_S:
            self._drawn_at = time.monotonic()
            self._live.update(picture(glance()), refresh=True)

    def close(self) -> None:
        self._live.stop()


class NotebookScreen:
    """The same table as HTML, in one output that is drawn over."""

    def __init__(self) -> None:
        self._handle: Any = None
        self._drawn_at = 0.0

    def update(self, glance: Callable[[], ProgressSnapshot], force: bool = False) -> None:
        from IPython.display import HTML, display

        if not force and time.monotonic() - self._drawn_at < REDRAW_EVERY_S:
            return
        self._drawn_at = time.monotonic()
        console = Console(record=True, file=io.StringIO(), width=110, force_jupyter=False)
        console.print(picture(glance()))
        html = HTML(console.export_html(inline_styles=True, code_format="<pre style='line-height:1.2'>{code}</pre>"))
        if self._handle is None:
            self._handle = display(html, display_id=True)
        else:
            self._handle.update(html)

    def close(self) -> None:
        pass


def picture(now: ProgressSnapshot) -> Group:
    """The live table."""
    study, budget, left = now.plan.settings.study, now.plan.budget, now.seconds_left()
    counts = ", ".join(f"{now.count(s)} {s}" for s in ("complete", "pruned", "failed", "paused") if now.count(s))
    head = Table.grid(padding=(0, 1))
    head.add_row(
        Text(now.plan.name, style="bold"),
        ProgressBar(total=budget, completed=now.done, width=30),
        Text(f"{now.done} of {budget} trials"),
        Text(f"({counts})" if counts else ""),
        Text(
            "saving and stopping ..."
            if now.stopping
            else f"about {format_duration(left)} left"
            if left is not None and not now.ahead
            else "starting ..."
            if not now.ended
            else "",
            style="dim",
        ),
    )
    best = now.best
    lines: list[Any] = [head]
    if now.ahead and not now.stopping:
        lines.append(Text(now.ahead, style="dim"))
    if best is not None:
        lines.append(
            Text.assemble(
                "best  ",
                (f"{study.metric} {best.objective:.4g}", "bold green"),
                f"  {trial_title(best)}  ",
                (describe(best), "dim"),
            )
        )
    slots = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for column in ("slot", "trial", "epoch", study.metric, "for", ""):
        slots.add_column(column, justify="right" if column in ("epoch", study.metric, "for") else "left")
    for i, slot in enumerate(now.running):
        record = now.records.get(slot.number)
        slots.add_row(
            str(i),
            trial_title(record) if record else trial_name(slot.number),
            f"{slot.epoch + 1}/{now.plan.settings.trainer.max_epochs}",
            "" if slot.value is None else f"{slot.value:.4g}",
            format_duration(time.time() - slot.since),
            Text(describe(record) if record else "", style="dim", overflow="ellipsis", no_wrap=True),
        )
    for i in range(len(now.running), now.slots):
        slots.add_row(str(i), Text("free", style="dim"))
    lines.append(slots)
    if now.trouble:
        lines.append(Text(now.trouble, style="yellow"))
    return Group(*lines)


def _objective(record: TrialRecord) -> str:
    if record.state == "failed":
        return record.reason or ""
    return "" if record.objective is None else f"{record.objective:.4g}"


def _in_notebook() -> bool:
    get_ipython = getattr(sys.modules.get("IPython"), "get_ipython", None)
    if get_ipython is None:  # nobody started one, and to import it takes a while
        return False
    shell = get_ipython()
    return (
        shell is not None
        and shell.__class__.__name__ == "ZMQInteractiveShell"
        and "PYTEST_CURRENT_TEST" not in os.environ
    )
