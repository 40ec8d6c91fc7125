"""The report of a study: its content as data, and its output in a terminal."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from overnight.config.paths import trial_name
from overnight.config.values import short_text
from overnight.report import advice, finding, winner_pictures
from overnight.report.caveats import find_caveats
from overnight.report.finding import Finalist, Finding
from overnight.report.importance import Importance, Importances, importances
from overnight.report.rungs import Comparable, comparable, cost_sentence
from overnight.report.winner_pictures import Picture
from overnight.search.formatting import describe, format_duration, format_value, trial_title
from overnight.search.plan import Plan
from overnight.search.record import TrialRecord, searched_values, typical_units
from overnight.search.schedulers.study import trained_epochs
from overnight.study.snapshot import StudyView
from overnight.tracking.duration import time_of_work

_WIDE = 110  # columns of a terminal in which the whole ranking fits


@dataclass(frozen=True)
class Cost:
    """What a study cost.

    Attributes:
        search_s: Seconds of training in the search, summed over all slots.
        confirmation_s: Seconds of training in the confirmation, summed over all slots.
        wall_s: Seconds in which at least one trial ran: without the pauses of the study.
        pruned: Number of trials that were pruned, or wait at a rung, and trained at least one epoch.
        saved_s: Seconds that these trials did not train, estimated from the duration of their epochs.
        failure_reasons: Reason of failure -> number of trials.
        peak_bytes: The largest private memory of a trial; 0 if it was not measured.
        largest_trial: The trial that used it; empty if it was not measured.
    """

    search_s: float
    confirmation_s: float
    wall_s: float
    pruned: int
    saved_s: float
    failure_reasons: dict[str, int]
    peak_bytes: int
    largest_trial: str


@dataclass(frozen=True)
class Report:
    """The content of a report.

    Attributes:
        sentence: The result in one sentence.
        train_command: A command that trains the winner again; None if there is no winner.
        next_command: A command that starts the next search; None if there is no winner or nothing was searched.
        compared: The trials whose values can be compared.
        stop_notes: What a limit stopped before the whole budget was used, one line each.
        pictures: Of the winner's network, as far as they are drawn.
    """

    plan: Plan
    records: tuple[TrialRecord, ...]
    finding: Finding
    sentence: str
    train_command: str | None
    next_command: str | None
    importances: Importances
    caveats: list[str]
    cost: Cost
    compared: Comparable
    stop_notes: tuple[str, ...] = ()
    pictures: tuple[Picture, ...] = ()


def build_report(view: StudyView) -> Report:
    """Build the report of a study in any state."""
    found, plan, records = finding.from_view(view), view.plan, view.records
    best, compared = found.best, comparable(plan, records)
    return Report(
        plan,
        records,
        found,
        finding.summary_sentence(found),
        advice.train_command(plan, best) if best is not None else None,
        advice.next_command(plan, records, best) if best is not None and plan.space.parameters else None,
        importances(plan, compared.records, compared.epochs),
        find_caveats(found, records, view.tested_by_hand),
        training_cost(plan, records, view.confirmation.records if view.confirmation is not None else ()),
        compared,
        tuple(view.launch.get("notes", ())),
        tuple(winner_pictures.find(view)),
    )


def training_cost(plan: Plan, records: Sequence[TrialRecord], confirmations: Sequence[TrialRecord]) -> Cost:
    """Sum up what the search and its confirmation cost."""
    pruned = [r for r in records if (r.state == "pruned" or r.waits_at_rung) and r.history]
    units = typical_units(records, plan)
    both = (*records, *confirmations)
    largest = max(both, key=lambda r: r.peak_bytes or 0, default=None)
    peak = largest.peak_bytes or 0 if largest is not None else 0
    return Cost(
        sum(e.seconds for r in records for e in r.history),
        sum(e.seconds for r in confirmations for e in r.history),
        time_of_work(both),
        len(pruned),
        sum(max(units - len(r.history), 0) * sum(e.seconds for e in r.history) / len(r.history) for r in pruned),
        dict(Counter(r.reason or "error" for r in both if r.state == "failed")),
        peak,
        trial_title(largest) if largest is not None and peak else "",
    )


def cost_lines(report: Report) -> list[str]:
    """Describe the cost, one fact a line."""
    cost, records = report.cost, report.records
    states = Counter(r.state for r in records)
    trials = ", ".join(
        f"{states[s]} {s}" for s in ("complete", "pruned", "failed", "running", "paused", "waiting") if states[s]
    )
    if not records:
        return ["No trial has started yet."]
    counted = "1 trial" if len(records) == 1 else f"{len(records)} trials"
    lines = [f"{counted} ({trials}): {format_duration(cost.search_s)} of training"]
    if cost.confirmation_s:
        lines[0] += f", and {format_duration(cost.confirmation_s)} for {report.finding.confirmed} confirmations"
    if cost.wall_s:
        lines.append(f"{format_duration(cost.wall_s)} from start to end, without pauses")
    if cost.peak_bytes:
        lines.append(f"largest memory of a trial: {cost.peak_bytes / 2**30:.2f} GiB ({cost.largest_trial})")
    if report.plan.pauses and trained_epochs(records):
        lines.append(cost_sentence(report.plan, records))
    elif cost.pruned:
        were = "1 trial was" if cost.pruned == 1 else f"{cost.pruned} trials were"
        lines.append(f"{were} pruned, which saved about {format_duration(cost.saved_s)} of training")
    lines += [f"{n} failed: {reason}" for reason, n in cost.failure_reasons.items()]
    return lines


def winner_parameters(report: Report) -> dict[str, str]:
    """Return the winner's parameters as text, key -> value."""
    best = report.finding.best
    if best is None:
        return {}
    return {key: short_text(v, 4) for key, v in searched_values(best, report.plan).items()}


