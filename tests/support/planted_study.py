"""The records of a study whose best configuration is known."""

from __future__ import annotations

import dataclasses
import functools
import random
from typing import Any

from overnight.protocol import Progress
from overnight.search.build_plan import build_plan
from overnight.search.plan import CONFIRM_SUFFIX, Plan, random_point
from overnight.search.record import Confirms, TrialRecord, ranked
from overnight.study.snapshot import StudyView

# The learning rate matters most, then the width; dropout has no effect.
SPACE = (
    "search=none", "optimizer.lr=tag(log,interval(1e-4,1e-2))", "model.dropout=interval(0,0.5)",
    "model.activation=relu,tanh,gelu", "study.trials=40", "study.confirm.seeds=3",
)  # fmt: skip

BEST_LR = 0.05  # above the upper end


@functools.cache
def planned(*overrides: str) -> Plan:
    return build_plan([*SPACE, *overrides])


def record(
    number: int,
    params: dict[str, Any],
    value: float | None,
    state: str = "complete",
    metric: str = "val/accuracy",
    **more: Any,
) -> TrialRecord:
    history = () if value is None else tuple(Progress(number, e, {metric: value}, 1e9, 0.5) for e in range(5))
    reason = "diverged" if state == "failed" else None
    return TrialRecord(number, state, params, history, value, reason, "why", 1e9, 1e9 + 9, **more)  # type: ignore[arg-type]


def planted(params: dict[str, Any]) -> float:
    from math import log10

    off = log10(params["optimizer.lr"] / BEST_LR)
    return 0.8 - 0.05 * off**2 + 0.15 * (params["model.activation"] == "gelu")


def search_records(study: Plan, trials: int = 40, seed: int = 0) -> list[TrialRecord]:
    rng = random.Random(seed)
    points = [random_point(study, rng) for _ in range(trials)]
    return [record(i, p, planted(p)) for i, p in enumerate(points)]


def view_of(records: list[TrialRecord], *overrides: str, confirmed: bool = False) -> StudyView:
    study = planned(*overrides)
    whole = StudyView(study.name, study, tuple(records), None, None, None)
    if not confirmed:
        return whole
    finalists = [r.number for r in ranked(records, study.settings)[:3]]
    runs = [
        record(i, records[t].params, (records[t].objective or 0) + 0.001 * n, confirms=Confirms(t, n, n))
        for i, (t, n) in enumerate((t, n) for n in (1, 2, 3) for t in (*finalists, 0))
    ]
    second = StudyView(study.name + CONFIRM_SUFFIX, study, tuple(runs), None, None, None)
    return dataclasses.replace(whole, confirmation=second)


DEGENERATE = {
    "an empty study": [],
    "all failed": [record(i, {"optimizer.lr": 0.001}, None, "failed") for i in range(3)],
    "one trial": [record(0, {"optimizer.lr": 0.001}, 0.9)],
    "two equal trials": [record(i, {"optimizer.lr": 0.001}, 0.9) for i in range(2)],
    "a constant objective": [record(r.number, r.params, 0.1) for r in search_records(planned(), 12)],
    "only pruned trials": [record(i, {"optimizer.lr": 0.001 * (i + 1)}, 0.5, "pruned") for i in range(3)],
    "one trial still waiting": [record(0, {}, None, "waiting")],
}
