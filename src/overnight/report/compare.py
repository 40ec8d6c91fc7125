"""Trials and studies side by side: what differs between them, what they reached, and what that cost."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from overnight.config.paths import StudyLocation
from overnight.config.problems import ConfigError
from overnight.report import finding
from overnight.report.statistics import Estimate
from overnight.search.plan import Plan
from overnight.search.record import TrialRecord, config_of, flat_config, format_duration
from overnight.search.space import to_hydra
from overnight.study.snapshot import StudyView
from overnight.tracking import store


@dataclass(frozen=True)
class ComparedItem:
    """One of the compared. name: STUDY or STUDY/NUMBER. params: flat, every key of its configuration.

    value: of `metric`, on one seed, or of its confirmation. tests: metric -> mean on the test set. seconds: of
    training, a trial's, or a whole study's. uid, number: of the trial that stands for it.
    """

    name: str
    metric: str
    state: str
    value: Estimate | None
    tests: dict[str, float]
    params: dict[str, Any]
    trials: int
    seconds: float
    curve: tuple[float, ...]
    experiment_id: str | None
    uid: str
    number: int | None


def compared_item(view: StudyView, number: int | None) -> ComparedItem:
    """A trial of a study, or, without a number, the study by its winner. Raises ConfigError where there is none."""
    if number is not None and not 0 <= number < len(view.records):
        known = f"0 to {len(view.records) - 1}" if view.records else "none"
        raise ConfigError([f"{view.name}/{number}: must be one of the study's trials, {known}"])
    found = finding.from_view(view)
    record = view.records[number] if number is not None else found.best
    all_of = (*view.records, *(view.confirmation.records if view.confirmation is not None else ()))
    metric = view.plan.settings.study.metric
    if record is None:
        trials, cost = len(view.records), _seconds(all_of)
        return ComparedItem(
            view.name, metric, view.state, None, {}, {}, trials, cost, (), view.experiment_id, view.uid, None
        )  # fmt: skip
    confirmed = [*found.finalists, *([found.baseline] if found.baseline is not None else [])]
    finalist = next((f for f in confirmed if f.trial.number == record.number), None)
    one = Estimate(record.objective, None, None, 1) if record.objective is not None else None
    return ComparedItem(
        view.name if number is None else f"{view.name}/{number}",
        metric,
        record.state if number is not None else view.state,
        finalist.estimate if finalist is not None and finalist.estimate is not None else one,
        {name: e.mean for name, e in finalist.tests.items()} if finalist is not None else {},
        _config(view.plan, record),
        1 if number is not None else len(view.records),
        _seconds([record] if number is not None else all_of),
        tuple(e.metrics[metric] for e in record.history if metric in e.metrics),
        view.experiment_id,
        view.uid,
        record.number,
    )


def differing(sides: Sequence[ComparedItem]) -> list[str]:
    """The keys whose values are not the same in all of them, in the order of the configurations."""
    keys = dict.fromkeys(k for s in sides for k in s.params)
    return [k for k in keys if len({repr(s.params.get(k, ...)) for s in sides}) > 1]


def as_json(sides: Sequence[ComparedItem]) -> list[dict[str, Any]]:
    """What `compare --json` prints, one object each: only what differs in the parameters."""
    keys = differing(sides)
    return [
        {
            "name": s.name,
            "state": s.state,
            "metric": s.metric,
            "value": s.value.mean if s.value else None,
            "half_width": s.value.half_width if s.value else None,
            "seeds": s.value.n if s.value else 0,
            "test": s.tests,
            "params": {k: s.params[k] for k in keys if k in s.params},
            "trials": s.trials,
            "seconds": s.seconds,
            "curve": list(s.curve),
        }
        for s in sides
    ]


def rows(sides: Sequence[ComparedItem]) -> list[tuple[str, ...]]:
    """What a table shows, a row a fact and a column a side; the first row holds their names."""

    def shown(side: ComparedItem, key: str) -> str:
        value = side.params.get(key)
        return "" if key not in side.params else f"{value:.4g}" if isinstance(value, float) else to_hydra(value)

    metrics = dict.fromkeys(s.metric for s in sides)
    tests = dict.fromkeys(name for s in sides for name in s.tests)
    return [
        ("", *(s.name for s in sides)),
        *(
            (m, *(finding.format_value(s.value, m) if s.value and s.metric == m else "" for s in sides))
            for m in metrics
        ),
        *((t, *(finding.format_value(s.tests[t], t) if t in s.tests else "" for s in sides)) for t in tests),
        ("seeds", *(str(s.value.n) if s.value else "" for s in sides)),
        ("state", *(s.state for s in sides)),
        ("trials", *(str(s.trials) for s in sides)),
        ("training", *(format_duration(s.seconds) for s in sides)),
        ("learning curve", *(sparkline(s.curve) for s in sides)),
        *((key, *(shown(s, key) for s in sides)) for key in differing(sides)),
    ]


def table(sides: Sequence[ComparedItem]) -> RenderableType:
    """The rows for a terminal."""
    head, *body = rows(sides)
    shown = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for name in head:
        shown.add_column(name, overflow="fold")
    for row in body:
        shown.add_row(Text(row[0], style="dim"), *map(Text, row[1:]))
    return shown


def mlflow_page(location: StudyLocation, sides: Sequence[ComparedItem], port: int = 5000) -> str | None:
    """The address of MLflow's own page for comparing runs; None where it has no run of one of them, or there is one
    alone."""
    runs = store.find_trial_runs(location, [(s.uid, s.number) for s in sides])
    if len(sides) < 2 or len(runs) < len(sides):
        return None
    chosen = quote(json.dumps(runs, separators=(",", ":")))
    experiments = quote(json.dumps(list(dict.fromkeys(s.experiment_id for s in sides)), separators=(",", ":")))
    address = location.server or f"http://127.0.0.1:{port}"
    return f"{address}/#/compare-runs?runs={chosen}&experiments={experiments}"


def sparkline(values: Sequence[float], width: int = 16) -> str:
    """A curve in one line of text, at most `width` characters, between its own least and greatest value."""
    if not values:
        return ""
    step = max(len(values) / width, 1)
    points = [values[min(int(i * step), len(values) - 1)] for i in range(min(len(values), width))]
    points[-1] = values[-1]
    low, high = min(points), max(points)
    marks = "▁▂▃▄▅▆▇█"
    return "".join(marks[round((v - low) / (high - low) * 7) if high > low else 0] for v in points)


def _seconds(records: Sequence[TrialRecord]) -> float:
    return sum(e.seconds for r in records for e in r.history)


def _config(plan: Plan, record: TrialRecord) -> dict[str, Any]:
    """The whole configuration, flat, with the classes' names under the config groups' own."""
    config = config_of(record, plan)
    classes = {node: config[node]["_target_"] for node in config if "_target_" in config[node]}
    named = {node: str(target).rpartition(".")[2] for node, target in classes.items()}
    return {**named, **flat_config(config)}
