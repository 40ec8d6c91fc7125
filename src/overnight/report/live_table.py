"""The live table: what a person sees of a running study. It fits the width of the terminal."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderResult
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from overnight.config.paths import trial_name
from overnight.config.trainer import unit_of
from overnight.search.formatting import format_duration, format_value, short_params, trial_title
from overnight.search.record import TrialRecord, typical_units, units_of_trial
from overnight.search.schedulers.study import progress_text

if TYPE_CHECKING:
    from overnight.report.live import ProgressSnapshot, RunningTrial

# The terminal writes ^C behind the last line. On a line of full width it would wrap, and the next drawing would leave
# the first line of the last one on the screen.
_KEPT_FREE = 4
_MAX_BAR, _MIN_BAR = 30, 8
# The widest column of the table. A longer name or value is cut.
_MAX_COLUMN = 16
_GAP = 2


class LiveTable:
    """Draws a snapshot: a heading, the best trial, and a row for each running trial."""

    def __init__(self, now: ProgressSnapshot) -> None:
        self._now = now

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        now, width = self._now, options.max_width - _KEPT_FREE
        lines: list[Any] = [*_heading(now, width)]
        if now.forecast and now.activity is None:
            lines.append(Text(now.forecast, style="dim"))
        if now.best is not None:
            lines.append(_best_line(now, now.best, width))
        if now.provisional_best is not None:
            lines.append(_best_line(now, now.provisional_best, width))
        height = options.max_height if console.is_terminal else None
        if now.running or now.activity is None:
            lines.append(_trial_table(now, width, None if height is None else max(height - len(lines) - 3, 1)))
        if now.warning:
            lines.append(Text(now.warning, style="yellow"))
        yield from lines


def _heading(now: ProgressSnapshot, width: int) -> list[Any]:
    """Return the first lines: the name, a bar, and how far the study is. A study that stops has no bar."""
    counts = ", ".join(f"{now.count(s)} {s}" for s in ("complete", "pruned", "failed", "paused") if now.count(s))
    progress, name = progress_text(now.records.values(), now.plan), _shorten(now.plan.name, max(width // 3, 12))
    parts = [progress, f"({counts})" if counts else "", _phase(now)]
    below: list[Any] = []
    if _width_of([name, *parts]) > width:  # the counts get a line of their own
        below, parts = [Text(counts, style="dim")], [progress, _phase(now)]
    heading = Table.grid(padding=(0, 1))
    cells: list[Any] = [Text(name, style="bold"), *(Text(part) for part in parts if part)]
    free = width - _width_of([name, *parts]) - 1
    if now.activity is None and free >= _MIN_BAR:
        cells.insert(1, ProgressBar(total=1.0, completed=now.share_done, width=min(free, _MAX_BAR)))
    heading.add_row(*cells)
    return [heading, *below]


def _phase(now: ProgressSnapshot) -> str:
    left = now.seconds_left()
    if now.activity is not None:
        return f"{now.activity} ..."
    if now.forecast or (left is None and now.running):
        return ""
    return f"about {format_duration(left)} left" if left is not None else "starting ..."


def _best_line(now: ProgressSnapshot, best: TrialRecord, width: int) -> Text:
    metric, title = now.plan.settings.study.metric, trial_title(best)
    if best.state != "complete":  # it may go on, and is not the winner before its last epoch
        title += f" after {len(best.history)} of {now.plan.settings.trainer.units} {now.plan.unit}s"
    value = f"{_shorten(metric, width // 3)} {format_value(best.objective or 0.0, metric)}"
    room = width - _width_of(["best", value, title]) - 1
    return Text.assemble("best ", (value, "bold green"), f" {title} ", (_fit(short_params(best), room), "dim"))


def _trial_table(now: ProgressSnapshot, width: int, max_rows: int | None) -> Table:
    """Return a row for each running trial, with one column for each parameter that there is room for."""
    shown = now.running
    if max_rows is not None and len(shown) > max_rows:
        shown = shown[: max_rows - 1]
    records = [now.records.get(trial.number) for trial in shown]
    metric, folds = now.plan.settings.study.metric, now.plan.settings.study.folds
    columns = {
        "trial": [_number(trial, record) for trial, record in zip(shown, records, strict=True)],
        unit_of(vars(now.plan.settings.trainer)): [
            _progress(now, trial, record) for trial, record in zip(shown, records, strict=True)
        ],
        **({} if folds is None else {"fold": [f"{(trial.fold or 0) + 1}/{folds}" for trial in shown]}),
        _shorten(metric, _MAX_COLUMN): ["" if t.value is None else format_value(t.value, metric) for t in shown],
        "for": [format_duration(time.time() - trial.started_at) for trial in shown],
    }
    table = Table(box=None, padding=(0, _GAP, 0, 0), header_style="dim", pad_edge=False)
    for name in columns:
        table.add_column(Text(name), justify="left" if name == "trial" else "right", no_wrap=True)
    used = sum(_column_width(name, cells) for name, cells in columns.items()) + _GAP * len(columns)
    params = [short_params(record) if record is not None else {} for record in records]
    fitting, left_out = _fitting_columns(params, width - used)
    for name in fitting:
        table.add_column(Text(name), style="dim", no_wrap=True)
    if left_out:
        table.add_column(f"+{left_out}", style="dim", no_wrap=True)
    for i in range(len(shown)):
        table.add_row(*(Text(cells[i]) for cells in (*columns.values(), *fitting.values())))  # acc[1] is no markup
    if len(shown) < len(now.running):
        table.add_row(Text(f"+{len(now.running) - len(shown)}", style="dim"))
    elif (free := now.slots - len(now.running)) > 0:
        table.add_row(Text(f"{free} free", style="dim"))
    return table


def _progress(now: ProgressSnapshot, trial: RunningTrial, record: TrialRecord | None) -> str:
    total = units_of_trial(record, now.plan) if record is not None else typical_units(now.records.values(), now.plan)
    of_fold = str(total // (now.plan.settings.study.folds or 1)) if total is not None else "?"
    return f"{trial.index + 1 - trial.fold_start}/{of_fold}"


def _fitting_columns(params: Sequence[Mapping[str, str]], room: int) -> tuple[dict[str, list[str]], int]:
    """Return the columns of parameters that fit into `room`, and how many do not.

    Parameters in which the running trials differ come first, because they tell the trials apart.
    """
    names = list(dict.fromkeys(name for one in params for name in one))
    names.sort(key=lambda name: len({one.get(name) for one in params}) == 1)
    fitting: dict[str, list[str]] = {}
    for i, name in enumerate(names):
        cells = [_shorten(one.get(name, ""), _MAX_COLUMN) for one in params]
        head = _shorten(name, _MAX_COLUMN)
        width, is_last = _column_width(head, cells) + _GAP, i == len(names) - 1 and len(fitting) == i
        if head not in fitting and width <= room - (0 if is_last else len(f"+{len(names)}")):
            fitting[head] = cells
            room -= width
    return fitting, len(names) - len(fitting)


def _fit(params: Mapping[str, str], room: int) -> str:
    """Return the `name=value` that fit into `room`, and how many do not."""
    texts = [f"{name}={value}" for name, value in params.items()]
    parts: list[str] = []
    for text in texts:
        rest = len(texts) - len(parts) - 1
        if _width_of([*parts, text, f"+{rest}" if rest else ""]) <= room:
            parts.append(text)
    rest = len(texts) - len(parts)
    return " ".join([*parts, *([f"+{rest}"] if rest else [])])


def _number(trial: RunningTrial, record: TrialRecord | None) -> str:
    """Return the title of a trial without the word that all have in common: 0007, or 0007-seed-2."""
    return (trial_title(record) if record is not None else trial_name(trial.number)).removeprefix("trial-")


def _column_width(name: str, cells: Iterable[str]) -> int:
    return max(map(cell_len, (name, *cells)))


def _width_of(parts: Sequence[str]) -> int:
    return cell_len(" ".join(part for part in parts if part))


def _shorten(text: str, width: int) -> str:
    """Cut a text in its middle: names that are long often differ only at their ends."""
    if len(text) <= width:
        return text
    head = (width - 1) // 2
    return f"{text[:head]}…{text[len(text) - (width - 1 - head) :]}"
