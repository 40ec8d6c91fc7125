"""The response times of MLflow's server for a large study, with a login and PostgreSQL."""

from __future__ import annotations

import statistics
import time
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from mlflow import MlflowClient
from mlflow.entities import Metric, Param, RunTag

from support.servers import MlflowServer

pytestmark = [pytest.mark.service, pytest.mark.timeout(1800)]

EPOCHS = 50


def test_the_pages_of_a_large_study_answer_within_a_second(
    mlflow_server: MlflowServer, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    """Measure the p95 of 40 requests of the experiment's page, sorted by objective, and of the filter for one study.

    The runs are written as MlflowSync writes them: their names, tags and params, and every metric of every epoch.
    """
    for name, value in mlflow_server.login.items():
        monkeypatch.setenv(name, value)
    count = int(request.config.getoption("--pages"))
    client = MlflowClient(mlflow_server.address)
    experiment, uid = client.create_experiment(f"large-{uuid.uuid4().hex[:6]}"), uuid.uuid4().hex
    parent = client.create_run(experiment, tags={"overnight.uid": uid, "overnight.role": "study"}).info.run_id

    def write(number: int) -> None:
        tags = {"overnight.uid": uid, "overnight.role": "trial", "overnight.trial": str(number)}
        tags |= {"overnight.study": "large", "overnight.state": "complete", "mlflow.parentRunId": parent}
        run = client.create_run(experiment, tags=tags, run_name=f"trial-{number:04}").info.run_id
        at = round(time.time() * 1000)
        metrics = [
            Metric(name, (number * 7919 % 1000) / 1000 + epoch / 1e4, at + epoch, epoch)
            for name in ("train/loss", "val/loss", "val/accuracy")
            for epoch in range(EPOCHS)
        ]
        metrics.append(Metric("objective", (number * 7919 % 1000) / 1000, at, EPOCHS - 1))
        params = [Param(f"model.key_{i}", str(number * i)) for i in range(6)]
        client.log_batch(run, metrics, params, [RunTag("overnight.notes", "")])
        client.set_terminated(run)

    with ThreadPoolExecutor(4) as writers:
        list(writers.map(write, range(count)))
    page = {"order_by": ["metrics.`objective` DESC"], "max_results": 100}
    filtered = f"tags.`mlflow.parentRunId` = '{parent}'"
    for what, ask in (
        ("the experiment's page", lambda: client.search_runs([experiment], **page)),
        ("the parent filter", lambda: client.search_runs([experiment], filtered, **page)),
    ):
        assert len(ask()) == min(count, 100)
        seconds = [_seconds(ask) for _ in range(40)]
        p95 = statistics.quantiles(seconds, n=20)[-1]
        print(f"{what}, {count} trials of {EPOCHS} epochs: median {statistics.median(seconds):.3f} s, p95 {p95:.3f} s")
        assert p95 < 1.0, what


def _seconds(ask: Callable[[], Any]) -> float:
    began = time.perf_counter()
    ask()
    return time.perf_counter() - began
