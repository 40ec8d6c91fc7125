"""Compare trials and studies side by side: their results, their cost, and the parameters that differ."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from overnight.config.paths import StudyLocation
from overnight.config.problems import ConfigError
from overnight.config.values import fingerprint, json_params, short_text
from overnight.report import finding
from overnight.report.statistics import Estimate
from overnight.search.formatting import format_duration, format_value
from overnight.search.history import mean_curve
from overnight.search.plan import TRAIN_STUDY, Plan
from overnight.search.record import TrialRecord, config_of, flat_config
from overnight.study.snapshot import StudyView
from overnight.tracking import local_server, store


@dataclass(frozen=True)
class ComparedItem:
    """A trial, or a study represented by its winner.

    Attributes:
        name: STUDY or STUDY/NUMBER.
        objective: The value of `metric`, from the confirmation or on one seed.
        tests: Metric -> mean on the test set.
        params: Every key of the configuration, flat.
        curve: The finite values of the metric, in the order of the epochs.
        seconds: Training time of the trial, or of the whole study.
        uid: The id of the study in MLflow.
        number: The number of the trial; None for a study without a winner.
    """

    name: str
    metric: str
    state: str
    objective: Estimate | None
    tests: dict[str, float]
    params: dict[str, Any]
    trials: int
    seconds: float
    curve: tuple[float, ...]
    experiment_id: str | None
    uid: str
    number: int | None


def compared_item(view: StudyView, number: int | None) -> ComparedItem:
    """Describe a trial, or a study by its winner if `number` is None. Raises ConfigError if there is no such trial."""
    if number is not None and not 0 <= number < len(view.records):
        known = f"0 to {len(view.records) - 1}" if view.records else "none"
        raise ConfigError([f"{view.name}/{number}: must be one of the study's trials, {known}"])
    if number is None and view.name == TRAIN_STUDY:
        raise ConfigError([f"{view.name}: must be {view.name}/NUMBER, e.g. {view.name}/0; it has no winner"])
    found = finding.from_view(view)
    record = view.records[number] if number is not None else found.best
    all_of = (*view.records, *(view.confirmation.records if view.confirmation is not None else ()))
    metric = view.metric_of(record) if record is not None else view.plan.settings.study.metric
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
        tuple(filter(math.isfinite, mean_curve(record.history, metric))),
        view.experiment_id,
        view.uid,
        record.number,
    )


def differing(items: Sequence[ComparedItem]) -> list[str]:
    """Return the keys whose values differ, in the order of the configurations."""
    keys = dict.fromkeys(k for s in items for k in s.params)
    return [k for k in keys if len({fingerprint(s.params[k]) if k in s.params else None for s in items}) > 1]


def as_json(items: Sequence[ComparedItem]) -> list[dict[str, Any]]:
    """Return what `compare --json` prints, one object for each item, without parameters that are equal."""
    keys = differing(items)
    return [
        {
            "name": s.name,
            "state": s.state,
            "metric": s.metric,
            "objective": s.objective.mean if s.objective else None,
            "half_width": s.objective.half_width if s.objective else None,
            "seeds": s.objective.n if s.objective else 0,
            "test": s.tests,
            "params": json_params({k: s.params[k] for k in keys if k in s.params}),
            "trials": s.trials,
            "seconds": s.seconds,
            "curve": list(s.curve),
        }
        for s in items
    ]


def rows(items: Sequence[ComparedItem]) -> list[tuple[str, ...]]:
    """Return the rows of the table, one column for each item; the first row holds the names."""

    def shown(item: ComparedItem, key: str) -> str:
        return short_text(item.params[key], 4) if key in item.params else ""

    metrics = dict.fromkeys(s.metric for s in items)
    tests = dict.fromkeys(name for s in items for name in s.tests)
    return [
        ("", *(s.name for s in items)),
        *(
            (m, *(finding.format_estimate(s.objective, m) if s.objective and s.metric == m else "" for s in items))
            for m in metrics
        ),
        *((t, *(format_value(s.tests[t], t) if t in s.tests else "" for s in items)) for t in tests),
        ("seeds", *(str(s.objective.n) if s.objective else "" for s in items)),
        ("state", *(s.state for s in items)),
        ("trials", *(str(s.trials) for s in items)),
        ("training", *(format_duration(s.seconds) for s in items)),
        ("learning curve", *(sparkline(s.curve) for s in items)),
        *((key, *(shown(s, key) for s in items)) for key in differing(items)),
    ]


def table(items: Sequence[ComparedItem]) -> RenderableType:
    """Return the comparison as a table for a terminal."""
    head, *body = rows(items)
    shown = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for name in head:
        shown.add_column(Text(name), overflow="fold")
    for row in body:
        shown.add_row(Text(row[0], style="dim"), *map(Text, row[1:]))
    return shown


def mlflow_page(location: StudyLocation, items: Sequence[ComparedItem]) -> str | None:
    """Return the URL of MLflow's page that compares the runs.

    None if there is one item, if no server shows the store of this location, or if MLflow lacks a run.
    """
    address = local_server.address(location)
    if address is None:
        return None
    runs = store.find_trial_runs(location, [(s.uid, s.number) for s in items])
    if len(items) < 2 or len(runs) < len(items):
        return None
    chosen = quote(json.dumps(runs, separators=(",", ":")))
    experiments = quote(json.dumps(list(dict.fromkeys(s.experiment_id for s in items)), separators=(",", ":")))
    return f"{address}/#/compare-runs?runs={chosen}&experiments={experiments}"


def sparkline(values: Sequence[float], width: int = 16) -> str:
    """Draw the finite values of a curve in at most `width` characters, scaled to their minimum and maximum."""
    values = [v for v in values if math.isfinite(v)]
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
    """Return the whole configuration, flat, with the class of each component under the name of its config group."""
    config = config_of(record, plan)
    classes = {node: config[node]["_target_"] for node in config if "_target_" in config[node]}
    named = {node: str(target).rpartition(".")[2] for node, target in classes.items()}
    return {**named, **flat_config(config)}
