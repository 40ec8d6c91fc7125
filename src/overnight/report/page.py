"""The report as one HTML file that asks nobody for anything: no script, no font, no picture from elsewhere."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence
from pathlib import Path

from overnight.report.figures import Picture, pictures
from overnight.report.report import Report, columns, cost_lines, ranking, settled

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
    """Write a report's page, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_suffix(".writing")
    fresh.write_text(page(report), encoding="utf-8")
    fresh.replace(path)


def page(report: Report) -> str:
    """The page's HTML."""
    name = html.escape(report.plan.name)
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{name}: the answer</title>'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{_STYLE}</style></head>'
        f'<body><main><h1>{name}</h1><p class="answer">{html.escape(report.sentence)}</p>{"".join(_sections(report))}'
        "</main></body></html>\n"
    )


def _sections(report: Report) -> Iterable[str]:
    drawn = {p.title: p for p in pictures(report)}
    curves = [p for title, p in drawn.items() if title.startswith("Learning")]
    if report.finding.finalists and report.finding.done:
        yield "<h2>On fresh seeds</h2>" + _table(columns(report), ranking(report), "finalists")
        yield _note(report)
    if report.train is not None:
        yield "<h2>The winner</h2>" + _table((), list(settled(report).items()), "")
        yield f"<h3>To train it again</h3><pre>{html.escape(report.train)}</pre>"
    yield from map(_figure, curves)
    if report.ended:
        yield f"<h2>How it ended</h2>{_list(report.ended)}"
    if report.doubts:
        yield f"<h2>What is doubtful</h2>{_list(report.doubts)}"
    if report.next is not None:
        yield "<h2>What to try next</h2><p>A space around the finding, wider where the winner lies at an edge:</p>"
        yield f"<pre>{html.escape(report.next)}</pre>"
    others = [p for p in drawn.values() if p not in curves]
    if others:
        yield "<h2>What the search saw</h2>" + "".join(map(_figure, others))
    yield f"<h2>What it cost</h2>{_list(cost_lines(report))}"


def _note(report: Report) -> str:
    among = len(report.finding.finalists)
    widened = f", made wider because the winner is the best of {among} by these very runs" if among > 2 else ""
    return (
        f'<p class="small">± is half of a 95% interval by Student\'s t over seeds{widened}. Configurations are '
        "compared seed by seed with a two-sided paired t test.</p>"
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


def _figure(picture: Picture) -> str:
    words = html.escape(picture.words)
    svg = picture.svg.replace("<svg ", '<svg aria-hidden="true" ', 1)  # the words stand for it
    return (
        f"<figure><h3>{html.escape(picture.title)}</h3>"
        f'<div role="img" aria-label="{words}">{svg}</div><figcaption>{words}</figcaption></figure>'
    )
