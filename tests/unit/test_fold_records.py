"""What the supervisor makes of the progress of a trial with folds."""

from __future__ import annotations

import io
import time
from pathlib import Path

import pytest
from rich.console import Console

from overnight.config.problems import ConfigError
from overnight.protocol import Progress
from overnight.report.live import ProgressSnapshot, RunningTrial
from overnight.report.live_table import LiveTable
from overnight.search.build_plan import build_plan, plan_for_training
from overnight.search.history import fold_scores, mean_curve, objective_of, pack_history, steps_of, unpack_history
from overnight.search.plan import Plan
from overnight.search.record import TrialRecord, typical_units, units_of_trial
from overnight.tracking.rebuild import _history
from overnight.tracking.run_update import metrics_of

METRIC = "val/accuracy"
# The first fold ends after two epochs of three, the second after three; the third has its first epoch.
VALUES = {0: [0.1, 0.5], 1: [0.2, 0.9, 0.3], 2: [0.4]}


def plan_of(*overrides: str) -> Plan:
    return build_plan(["study.folds=3", "trainer.max_epochs=3", "search=none", "optimizer.lr=0.1,0.2", *overrides])


def history() -> tuple[Progress, ...]:
    placed = [(fold, value) for fold, values in VALUES.items() for value in values]
    return tuple(Progress(0, i, {METRIC: v}, 1e9 + i, 0.5, fold=fold) for i, (fold, v) in enumerate(placed))


def record(plan: Plan) -> TrialRecord:
    config = plan.config({})
    return TrialRecord(0, "complete", {}, history(), 0.4, None, "", 1e9, 2e9, config=config)


def test_the_objective_is_the_mean_of_the_last_or_of_the_best_value_of_each_fold() -> None:
    last, best = plan_of().settings, plan_of("study.objective=best").settings
    assert fold_scores(history(), last) == {0: 0.5, 1: 0.3, 2: 0.4}
    assert objective_of(history(), last) == pytest.approx(0.4)
    assert objective_of(history(), best) == pytest.approx(0.6)
    lowest = plan_of("study.objective=best", "study.direction=minimize").settings
    assert objective_of(history(), lowest) == pytest.approx((0.1 + 0.2 + 0.4) / 3)


def test_a_history_with_folds_is_stored_whole() -> None:
    assert unpack_history(0, pack_history(history())) == history()


def test_epochs_begin_again_in_each_fold_and_a_curve_is_the_mean() -> None:
    assert steps_of(history()) == [0, 1, 0, 1, 2, 0]
    assert mean_curve(history(), METRIC) == pytest.approx([0.7 / 3, 0.7, 0.3])


def test_mlflow_has_a_curve_for_each_fold_from_which_the_history_is_rebuilt() -> None:
    logged = metrics_of(record(plan_of()))
    assert [(m.name, m.step, m.value) for m in logged[:3]] == [
        ("fold-0/val/accuracy", 0, 0.1),
        ("fold-0/val/accuracy", 1, 0.5),
        ("fold-1/val/accuracy", 0, 0.2),
    ]
    assert (logged[-1].name, logged[-1].value) == ("objective", 0.4)

    class Logged:
        def __init__(self, step: int, value: float, time_ms: int) -> None:
            self.step, self.value, self.timestamp = step, value, time_ms

    curves: dict[str, list[Logged]] = {}
    for m in logged[:-1]:
        curves.setdefault(m.name, []).append(Logged(m.step, m.value, m.time_ms))
    rebuilt = _history(0, curves, 1e9, False, 3)
    assert [(e.index, e.fold, e.metrics) for e in rebuilt] == [(e.index, e.fold, e.metrics) for e in history()]


def test_a_trial_has_the_epochs_of_all_its_folds() -> None:
    plan = plan_of()
    assert (units_of_trial(record(plan), plan), typical_units([], plan)) == (9, 9)


def test_the_live_table_shows_the_fold_and_the_epoch_in_it() -> None:
    plan, running = plan_of(), RunningTrial(0, 4, 0.4, time.time(), 1, 2)
    shown = ProgressSnapshot(plan, {0: record(plan)}, (running,), (), 1, None, None)
    console = Console(file=io.StringIO(), width=100)
    console.print(LiveTable(shown))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "fold" in text
    assert "2/3" in text
    assert "3/3" in text


def test_another_number_of_folds_is_another_study_and_one_is_none() -> None:
    assert plan_of().differences(plan_of("study.folds=5")) == ["study.folds: was 5, is 3"]
    assert plan_of("study.folds=1").differences(plan_of("study.folds=null")) == []
    with pytest.raises(ConfigError, match=r"study\.folds: must be from 2 to 20, or null for no .*, got 21"):
        plan_of("study.folds=21")


def test_train_trains_once(tmp_path: Path) -> None:
    plan = build_plan(["study.folds=3", f"home={tmp_path}"], searching=False)
    assert plan_for_training(plan).settings.study.folds is None
