"""The morning report: everything it says, as data, and how a terminal shows it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from overnight.config.paths import trial_name
from overnight.report import advice, finding
from overnight.report.caveats import doubts
from overnight.report.finding import Finalist, Finding
from overnight.report.importance import Importance, importances
from overnight.search.plan import Plan
from overnight.search.record import TrialRecord, describe, duration, title
from overnight.study.snapshot import StudyView


@dataclass(frozen=True)
class Cost:
    """Seconds of training, in all slots together, and what was done in them. reasons: of failures, with how often.

    saved_s: what the pruned trials would have trained on, at the pace of the epochs that they did. peak_bytes: the most
    memory of its own that one trial was seen to hold, and largest which; 0 and "" where none was looked at.
    """

    search_s: float
    confirmation_s: float
    wall_s: float
    pruned: int
    saved_s: float
    reasons: dict[str, int]
    peak_bytes: int
    largest: str


@dataclass(frozen=True)
class Report:
    """sentence: the answer. train, next: lines to paste; None where there is no winner."""

    plan: Plan
    records: tuple[TrialRecord, ...]
    finding: Finding
    sentence: str
    train: str | None
    next: str | None
    importances: list[Importance]
    doubts: list[str]
    cost: Cost
    ended: tuple[str, ...] = ()  # what a limit ended, before all that was asked for was done


def report_of(view: StudyView) -> Report:
    """The report of a study as it stands, whatever became of it."""
    found, plan, records = finding.of(view), view.plan, view.records
    best = found.best
    return Report(
        plan,
        records,
        found,
        finding.sentence(found),
        advice.train_command(plan, best) if best is not None else None,
        advice.next_command(plan, records, best) if best is not None and plan.space.parameters else None,
        importances(plan, records),
        doubts(found, records),
        cost_of(plan, records, view.confirmation.records if view.confirmation is not None else ()),
        tuple(view.launch.get("notes", ())),
    )


def cost_of(plan: Plan, records: Sequence[TrialRecord], confirmations: Sequence[TrialRecord]) -> Cost:
    pruned = [r for r in records if r.state == "pruned" and r.history]
    epochs = plan.settings.trainer.max_epochs
    both = (*records, *confirmations)
    ends = [r.ended_at for r in both if r.ended_at]
    starts = [r.started_at for r in both if r.started_at]
    largest = max(both, key=lambda r: r.peak_bytes or 0, default=None)
    peak = largest.peak_bytes or 0 if largest is not None else 0
    return Cost(
        sum(e.seconds for r in records for e in r.history),
        sum(e.seconds for r in confirmations for e in r.history),
        max(ends) - min(starts) if ends and starts else 0.0,
        len(pruned),
        sum((epochs - len(r.history)) * sum(e.seconds for e in r.history) / len(r.history) for r in pruned),
        dict(Counter(r.reason or "error" for r in both if r.state == "failed")),
        peak,
        title(largest) if largest is not None and peak else "",
    )


def cost_lines(report: Report) -> list[str]:
    """The cost in words, one line each."""
    cost, records = report.cost, report.records
    states = Counter(r.state for r in records)
    trials = ", ".join(
        f"{states[s]} {s}" for s in ("complete", "pruned", "failed", "running", "paused", "waiting") if states[s]
    )
    if not records:
        return ["nothing yet: no trial has started"]
    counted = "1 trial" if len(records) == 1 else f"{len(records)} trials"
    lines = [f"{counted} ({trials}): {duration(cost.search_s)} of training"]
    if cost.confirmation_s:
        lines[0] += f", and {duration(cost.confirmation_s)} for {report.finding.done} confirmations"
    if cost.wall_s:
        lines.append(f"from first start to last end {duration(cost.wall_s)}")
    if cost.peak_bytes:
        lines.append(f"the largest trial, {cost.largest}, held {cost.peak_bytes / 2**30:.2f} GiB of memory of its own")
    if cost.pruned:
        were = "1 trial was" if cost.pruned == 1 else f"{cost.pruned} trials were"
        lines.append(f"{were} pruned, which saved about {duration(cost.saved_s)}")
    lines += [f"{n} failed: {reason}" for reason, n in cost.reasons.items()]
    return lines


def settled(report: Report) -> dict[str, str]:
    """The winner's parameters, name -> value, as people read them."""
    best = report.finding.best
    if best is None:
        return {}
    return {name: f"{v:.4g}" if isinstance(v, float) else str(v) for name, v in best.params.items()}


