"""A study in PostgreSQL and on an MLflow server with a login. Its passwords are then searched for everywhere."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import urllib.request
from base64 import b64encode
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.error import HTTPError

import psutil
import pytest
import sqlalchemy

from overnight.config.credentials import SECRET_VARIABLES
from support.paths import python_path
from support.servers import MlflowServer, Postgres

pytestmark = pytest.mark.service

PASSWORD, QUOTED_PASSWORD = "pl4nted$word", "pl4nted%24word"
STORES = ("storage=postgres", "tracking=server")


@dataclass
class StudyRun:
    """A study that was run: its home, its output, and every command line of a process meanwhile."""

    home: Path
    environment: dict[str, str]
    output: str
    command_lines: set[str]

    def overnight(self, *arguments: str, **other: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "overnight", *arguments, f"home={self.home}", *STORES]
        environment = {**self.environment, **other}
        return subprocess.run(
            command, env=environment, cwd=self.home.parent, capture_output=True, text=True, check=False
        )


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory, postgres: Postgres, mlflow_server: MlflowServer) -> StudyRun:
    folder = tmp_path_factory.mktemp("study")
    role = postgres.role(PASSWORD)
    (folder / "url").write_text(postgres.url_of(role, QUOTED_PASSWORD, role) + "\n")
    (folder / "password").write_text(mlflow_server.password + "\n")
    environment = {k: v for k, v in os.environ.items() if k not in SECRET_VARIABLES} | {
        "PYTHONPATH": python_path(),
        "OVERNIGHT_STORAGE_URL_FILE": str(folder / "url"),
        "MLFLOW_TRACKING_URI": mlflow_server.address,
        "MLFLOW_TRACKING_USERNAME": mlflow_server.user,
        "MLFLOW_TRACKING_PASSWORD": mlflow_server.password,
    }
    seen = StudyRun(folder / "home", environment, "", set())
    migrated = subprocess.run(
        [sys.executable, "-m", "overnight", "migrate"], env=environment, check=True, text=True, capture_output=True
    )
    keys = ("hidden_sizes", "activation", "dropout", "batch_norm")
    network = [
        "model._target_=user_networks.PrintsEnvironment",
        *(f"~model.{key}" for key in keys),
        "+model.fails=false,true",
    ]
    line = ["tune", "search=none", "preflight=never", *network, "study.name=stores", "study.trials=2"]
    line += ["study.enqueue=[{model.fails: true}]", "trainer.max_epochs=2", "slots=1", f"home={seen.home}", *STORES]
    command = [sys.executable, "-m", "overnight", *line]
    with (
        open(folder / "output", "w") as output,
        subprocess.Popen(command, env=environment, cwd=folder, stdout=output, stderr=output) as running,
    ):
        while running.poll() is None:
            for process in [psutil.Process(), *psutil.Process().children(recursive=True)]:
                try:
                    seen.command_lines.add(" ".join(process.cmdline()))
                except psutil.Error:
                    continue
            try:
                running.wait(0.2)
            except subprocess.TimeoutExpired:
                continue
    seen.output = migrated.stdout + migrated.stderr + (folder / "output").read_text()
    return seen


def secrets(study: StudyRun) -> set[str]:
    return {PASSWORD, QUOTED_PASSWORD, study.environment["MLFLOW_TRACKING_PASSWORD"]}


def test_both_stores_hold_the_complete_study(study: StudyRun, mlflow_server: MlflowServer) -> None:
    shown = study.overnight("status", "stores", "--json")
    assert shown.returncode == 0, study.output
    assert json.loads(shown.stdout)["trials"] == {
        "complete": 1,
        "pruned": 0,
        "failed": 1,
        "running": 0,
        "waiting": 0,
    }, study.output
    assert not (study.home / "optuna.db").exists()
    assert not (study.home / "mlflow.db").exists()
    assert "MLflow is incomplete" not in study.output
    assert study.overnight("doctor", "stores").stdout == "stores: no problems\n"
    page = study.overnight("ui", "stores", "--no-browser").stdout
    assert page.startswith(f"{mlflow_server.address}/#/experiments/")


def test_trial_processes_get_no_secret(study: StudyRun) -> None:
    logs = [path.read_text() for path in (study.home / "logs").rglob("trial-*.log")]
    assert sum("my environment: " in log for log in logs) >= 2
    assert all("PATH" in log for log in logs)
    for name in SECRET_VARIABLES:
        assert not any(f"{name}'" in log or f"{name}=" in log for log in logs), name


def test_a_password_is_found_nowhere(study: StudyRun, mlflow_server: MlflowServer) -> None:
    places = {
        **{str(path): path.read_bytes() for path in study.home.rglob("*") if path.is_file()},
        "output": study.output.encode(),
        "command lines": "\n".join(study.command_lines).encode(),
        **{f"Optuna's {name}": rows for name, rows in storage_rows(study)},
        **{f"MLflow's {name}": held for name, held in mlflow_holds(mlflow_server)},
    }
    assert sum("overnight" in line for line in study.command_lines) >= 2, "command lines were collected"
    assert any("my environment: " in places[name].decode(errors="replace") for name in places if name.endswith(".log"))
    for where, held in places.items():
        for secret in secrets(study):
            assert secret.encode() not in held, where


def storage_rows(study: StudyRun) -> Iterator[tuple[str, bytes]]:
    url = Path(study.environment["OVERNIGHT_STORAGE_URL_FILE"]).read_text().strip()
    engine = sqlalchemy.create_engine(url.replace("postgresql://", "postgresql+psycopg://"))
    with engine.connect() as connection:
        names = sqlalchemy.inspect(connection).get_table_names()
        assert "trial_user_attributes" in names
        for name in names:
            rows = connection.execute(sqlalchemy.text(f'SELECT * FROM "{name}"')).fetchall()
            yield name, repr(rows).encode()
    engine.dispose()


def mlflow_holds(server: MlflowServer) -> Iterator[tuple[str, bytes]]:
    """Yield everything of the study that its server returns, and every file that it stores."""
    files = [path for path in (server.folder / "artifacts").rglob("*") if path.is_file()]
    assert any(path.name == "config.yaml" for path in files), "artifacts go through the server"
    assert any(path.name == "error.txt" and "my environment" in path.read_text() for path in files)
    for path in files:
        yield f"artifact {path.name}", path.read_bytes()
    yield "log", (server.folder / "server.log").read_bytes()
    login = b64encode(f"{server.user}:{server.password}".encode()).decode()

    def post(what: str, body: dict[str, Any]) -> bytes:
        headers = {"Authorization": f"Basic {login}", "Content-Type": "application/json"}
        request = urllib.request.Request(f"{server.address}/api/2.0/mlflow/{what}", json.dumps(body).encode(), headers)
        with urllib.request.urlopen(request, timeout=60) as answer:
            return bytes(answer.read())

    yield "experiments", (experiments := post("experiments/search", {"max_results": 100}))
    ids = [e["experiment_id"] for e in json.loads(experiments)["experiments"] if e["name"] == "stores"]
    runs = post("runs/search", {"experiment_ids": ids, "max_results": 1000})
    assert b"overnight.trial" in runs
    yield "runs", runs


def test_a_wrong_login_is_reported_with_a_remedy_and_without_the_password(study: StudyRun) -> None:
    done = study.overnight("doctor", "stores", "--dry-run", MLFLOW_TRACKING_PASSWORD="not-the-password")
    assert "401" in done.stdout
    assert "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN" in done.stdout
    assert "not-the-password" not in done.stdout + done.stderr


def test_the_server_answers_no_request_without_a_login(mlflow_server: MlflowServer) -> None:
    with pytest.raises(HTTPError) as error:
        urllib.request.urlopen(f"{mlflow_server.address}/api/2.0/mlflow/experiments/search?max_results=1", timeout=60)
    assert error.value.code == 401
    error.value.close()


def test_a_killed_and_restarted_server_has_lost_nothing(study: StudyRun, mlflow_server: MlflowServer) -> None:
    mlflow_server.stop()
    mlflow_server.start()
    assert study.overnight("doctor", "stores", "--dry-run").stdout == "stores: no problems\n"


def test_a_deleted_study_is_deleted_from_both_stores(study: StudyRun, mlflow_server: MlflowServer) -> None:
    done = study.overnight("delete", "stores", "--yes")
    assert "stores is deleted" in done.stdout
    assert f"{mlflow_server.address} keeps deleted runs until you run `mlflow gc` on that server" in done.stdout
    assert "the study storage that OVERNIGHT_STORAGE_URL names" in study.overnight("status", "stores").stderr
