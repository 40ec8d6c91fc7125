"""MLflow's environment variables neither redirect a study nor break it, and those that are ignored are named."""

from __future__ import annotations

from pathlib import Path

import mlflow.environment_variables
import pytest

from overnight.config.credentials import SECRET_VARIABLES
from overnight.config.paths import StudyLocation
from overnight.tracking import environment, store

SERVER = StudyLocation("runs", given_tracking_uri="http://127.0.0.1:1", tracking="server")
ALL = [
    value.name
    for value in vars(mlflow.environment_variables).values()
    if isinstance(value, mlflow.environment_variables._EnvironmentVariable) and "MLFLOW_" in value.name
]


def test_no_variable_of_mlflow_redirects_or_breaks_the_store_of_a_home(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = home.parent / "elsewhere"
    for name in ALL:
        monkeypatch.setenv(name, f"sqlite:///{elsewhere}.db")
    location = StudyLocation(str(home))
    with environment.restored():
        client = store.open_client(location)
        experiment = client.create_experiment("e", artifact_location=f"{location.artifact_root}/e")
        run = client.create_run(experiment).info.run_id
        client.log_metric(run, "m", 1.0)
        client.log_text(run, "text", "file.txt")
        client.create_registered_model("model")
        assert store.open_client(location).get_run(run).data.metrics == {"m": 1.0}
        assert [m.name for m in client.search_registered_models()] == ["model"]
    assert not list(home.parent.glob("elsewhere*"))


def test_the_registry_is_the_homes(home: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MLFLOW_REGISTRY_URI", f"sqlite:///{tmp_path}/elsewhere.db")
    location = StudyLocation(str(home))
    assert environment.notes(location) == [
        "ignored environment variables: MLFLOW_REGISTRY_URI; the configuration says where a study is tracked"
    ]
    with environment.restored():
        store.open_client(location).create_registered_model("model")
        assert environment.notes(location), "they are named also while they are hidden"
        monkeypatch.delenv("MLFLOW_REGISTRY_URI", raising=False)
    assert not (tmp_path / "elsewhere.db").exists()


def test_a_tracking_uri_that_is_not_used_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:1")
    assert environment.notes(StudyLocation("runs")) == [
        "MLFLOW_TRACKING_URI is set and not used; tracking=server uses it"
    ]
    assert environment.notes(SERVER) == []


@pytest.mark.parametrize(
    "name", ["MLFLOW_TRACKING_TOKEN", "MLFLOW_TRACKING_INSECURE_TLS", "MLFLOW_HTTP_REQUEST_TIMEOUT", "MLFLOW_WORKSPACE"]
)
def test_variables_that_reach_a_server_are_obeyed(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "1")
    assert environment.notes(SERVER) == []


def test_the_server_of_ui_gets_no_variable_that_redirects_it_and_no_secret() -> None:
    given = {**dict.fromkeys([*ALL, *SECRET_VARIABLES, "UVICORN_PORT"], "x"), "PATH": "/bin"}
    passed = environment.for_server(given)
    assert passed["PATH"] == "/bin"
    assert passed["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] == "false"
    assert SECRET_VARIABLES.isdisjoint(passed)
    forbidden = ("MLFLOW_REGISTRY_URI", "MLFLOW_SERVER_ALLOWED_HOSTS", "MLFLOW_READ_REPLICA_BACKEND_STORE_URI")
    assert {*forbidden, "UVICORN_PORT"}.isdisjoint(passed)


def test_hidden_variables_return_to_the_calling_program(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "mine")
    with environment.restored():
        store.open_client(StudyLocation(str(home)))
        assert "MLFLOW_EXPERIMENT_NAME" not in environment.os.environ
    assert environment.os.environ["MLFLOW_EXPERIMENT_NAME"] == "mine"


def test_variables_that_were_added_do_not_stay_in_the_calling_program(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in environment.QUIET:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("DO_NOT_TRACK", "1")
    before = dict(environment.os.environ)
    with environment.restored():
        store.open_client(StudyLocation(str(home)))
        assert environment.os.environ["MLFLOW_LOGGING_LEVEL"] == "WARNING"
    assert dict(environment.os.environ) == before