def ranking(report: Report) -> list[tuple[str, ...]]:
    """A row a finalist, the winner first, then the baseline; what is in it, `columns` says."""
    found, metric = report.finding, report.plan.settings.study.metric
    rows: list[tuple[str, ...]] = []
    base = found.baseline
    extra = [base] if base is not None and all(f.trial.number != base.trial.number for f in found.finalists) else []
    for location, f in enumerate([*found.finalists, *extra]):
        name = trial_name(f.trial.number)
        if base is not None and f.trial.number == base.trial.number:
            name += " (as written)"
        mean = finding.shown(f.estimate, metric) if f.estimate else "failed" if f.failed else "not trained"
        row = (name, mean, _tested(f, found), _against(found, location, f), describe(f.trial))
        rows.append(row if _any_test(report) else row[:2] + row[3:])
    return rows


def columns(report: Report) -> tuple[str, ...]:
    """The heads of `ranking`."""
    test = ("test",) if _any_test(report) else ()
    return "", report.plan.settings.study.metric, *test, "beside the first", "parameters"


def _any_test(report: Report) -> bool:
    return any(_tested(f, report.finding) for f in report.finding.finalists)


def _tested(finalist: Finalist, found: Finding) -> str:
    name = finding.test_metric(found)
    tested = finalist.tests.get(name)
    return finding.shown(tested.mean, name) if tested is not None else ""


def _against(found: Finding, location: int, f: Finalist) -> str:
    if location == 0:
        return "first"
    is_base = found.baseline is not None and f.trial.number == found.baseline.trial.number
    versus = found.against_baseline if is_base else found.against_second if location == 1 else None
    if versus is None or versus.p is None:
        return ""
    first = finding.verdict(versus, finding.sign_of(found))  # and of the other the opposite
    word = {"better": "worse", "worse": "better"}.get(first, first)
    return f"{word} (p = {versus.p:.2g})" if versus.p >= 0.001 else f"{word} (p < 0.001)"


# In a terminal --------------------------------------------------------------------------------------------------------


def show(report: Report, console: Console) -> None:
    """Print a report."""
    console.print(Text(report.plan.name, style="bold"), Text(report.sentence, style="bold green"), sep="\n")
    if report.finding.finalists and report.finding.done:
        _heading(console, "On fresh seeds")
        console.print(_rows(columns(report), ranking(report)))
    if report.train is not None:
        _heading(console, "The winner")
        console.print(_rows(None, list(settled(report).items())))
        _command(console, "to train it again", report.train)
    if report.importances:
        _heading(console, "What mattered")
        console.print(_bars(report.importances))
    _heading(console, "What it cost")
    console.print(*map(_item, cost_lines(report)), sep="\n")
    if report.ended:
        _heading(console, "How it ended")
        console.print(*map(_item, report.ended), sep="\n")
    if report.doubts:
        _heading(console, "What is doubtful")
        console.print(*map(_item, report.doubts), sep="\n")
    if report.next is not None:
        _heading(console, "What to try next")
        _command(console, "a space around the finding", report.next)


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
        table.add_column(columns[i] if columns else "", overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))
    return table


def _bars(found: Sequence[Importance]) -> Table:
    table = _rows(None, [])
    for i in found:
        filled = round(24 * min(i.share, 1))
        bar = Text("█" * filled + "·" * (24 - filled), style="cyan")
        table.add_row(Text(i.name), bar, Text(f"{i.share:.0%}"), Text(f"({i.low:.0%} to {i.high:.0%})", style="dim"))
    return table


def _command(console: Console, words: str, line: str) -> None:
    """A line that can be copied whole: the terminal wraps it, not we."""
    console.print(Text(f"{words}:", style="dim"))
    console.print(Text(line, style="cyan"), soft_wrap=True)
