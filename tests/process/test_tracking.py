"""MLflow is synchronised with the Optuna storage, trial by trial, and repaired from it."""

from __future__ import annotations

import contextlib
import math
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from overnight import api
from overnight.protocol import Progress
from overnight.search.build_plan import build_plan
from overnight.search.record import TrialRecord
from overnight.study.snapshot import StudyView, view
from overnight.tracking import names, store, summary
from overnight.tracking.sync import MlflowSync
from support.mlflow_store import assert_equal, children, client_of, forget, runs_of
from support.paths import copied_home


def test_a_finished_study_has_a_parent_run_and_one_run_a_trial_that_equal_the_optuna_storage(
    finished_home: Path, finished: StudyView
) -> None:
    assert_equal(finished_home, finished)
    runs = runs_of(finished_home)
    assert len(runs) == len(finished.records) + 1
    assert {r.info.status for r in runs} == {"FINISHED"}
    (parent,) = [r for r in runs if r.info.run_id == finished.parent_run_id]
    assert parent.data.tags["overnight.role"] == "study"
    assert finished.best is not None
    assert parent.data.metrics["best/objective"] == pytest.approx(finished.best.objective, rel=1e-6)
    for record in finished.records:
        assert {"train/loss", "val/loss", "val/accuracy"} <= set(record.history[0].metrics)


def test_scores_that_are_asked_by_hand_leave_the_curves_of_training_as_they_are(
    finished_home: Path, finished: StudyView, tmp_path: Path
) -> None:
    home = copied_home(finished_home, tmp_path / "copy")
    location, record = build_plan([f"home={home}"]).settings.location, finished.records[0]
    for at in (2e9, 2e9 + 1):
        assert summary.log_test(location, finished.uid, record, at, {"val/accuracy": 0.25, "test/f1": 0.5}) is None
    shown = children(home)[0].data.metrics
    assert (shown["test/val/accuracy"], shown["test/f1"]) == (0.25, 0.5)
    assert_equal(home, finished)


@pytest.mark.long
def test_mlflow_is_prepared_in_the_background_and_writes_nothing_until_it_is_opened(tmp_path: Path) -> None:
    code = (
        "import os, sys, threading\n"
        "from overnight.tracking import store\nfrom overnight.config.compose import study_location\n"
        f"location = study_location(['home={tmp_path}'])\n"
        "store.cores = lambda: 2\n"
        "store.prepare_in_background(location)\n"
        "[t.join() for t in threading.enumerate() if t.name == 'mlflow-preparation']\n"
        "print('mlflow' in sys.modules, store._empty_store.cache_info().currsize, os.listdir(location.paths.root))\n"
        "experiments = store.open_client(location).search_experiments()\n"
        "print([e.name for e in experiments], os.listdir(location.paths.root))\n"
    )
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert output.splitlines() == ["True 1 []", "['Default'] ['mlflow.db']"]


def test_the_parent_run_has_config_space_and_environment_and_the_best_trial_has_its_weights(
    finished_home: Path, finished: StudyView
) -> None:
    client = client_of(finished_home)
    assert finished.parent_run_id is not None
    assert finished.best is not None
    files = {f.path for f in client.list_artifacts(finished.parent_run_id)}
    assert {"config.yaml", "search_space.yaml", "environment.json"} <= files
    best = children(finished_home)[finished.best.number]
    assert [f.path for f in client.list_artifacts(best.info.run_id, "weights")] == ["weights/weights.ckpt"]
    for number, run in children(finished_home).items():
        artifacts = Path(run.info.artifact_uri.removeprefix("file://"))
        config = (artifacts / "config.yaml").read_text()
        assert f"lr: {finished.records[number].params['optimizer.lr']}" in config


