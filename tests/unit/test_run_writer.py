"""The writes to a trial's run: their order, and what happens after one of them fails."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from mlflow.exceptions import INVALID_PARAMETER_VALUE, MlflowException

from overnight.protocol import Progress
from overnight.search.build_plan import build_plan
from overnight.search.record import TrialRecord
from overnight.tracking import run_writer, tags
from overnight.tracking.dataset import DatasetFacts, dataset_of
from overnight.tracking.run_update import TrialRun
from overnight.tracking.run_writer import RunWriter


class RecordingClient:
    """Stands in for MLflow's client. Fails the calls named in `failing`, each once."""

    def __init__(self, *failing: str, runs: tuple[str, ...] = ()) -> None:
        self.calls: list[str] = []
        self.deleted: list[str] = []
        self._failing, self._runs = set(failing), runs

    def __getattr__(self, name: str) -> Any:
        def call(*arguments: Any, **_: Any) -> Any:
            self.calls.append(name)
            if name in self._failing:
                self._failing.discard(name)
                raise ConnectionError(name)
            if name == "delete_run":
                self.deleted += arguments
            if name == "get_metric_history":
                return []
            if name == "search_runs":
                return [fake_run(run_id) for run_id in self._runs]
            return fake_run("created") if name == "create_run" else None

        return call


def fake_run(run_id: str) -> Any:
    return SimpleNamespace(
        info=SimpleNamespace(run_id=run_id, status="RUNNING"), data=SimpleNamespace(params={}, tags={})
    )


def writer(client: RecordingClient, home: Path, runs: dict[int, TrialRun] | None = None) -> RunWriter:
    study = build_plan([f"home={home}"])
    return RunWriter(client, study, "uid", "1", None, tags.TRIAL, runs or {})


FAILED = TrialRecord(
    0, "failed", {"optimizer.lr": 0.1}, (Progress(0, 0, {"val/loss": 1.0}, 1e9, 1.0),), None, "error", "why", 1e9, 2e9
)


def test_a_run_is_ended_last(tmp_path: Path) -> None:
    client = RecordingClient()
    writer(client, tmp_path).write(FAILED)
    assert client.calls[:3] == ["create_run", "log_inputs", "log_text"], "config.yaml says that the data is written"
    assert client.calls[3:] == ["log_batch", "log_text", "set_tag", "set_terminated"]


def test_the_data_of_a_run_has_a_digest_that_only_its_rows_change(tmp_path: Path) -> None:
    def facts(*overrides: str) -> DatasetFacts:
        plan = build_plan([f"home={tmp_path}", "search=none", *overrides])
        return dataset_of(plan.config({}), plan.choices["data"])

    plain = facts()
    assert plain.name == "digits"
    assert json.loads(plain.source)["class"] == "overnight.data.digits.Digits"
    assert facts("data.batch_size=64").digest == plain.digest
    assert facts("data.split_seed=1").digest != plain.digest


def test_steps_are_read_again_after_a_batch_that_failed(tmp_path: Path) -> None:
    client = RecordingClient("log_batch")
    runs = writer(client, tmp_path)
    with pytest.raises(ConnectionError):
        runs.write(FAILED)
    client.calls.clear()
    runs.write(FAILED)
    assert client.calls[:3] == ["get_metric_history", "get_metric_history", "log_batch"]
    assert client.calls[-1] == "set_terminated"


def test_a_run_whose_creation_failed_is_searched_for_before_another_is_created(tmp_path: Path) -> None:
    client = RecordingClient("create_run", runs=("first", "second"))
    runs = writer(client, tmp_path)
    with pytest.raises(ConnectionError):
        runs.write(FAILED)
    runs.write(FAILED)
    assert client.calls.count("create_run") == 1
    assert runs.runs[0].run_id == "first"
    assert client.deleted == ["second"]


def test_a_run_that_was_created_slowly_is_searched_for_again_if_the_search_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_writer, "_MAY_BE_REPEATED_S", -1.0)
    client = RecordingClient("search_runs", runs=("first", "second"))
    runs = writer(client, tmp_path)
    with pytest.raises(ConnectionError):
        runs.write(FAILED)
    runs.write(FAILED)
    assert client.calls.count("create_run") == 1
    assert runs.runs[0].run_id == "first"
    assert client.deleted == ["second"]


def test_a_recheck_reads_the_run_that_another_process_may_have_created(tmp_path: Path) -> None:
    client = RecordingClient(runs=("other",))
    runs = writer(client, tmp_path, {0: TrialRun("known", "RUNNING", steps={})})
    runs.write(FAILED, recheck=True)
    assert "create_run" not in client.calls
    assert runs.runs[0].run_id == "other"


def refusing(bad: set[int], log: list[list[int]]) -> Any:
    def write(some: Sequence[int]) -> None:
        log.append([*some])
        if bad & set(some):
            raise MlflowException("no such name", INVALID_PARAMETER_VALUE)

    return write


@given(st.integers(1, 60), st.sets(st.integers(0, 59), max_size=6))
def test_what_mlflow_refuses_does_not_cost_the_rest(count: int, bad: set[int]) -> None:
    entries, log = [*range(count)], [[]]
    bad &= set(entries)
    assume(len(bad) < count)
    refused = run_writer.refused_by(refusing(bad, log), entries)
    assert {entry for entry, _ in refused} == bad
    written = [entry for some in log for entry in some if not bad & set(some)]
    assert sorted(written) == sorted(set(entries) - bad), "each is written once"
    assert len(log) <= 2 + 2 * len(bad) * math.ceil(math.log2(count) + 1)


def test_a_refusal_of_everything_and_another_error_are_raised() -> None:
    with pytest.raises(MlflowException):
        run_writer.refused_by(refusing({0, 1, 2}, []), [0, 1, 2])

    def fail(_: Any) -> None:
        raise MlflowException("the server is away")

    with pytest.raises(MlflowException, match="away"):
        run_writer.refused_by(fail, [0, 1, 2])
