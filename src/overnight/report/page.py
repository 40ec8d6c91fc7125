"""The report as one HTML file without external resources: no scripts, fonts or images from elsewhere."""

from __future__ import annotations

import base64
import html
from collections.abc import Iterable, Sequence
from pathlib import Path

from overnight.report.charts import charts
from overnight.report.figures import Chart
from overnight.report.report import Report, cost_lines, ranking, ranking_columns, winner_parameters
from overnight.report.rung_chart import rung_columns, rung_rows
from overnight.report.rungs import cost_sentence, find_rungs
from overnight.report.winner_pictures import Picture
from overnight.system.files import write_atomically

_STYLE = """
:root { color-scheme: light dark; --ink: #1c1e21; --paper: #fff; --faint: #8a9099; --line: #e2e5e9; --box: #f5f6f8;
  --main: #0072b2; --second: #c77c00; --good: #0b6e4f; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e8eb; --paper: #15171a; --faint: #858c96; --line: #2c3036;
  --box: #1e2126; --main: #56b4e9; --second: #e69f00; --good: #56d6a6; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.5rem 1rem 4rem; max-width: 48rem; background: var(--paper); color: var(--ink);
  font: 16px/1.5 system-ui, sans-serif; }
h1 { font-size: 1rem; color: var(--faint); margin: 0; font-weight: 600; }
.answer { font-size: 1.3rem; line-height: 1.4; margin: .3rem 0 1.5rem; font-weight: 600; }
h2 { font-size: 1.1rem; margin: 2.2rem 0 .6rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .9rem; width: 100%; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: .35rem .8rem .35rem 0; border-bottom: 1px solid var(--line); vertical-align: top; }
th { color: var(--faint); font-weight: 500; }
td:first-child, td:nth-child(2) { white-space: nowrap; }
tr.won td { color: var(--good); font-weight: 600; }
pre { background: var(--box); padding: .8rem; border-radius: .4rem; white-space: pre-wrap; overflow-wrap: anywhere;
  font-size: .85rem; margin: .4rem 0; user-select: all; }
ul { padding-left: 1.2rem; } li { margin: .3rem 0; overflow-wrap: anywhere; }
figure { margin: 0 0 1.5rem; max-width: 37rem; } figure svg { width: 100%; height: auto; display: block; }
figure img { max-width: 100%; height: auto; display: block; background: #fff; border-radius: .4rem; }
figcaption, .small { color: var(--faint); font-size: .85rem; overflow-wrap: anywhere; }
h3 { font-size: .95rem; margin: 1.2rem 0 .3rem; }
@media (max-width: 40rem) {
  .answer { font-size: 1.15rem; }
  .finalists thead { display: none; }
  .finalists tr { display: block; padding: .5rem 0; border-bottom: 1px solid var(--line); }
  .finalists td { display: block; border: 0; padding: .05rem 0; white-space: normal; }
  .finalists td:empty { display: none; }
  .finalists td[data-name]:not(:first-child)::before { content: attr(data-name) ": "; color: var(--faint); }
}
"""


def write(report: Report, path: Path) -> None:
    """Write the page of a report atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, page(report))


def page(report: Report) -> str:
    """Return the HTML of a report."""
    name = html.escape(report.plan.name)
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{name}: report</title>'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{_STYLE}</style></head>'
        f'<body><main><h1>{name}</h1><p class="answer">{html.escape(report.sentence)}</p>{"".join(_sections(report))}'
        "</main></body></html>\n"
    )


def _sections(report: Report) -> Iterable[str]:
    drawn = {p.title: p for p in charts(report)}
    curves = [p for title, p in drawn.items() if title.startswith("Learning")]
    if report.finding.finalists and report.finding.confirmed:
        yield "<h2>Confirmation on new seeds</h2>" + _table(ranking_columns(report), ranking(report), "finalists")
        yield _note(report)
    if report.train_command is not None:
        yield "<h2>The winner</h2>" + _table((), list(winner_parameters(report).items()), "")
        yield f"<h3>Command to train it again</h3><pre>{html.escape(report.train_command)}</pre>"
    yield from map(_figure, curves)
    if report.pictures:
        yield "<h2>The winner's network</h2>" + "".join(map(_picture, report.pictures))
    if report.stop_notes:
        yield f"<h2>What was cut short</h2>{_list(report.stop_notes)}"
    if report.caveats:
        yield f"<h2>Caveats</h2>{_list(report.caveats)}"
    if report.next_command is not None:
        yield "<h2>Next search</h2><p>This command searches around the winner. A range is wider "
        yield "where the winner is at its edge.</p>"
        yield f"<pre>{html.escape(report.next_command)}</pre>"
    others = [p for p in drawn.values() if p not in curves]
    if others:
        yield "<h2>The search in charts</h2>"
        if report.plan.space.parameters and not report.importances.certain:
            yield f"<p>{html.escape(report.importances.sentence())}</p>"
        yield "".join(map(_figure, others[:1])) + _rung_table(report) + "".join(map(_figure, others[1:]))
    yield f"<h2>Cost</h2>{_list(cost_lines(report))}"


def _rung_table(report: Report) -> str:
    rungs = find_rungs(report.plan, report.records)
    if not rungs:
        return ""
    words = html.escape(cost_sentence(report.plan, report.records))
    table = _table(rung_columns(report.plan.unit), rung_rows(rungs), "")
    return f'{table}<p class="small">{words}.</p>'


def _note(report: Report) -> str:
    among = len(report.finding.finalists)
    corrected = f", corrected for the choice of the best of {among} configurations" if among > 2 else ""
    return (
        f'<p class="small">± is half the width of a 95% confidence interval (Student\'s t over seeds{corrected}). '
        "Two configurations are compared with a two-sided t test on paired seeds.</p>"
    )


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]], kind: str) -> str:
    head = "".join(f"<th>{html.escape(h)}</th>" for h in heads)
    body = ""
    for i, row in enumerate(rows):
        names = heads or [""] * len(row)
        cells = "".join(
            f'<td data-name="{html.escape(n)}">{html.escape(c)}</td>' if c else "<td></td>"
            for n, c in zip(names, row, strict=True)
        )
        body += f'<tr class="won">{cells}</tr>' if kind and i == 0 else f"<tr>{cells}</tr>"
    head = f"<thead><tr>{head}</tr></thead>" if head else ""
    return f'<div class="wide"><table class="{kind}">{head}<tbody>{body}</tbody></table></div>'


def _list(lines: Iterable[str]) -> str:
    return "<ul>" + "".join(f"<li>{html.escape(line)}</li>" for line in lines) + "</ul>"


def _figure(chart: Chart) -> str:
    caption = html.escape(chart.caption)
    svg = chart.svg.replace("<svg ", '<svg aria-hidden="true" ', 1)  # the caption describes it
    return (
        f"<figure><h3>{html.escape(chart.title)}</h3>"
        f'<div role="img" aria-label="{caption}">{svg}</div><figcaption>{caption}</figcaption></figure>'
    )


def _picture(picture: Picture) -> str:
    description, data = html.escape(picture.description), base64.b64encode(picture.png).decode()
    return (
        f"<figure><h3>{html.escape(picture.title)}</h3>"
        f'<img alt="{description}" src="data:image/png;base64,{data}"><figcaption>{description}</figcaption></figure>'
    )