def test_what_mlflow_lost_is_written_again_from_the_optuna_storage(
    finished_home: Path, finished: StudyView, tmp_path: Path
) -> None:
    home = tmp_path / "copy"
    copied_home(finished_home, home)
    client, before = client_of(home), children(home)
    client.delete_run(before[1].info.run_id)  # a run that was never created
    client.update_run(before[2].info.run_id, status="RUNNING")  # a kill before the run was ended
    forget(home, before[4].info.run_id, "params", "key = 'optimizer.lr'")  # a request that was lost
    for table in ("metrics", "latest_metrics"):
        forget(home, before[5].info.run_id, table, "key = 'val/loss'")
    assert finished.parent_run_id is not None
    client.update_run(finished.parent_run_id, status="RUNNING")  # a kill before the study's summary
    forget(home, finished.parent_run_id, "latest_metrics", "key = 'best/objective'")
    client.delete_tag(finished.parent_run_id, "overnight.best")
    mine = {"overnight.study": "digits-mlp", "overnight.uid": before[0].data.tags["overnight.uid"]}
    unknown = client.create_run("1", tags={**mine, "overnight.trial": "77"})
    duplicate = client.create_run("1", tags={**mine, "overnight.trial": "3"})
    foreign = client.create_run("1", tags={**mine, "overnight.uid": "another storage", "overnight.trial": "88"})
    study = build_plan(
        [f"home={home}", "study.trials=6", "trainer.max_epochs=6", "scheduler=median", "scheduler.startup_trials=2"]
    )
    result = api.run(study)
    assert (result.stop_reason, result.did_work, result.mlflow_error) == ("complete", False, None)
    found, _ = view(study.settings.location)
    assert found is not None
    remaining = {r.info.run_id for r in runs_of(home)}
    assert {unknown.info.run_id, duplicate.info.run_id}.isdisjoint(remaining)
    assert foreign.info.run_id in remaining, "a study of the same name in another Optuna storage is not changed"
    client.delete_run(foreign.info.run_id)
    assert_equal(home, found)
    parent = client.get_run(finished.parent_run_id)
    assert (parent.info.status, parent.data.tags["overnight.state"]) == ("FINISHED", "complete")
    assert found.best is not None
    assert parent.data.tags["overnight.best"] == f"trial-{found.best.number:04d}"
    assert parent.data.metrics["best/objective"] == pytest.approx(found.best.objective, rel=1e-6)


@pytest.mark.long
def test_the_parent_run_shows_the_best_objective_in_whatever_order_trials_become_the_best(home: Path) -> None:
    for best in (record(3, 5, "complete"), record(1, 6, "complete")):  # trial 1 was paused and resumed
        mlflow_sync = MlflowSync(build_plan([f"home={home}"]), "uid")
        mlflow_sync.start([record(n, 2, "complete") if n != best.number else best for n in range(4)])
        mlflow_sync.close("FINISHED", best, None)
        parent = client_of(home).get_run(mlflow_sync.parent_run_id)
        assert parent.data.metrics == {"best/objective": best.objective}, "the study's run is not among its trials"


@pytest.mark.long
def test_the_duration_of_a_study_is_that_of_its_work_and_does_not_grow_with_later_commands(home: Path) -> None:
    study = build_plan([f"home={home}"])
    search = [record(n, 3, "complete", ended_at=1e9 + 5 + n, started_at=1e9 - 1) for n in (0, 1)]
    confirmation = [record(0, 3, "complete", ended_at=1e9 + 16, started_at=1e9 + 7)]
    for _ in range(2):
        first = MlflowSync(study, "uid")
        first.start(search)
        first.close("FINISHED", search[0], None)
        second = MlflowSync(study, "uid.confirm", search_uid="uid", search_records=search)
        second.start(confirmation)
        second.close("FINISHED", None, None)
        info = client_of(home).get_run(first.parent_run_id).info
        assert (info.start_time, info.end_time) == ((1e9 - 1) * 1000, (1e9 + 16) * 1000)


