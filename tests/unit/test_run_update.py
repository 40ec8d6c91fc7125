"""A trial's record minus what its run holds is what must be written to MLflow."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest

from overnight.protocol import Progress
from overnight.search.build_plan import build_plan
from overnight.search.plan import Plan
from overnight.search.record import TrialRecord
from overnight.tracking import tags
from overnight.tracking.run_update import TrialRun, metrics_of, missing, params_of


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Plan:
    return build_plan([f"home={tmp_path_factory.mktemp('home')}"])


def record(epochs: int, state: str = "running", **values: Any) -> TrialRecord:
    history = tuple(Progress(0, e, {"val/accuracy": e / 10, "odd": math.inf}, 1e9 + e, 0.1) for e in range(epochs))
    fields = {"objective": (epochs - 1) / 10, "reason": None, "detail": "", "started_at": 1e9, "ended_at": 2e9}
    return TrialRecord(0, state, {"optimizer.lr": 0.1}, history, **{**fields, **values})  # type: ignore[arg-type]


def new_run() -> TrialRun:
    return TrialRun("run", "RUNNING", steps={})


def complete_run() -> TrialRun:
    params = {"optimizer.lr", "log10_optimizer.lr"}
    steps = {"val/accuracy": {0, 1, 2}, "objective": {2}}
    return TrialRun("run", "FINISHED", steps, params, has_config=True)


def test_a_new_run_gets_everything_that_is_known_of_the_trial(study: Plan) -> None:
    update = missing(new_run(), record(2), study, "parent")
    assert update.config is not None
    assert "lr: 0.1" in update.config
    assert [(m.name, m.value, m.step) for m in update.metrics] == [("val/accuracy", 0.0, 0), ("val/accuracy", 0.1, 1)]
    assert update.params == {"optimizer.lr": "0.1", "log10_optimizer.lr": "-1"}
    assert update.tags == {tags.STATE: "running", tags.PARENT: "parent"}
    assert not update.resume
    assert update.end_status is None, "a running trial does not end its run"


def test_a_complete_run_gets_only_its_tags_again(study: Plan) -> None:
    update = missing(complete_run(), record(3, "complete"), study, None)
    assert (update.config, update.metrics, update.params, update.end_status) == (None, (), {}, None)
    assert update.tags == {tags.STATE: "complete"}


def test_only_steps_that_the_run_lacks_are_logged(study: Plan) -> None:
    run = TrialRun("run", "RUNNING", {"val/accuracy": {0, 2}})
    update = missing(run, record(4), study, None)
    assert [m.step for m in update.metrics] == [1, 3]


def test_names_that_mlflow_refuses_or_overnight_gives_are_mapped(study: Plan) -> None:
    history = (Progress(0, 0, {"val/AP@50": 0.5, "objective": 0.25, "x" * 260: 1.0}, 1e9, 0.1),)
    update = missing(new_run(), dataclasses.replace(record(1, "complete"), history=history, objective=0.5), study, None)
    values = {m.name: m.value for m in update.metrics}
    (cut,) = (name for name in values if name.startswith("xxx"))
    assert values == {"val/AP:at:50": 0.5, "objective:user:": 0.25, cut: 1.0, "objective": 0.5}
    (tag,) = (name for name in update.tags if name.startswith(tags.NAME))
    assert update.tags[tag] == "x" * 260, "the whole name is kept"


def test_only_a_continuous_parameter_on_a_log_scale_has_its_logarithm_beside_it(tmp_path: Path) -> None:
    searched = ["optimizer.lr=tag(log,interval(1e-4,1))", "data.batch_size=tag(log,int(interval(8,64)))"]
    study = build_plan([f"home={tmp_path}", "search=none", *searched])
    params = {"optimizer.lr": 0.01, "data.batch_size": 16}
    assert params_of(dataclasses.replace(record(1), params=params), study) == {
        "optimizer.lr": "0.01",
        "data.batch_size": "16",
        "log10_optimizer.lr": "-2",
    }


def test_the_objective_has_no_more_digits_than_a_32_bit_number() -> None:
    value = 0.9777777791023254
    assert [m.value for m in metrics_of(record(1, "complete", objective=value)) if m.name == "objective"] == [0.9777778]


def test_the_objective_is_logged_once_and_only_when_it_is_final(study: Plan) -> None:
    for state, logged in (("running", 0), ("paused", 0), ("failed", 0), ("pruned", 1), ("complete", 1)):
        update = missing(new_run(), record(3, state), study, None)
        objective = [m for m in update.metrics if m.name == "objective"]
        assert [(m.value, m.time_ms, m.step) for m in objective] == [(0.2, 2 * 10**12, 2)] * logged, state


@pytest.mark.parametrize(
    ("state", "status", "ended_at"),
    [("paused", "KILLED", 1e9), ("complete", "FINISHED", 2e9), ("pruned", "FINISHED", 2e9), ("failed", "FAILED", 2e9)],
)
def test_a_trial_that_is_not_running_ends_its_run(study: Plan, state: str, status: str, ended_at: float) -> None:
    update = missing(new_run(), record(1, state), study, None)
    assert (update.end_status, update.ended_at) == (status, ended_at)


def test_a_resumed_trial_resumes_its_run(study: Plan) -> None:
    update = missing(TrialRun("run", "KILLED", {}), record(1), study, None)
    assert update.resume
    assert update.end_status is None


def test_a_withdrawn_exclusion_deletes_its_reason(study: Plan) -> None:
    run = complete_run()
    run.has_reason = True
    assert missing(run, record(3, "complete"), study, None).delete_reason
    assert not missing(run, record(3, "complete", reason="excluded"), study, None).delete_reason


def test_a_failure_is_described_in_a_file_and_in_a_note_that_fits(study: Plan) -> None:
    detail = "x" * 20_000 + "\0the end"
    update = missing(new_run(), record(1, "failed", reason="error", detail=detail), study, None)
    assert update.error == detail
    assert update.note is not None
    assert "the end" in update.note
    assert "\0" not in update.note
    assert len(update.note) < 8000
