"""Read a study's runs from MLflow and compare them with the Optuna storage."""

from __future__ import annotations

import math
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from optuna.distributions import FloatDistribution

from overnight.search.space import display_name
from overnight.study.snapshot import StudyView


def client_of(home: Path) -> MlflowClient:
    return MlflowClient(tracking_uri=f"sqlite:///{home}/mlflow.db")


def runs_of(home: Path, experiment_id: str = "1") -> list[Any]:
    return list(client_of(home).search_runs([experiment_id], max_results=1000))


def children(home: Path) -> dict[int, Any]:
    runs = [r for r in runs_of(home) if "overnight.trial" in r.data.tags]
    found = {int(r.data.tags["overnight.trial"]): r for r in runs}
    assert len(found) == len(runs), "one run a trial"
    return found


def assert_equal(home: Path, found: StudyView) -> None:
    """Assert that MLflow has every trial of a study with the same params, steps, values, times and state."""
    client, runs = client_of(home), children(home)
    log_scale_names = {
        display_name(name)
        for name, dist in found.plan.space.names().items()
        if isinstance(dist, FloatDistribution) and dist.log
    }
    assert set(runs) == {r.number for r in found.records if r.state != "waiting"}
    for record in found.records:
        run = runs[record.number]
        assert run.info.status == {"complete": "FINISHED", "pruned": "FINISHED", "failed": "FAILED"}.get(
            record.state, "KILLED"
        )
        assert run.info.run_name == f"trial-{record.number:04d}"
        logs = {f"log10_{name}": value for name, value in record.params.items() if name in log_scale_names}
        own = {k: v for k, v in run.data.params.items() if not k.startswith("log10_")}
        assert own == {k: str(v) for k, v in record.params.items()}
        assert run.data.params.keys() - own.keys() == logs.keys()
        for name, value in logs.items():
            assert 10 ** float(run.data.params[name]) == pytest.approx(value, rel=1e-4)
        tags = run.data.tags
        assert (tags["overnight.study"], tags["overnight.state"]) == (found.name, record.state)
        assert tags.get("overnight.reason") == record.reason
        assert tags["mlflow.parentRunId"] == found.parent_run_id
        names = {n for e in record.history for n in e.metrics}
        for name in names:
            logged = [(m.step, m.value, m.timestamp) for m in client.get_metric_history(run.info.run_id, name)]
            stored = [(e.index, e.metrics[name], round(e.at * 1000)) for e in record.history]
            assert sorted(logged) == [s for s in stored if math.isfinite(s[1])]
        if record.state in ("complete", "pruned"):
            (objective,) = client.get_metric_history(run.info.run_id, "objective")
            assert objective.value == pytest.approx(record.objective, rel=1e-6)
        else:
            assert "objective" not in run.data.metrics


def forget(home: Path, run_id: str, table: str, which: str) -> None:
    """Delete some rows of a run from MLflow's store."""
    with closing(sqlite3.connect(home / "mlflow.db")) as store, store:
        deleted = store.execute(f"DELETE FROM {table} WHERE run_uuid = ? AND {which}", [run_id])
        assert deleted.rowcount, "there must be rows to delete"