def test_a_name_that_mlflow_refuses_costs_itself_only(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(names, "metric_name", lambda name: name)  # as if MLflow refused more than is known
    history = (Progress(0, 0, {"val/AP@50": 0.5, "val/accuracy": 0.25}, 1e9, 0.1),)
    trial = replace(record(0, 1, "complete", ended_at=1e9 + 1), history=history, objective=0.25)
    mlflow_sync = MlflowSync(build_plan([f"home={home}"]), "uid")
    mlflow_sync.start([trial])
    mlflow_sync.close("FINISHED", trial, None)
    run = children(home)[0]
    assert run.data.metrics == {"val/accuracy": 0.25, "objective": 0.25}
    assert run.data.params["optimizer.lr"] == "0.1"
    assert (run.info.status, run.data.tags["overnight.state"]) == ("FINISHED", "complete")
    (refused,) = mlflow_sync.refused
    assert refused == "trial-0000: metric val/AP@50"
    assert "alphanumerics" in mlflow_sync.refused[refused]


def record(number: int, epochs: int, state: str = "running", **more: Any) -> TrialRecord:
    history = tuple(Progress(number, e, {"val/accuracy": e / 10, "odd": math.inf}, 1e9 + e, 0.1) for e in range(epochs))
    fields = {"objective": (epochs - 1) / 10, "reason": None, "detail": "", "started_at": 1e9, "ended_at": None, **more}
    return TrialRecord(number, state, {"optimizer.lr": 0.1}, history, **fields)  # type: ignore[arg-type]


def test_a_resumed_trial_continues_its_run_and_no_step_is_logged_twice(home: Path) -> None:
    study = build_plan([f"home={home}"])
    first = MlflowSync(study, "uid")
    first.start([record(0, 2)])
    first.submit(record(0, 3, "paused"))
    first.close("KILLED", None, None)
    assert first.error is None
    run_id = children(home)[0].info.run_id
    assert children(home)[0].info.status == "KILLED"

    second = MlflowSync(study, "uid")
    second.start([record(0, 3, "running")])
    for epochs in (4, 5):
        second.submit(record(0, epochs))
    second.submit(record(0, 6, "complete", ended_at=1e9 + 9))
    second.close("FINISHED", record(0, 6, "complete"), None)
    assert second.error is None
    run = children(home)[0]
    assert (run.info.run_id, run.info.status, run.info.end_time) == (run_id, "FINISHED", round((1e9 + 9) * 1000))
    history = client_of(home).get_metric_history(run_id, "val/accuracy")
    assert sorted((m.step, m.value) for m in history) == [(e, e / 10) for e in range(6)]
    assert "odd" not in run.data.metrics, "only finite values are logged, because inf breaks the charts"


def test_a_failed_trial_shows_its_traceback(home: Path) -> None:
    mlflow_sync = MlflowSync(build_plan([f"home={home}"]), "uid")
    mlflow_sync.start([record(0, 1, "failed", reason="error", detail="Traceback: the end of it")])
    mlflow_sync.close("FAILED", None, None)
    run = children(home)[0]
    assert run.info.status == "FAILED"
    assert "the end of it" in run.data.tags["mlflow.note.content"]
    assert (Path(run.info.artifact_uri.removeprefix("file://")) / "error.txt").read_text() == "Traceback: the end of it"


def test_many_notes_and_a_long_traceback_fit_into_mlflow(home: Path) -> None:
    notes = tuple(f"resumed, crashed: {n:080}" for n in range(200))
    mlflow_sync = MlflowSync(build_plan([f"home={home}"]), "uid")
    mlflow_sync.start([record(0, 1, "failed", reason="error", detail="x" * 20_000 + "the end", notes=notes)])
    mlflow_sync.close("FAILED", None, None)
    assert mlflow_sync.error is None
    tags = children(home)[0].data.tags
    assert tags["overnight.notes"].endswith(notes[-1])
    assert "the end" in tags["mlflow.note.content"]


def test_an_mlflow_that_cannot_be_written_is_reported_as_an_error(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    blocked = tmp_path / "a-file-where-a-folder-should-be"
    blocked.touch()
    study = build_plan([f"home={tmp_path}", f"tracking.uri=sqlite:///{blocked}/mlflow.db", "study.trials=1"])
    mlflow_sync = MlflowSync(study, "uid")
    mlflow_sync.start([record(0, 1, "complete")])
    mlflow_sync.close("FINISHED", None, None)
    assert mlflow_sync.error is not None
    capfd.readouterr()


@pytest.mark.long
def test_the_store_is_created_completely_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    real = SqlAlchemyStore.__init__

    def cut(_: Any, uri: str, __: str) -> None:
        Path(uri.removeprefix("sqlite:///")).write_bytes(b"half a database")
        raise KeyboardInterrupt

    settings = build_plan([f"home={tmp_path}"]).settings.location
    monkeypatch.setattr(SqlAlchemyStore, "__init__", cut)
    with contextlib.suppress(KeyboardInterrupt):
        store.open_client(settings)
    assert not settings.paths.mlflow_db.exists()
    monkeypatch.setattr(SqlAlchemyStore, "__init__", real)
    assert store.open_client(settings).get_experiment("0") is not None


def test_nothing_is_written_outside_the_home(
    tune: Callable[..., Any], home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = home / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    assert tune("study.trials=1", "trainer.max_epochs=1").stop_reason == "complete"
    assert not list(elsewhere.iterdir())
    assert {p.name for p in home.iterdir()} == {
        "mlflow.db", "optuna.db", "artifacts", "checkpoints", "logs", "winners", "locks", "elsewhere",
    }  # fmt: skip


def test_every_run_names_its_data(finished_home: Path, finished: StudyView) -> None:
    inputs = [run.inputs.dataset_inputs for run in runs_of(finished_home)]
    assert [len(found) for found in inputs] == [1] * (len(finished.records) + 1)
    (data,) = {(i.dataset.name, i.dataset.digest, i.tags[0].value) for found in inputs for i in found}
    assert (data[0], data[2]) == ("digits", "training")


@pytest.mark.long
def test_system_metrics_are_on_the_runs_of_a_study_that_asks_for_them(
    tune: Callable[..., api.Result], home: Path
) -> None:
    result = tune(
        "study.trials=2", "trainer.max_epochs=60", "tracking.system_metrics=true", "optimizer.lr=0.1,0.01", "slots=1"
    )  # a trial may end before it is sampled if it takes a tenth of a second

    assert result.mlflow_error is None
    taken = {name for run in children(home).values() for name in run.data.metrics if name in names.SYSTEM_METRICS}
    assert {"system/trial_memory_megabytes", "system/cpu_utilization_percentage"} <= taken
    found, _ = view(result.plan.settings.location)
    assert found is not None
    for record in found.records:
        assert not any(name.startswith("system/") for epoch in record.history for name in epoch.metrics)