def ranking(report: Report) -> list[tuple[str, ...]]:
    """Return one row for each finalist, the winner first, and one for the baseline; see `ranking_columns`."""
    found, metric = report.finding, report.plan.settings.study.metric
    rows: list[tuple[str, ...]] = []
    base = found.baseline
    extra = [base] if base is not None and all(f.trial.number != base.trial.number for f in found.finalists) else []
    for rank, f in enumerate([*found.finalists, *extra]):
        name = trial_name(f.trial.number)
        if base is not None and f.trial.number == base.trial.number:
            name += " (baseline)"
        mean = finding.format_estimate(f.estimate, metric) if f.estimate else "failed" if f.failed else "not trained"
        row = (name, mean, _test_value(f, found), _versus_first(found, rank, f), describe(f.trial))
        rows.append(row if _has_test(report) else row[:2] + row[3:])
    return rows


def ranking_columns(report: Report) -> tuple[str, ...]:
    """Return the column heads of `ranking`."""
    test = ("test",) if _has_test(report) else ()
    return "", report.plan.settings.study.metric, *test, "compared to first", "parameters"


def _has_test(report: Report) -> bool:
    return any(_test_value(f, report.finding) for f in report.finding.finalists)


def _test_value(finalist: Finalist, found: Finding) -> str:
    name = finding.test_metric(found)
    tested = finalist.tests.get(name)
    return format_value(tested.mean, name) if tested is not None else ""


def _versus_first(found: Finding, rank: int, f: Finalist) -> str:
    if rank == 0:
        return "first"
    is_base = found.baseline is not None and f.trial.number == found.baseline.trial.number
    versus = found.against_baseline if is_base else found.against_second if rank == 1 else None
    if versus is None or versus.p is None:
        return ""
    first = finding.verdict(found, versus)  # of the first; the row shows the other one
    word = {"better": "worse", "worse": "better"}.get(first, first)
    return f"{word} (p = {versus.p:.2g})" if versus.p >= 0.001 else f"{word} (p < 0.001)"


# In a terminal --------------------------------------------------------------------------------------------------------


def print_report(report: Report, console: Console) -> None:
    """Print a report to a terminal."""
    console.print(Text(report.plan.name, style="bold"), Text(report.sentence, style="bold green"), sep="\n")
    if report.finding.finalists and report.finding.confirmed:
        _heading(console, "Confirmation on new seeds")
        heads, rows = ranking_columns(report), ranking(report)
        if console.width >= _WIDE:
            console.print(_rows(heads, rows))
        else:  # the parameters in a table of their own
            console.print(_rows(heads[:-1], [row[:-1] for row in rows]))
            console.print(_rows(None, [(row[0], row[-1]) for row in rows]))
    if report.train_command is not None:
        _heading(console, "The winner")
        console.print(_rows(None, list(winner_parameters(report).items())))
        _command(console, "Command to train it again", report.train_command)
    if report.plan.space.parameters and report.records:
        _heading(console, "Parameter importance")
        console.print(Text(report.importances.sentence()))
        if report.importances.certain:
            console.print(_bars(report.importances.certain))
    _heading(console, "Cost")
    console.print(*map(_item, cost_lines(report)), sep="\n")
    if report.stop_notes:
        _heading(console, "What was cut short")
        console.print(*map(_item, report.stop_notes), sep="\n")
    if report.caveats:
        _heading(console, "Caveats")
        console.print(*map(_item, report.caveats), sep="\n")
    if report.next_command is not None:
        _heading(console, "Next search")
        _command(console, "Command to search around the winner", report.next_command)


def _heading(console: Console, text: str) -> None:
    console.print()
    console.print(Text(text, style="bold underline"))


def _item(line: str) -> RenderableType:
    grid = Table.grid(padding=(0, 1))
    grid.add_row("•", Text(line))
    return grid


def _rows(columns: Sequence[str] | None, rows: Sequence[Sequence[str]]) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), show_header=columns is not None, header_style="dim")
    for i in range(len(columns or (rows[0] if rows else ()))):
        table.add_column(Text(columns[i] if columns else ""), overflow="fold")  # acc[1] is no markup
    for row in rows:
        table.add_row(*map(Text, row))
    return table


def _bars(found: Sequence[Importance]) -> Table:
    table = _rows(None, [])
    for i in found:
        filled = round(24 * min(i.share, 1))
        bar = Text("█" * filled + "·" * (24 - filled), style="cyan")
        table.add_row(
            Text(i.key), bar, Text(f"{i.share:.0%}"), Text(f"(chance: up to {min(i.chance, 1):.0%})", style="dim")
        )
    return table


def _command(console: Console, label: str, line: str) -> None:
    """Print a command on one line, so that it can be copied; the terminal wraps it."""
    console.print(Text(f"{label}:", style="dim"))
    console.print(Text(line, style="cyan"), soft_wrap=True)
