"""The service of docker-compose.yml, run as processes: what it does, and what clients of its port can't do."""

from __future__ import annotations

import base64
import contextlib
import http.client
import json
import os
import pickle
import re
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import psycopg
import pytest
from mlflow import MlflowClient
from mlflow.entities import Run

from support import compose_services as compose
from support.compose_services import Stack
from support.paths import SUPPORT, python_path

pytestmark = [pytest.mark.service, pytest.mark.timeout(300)]

# All HTTP methods, so that no route is missed.
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")

SMALL_STUDY = ["study.trials=2", "study.confirm.seeds=0", "trainer.max_epochs=1", "pictures.when=never", "slots=1"]


@pytest.fixture(scope="module")
def stack() -> Iterator[Stack]:
    """PostgreSQL and MLflow's server, running and healthy, as after `make secrets && make up`."""
    with new_stack() as stack:
        compose.begin_postgres(stack)
        stack.start("postgres")
        stack.wait_until_healthy("postgres")
        done = stack.run("init", text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        stack.start("mlflow")
        stack.wait_until_healthy("mlflow")
        yield stack


@contextlib.contextmanager
def new_stack() -> Iterator[Stack]:
    """A stack that is not started, in a folder outside of pytest's.

    pytest closes its folders to other users at the start of every session, and PostgreSQL runs as another user.
    """
    with tempfile.TemporaryDirectory(prefix="overnight-service-") as folder:
        Path(folder).chmod(0o755)
        stack = Stack.new(Path(folder))
        try:
            yield stack
        finally:
            stack.stop()


class Visitor:
    """A client of the server, with or without a login."""

    def __init__(self, stack: Stack, user: str | None = None, secret: str | None = None) -> None:
        self.port = stack.ports["mlflow"]
        self.shown: dict[str, str] = {}
        if user is not None and secret is not None:
            self.shown = {"Authorization": f"Basic {base64.b64encode(f'{user}:{secret}'.encode()).decode()}"}

    def ask(self, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, str]:
        """Send a request, and return status and body. The path is sent unchanged, with its dots."""
        sent = {"Host": f"127.0.0.1:{self.port}", **self.shown, **headers}
        data = b"" if body is None else json.dumps(body).encode()
        sent |= {"Content-Length": str(len(data)), "Content-Type": "application/json"}
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)) as connection:
            connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
            for name, value in sent.items():
                connection.putheader(name, value)
            connection.endheaders(data)
            answer = connection.getresponse()
            return answer.status, answer.read().decode(errors="replace")

    def statuses(self, requests: Iterable[tuple[str, str]], **headers: str) -> dict[tuple[str, str], int]:
        """Return the status of each (method, path). Sends eight requests at a time."""
        requests = list(requests)
        with ThreadPoolExecutor(8) as pool:
            return dict(zip(requests, pool.map(lambda way: self.ask(*way, **headers)[0], requests), strict=True))


@pytest.fixture(scope="module")
def stranger(stack: Stack) -> Visitor:
    return Visitor(stack)


@pytest.fixture(scope="module")
def member(stack: Stack) -> Visitor:
    return Visitor(stack, "overnight", stack.secret("tracking_password"))


@pytest.fixture(scope="module")
def admin(stack: Stack) -> Visitor:
    return Visitor(stack, "admin", stack.secret("mlflow_admin_password"))


# Logins ----------------------------------------------------------------------------------------------------------

_ROUTES = """
import json, os, sys
from mlflow.server import app as flask
from overnight.tracking.server import create_app

def native(routes):
    for route in routes:
        if hasattr(route, "effective_candidates"):
            yield from native(route.effective_candidates())
        elif getattr(route, "path", None):
            yield route.path
        elif getattr(route, "starlette_route", None) is not None:
            yield route.starlette_route.path

app = create_app()
print(json.dumps([sorted({rule.rule for rule in flask.url_map.iter_rules()}), sorted(set(native(app.routes)))]))
"""


@pytest.fixture(scope="module")
def routes(stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Return a path for every route of the server's app. Variables are 1."""
    folder = tmp_path_factory.mktemp("routes")
    (folder / "auth.ini").write_text(
        f"[mlflow]\ndefault_permission = READ\ndatabase_uri = sqlite:///{folder}/auth.db\n"
        "admin_username = admin\nadmin_password = not-the-services-own\n"
    )
    environment = {
        **stack.environment("mlflow"),
        "MLFLOW_AUTH_CONFIG_PATH": str(folder / "auth.ini"),
        "MLFLOW_FLASK_SERVER_SECRET_KEY": "not-the-services-own",
        "_MLFLOW_SGI_NAME": "uvicorn",
        "_MLFLOW_SERVER_SERVE_ARTIFACTS": "true",
        "PYTHONWARNINGS": "ignore",
    }
    for name in [name for name in environment if name.endswith("_FILE") or name == "MLFLOW_AUTH_ADMIN_USERNAME"]:
        del environment[name]
    done = subprocess.run([sys.executable, "-c", _ROUTES], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    flask, native = json.loads(done.stdout.splitlines()[-1])
    assert len(flask) > 300
    assert len(native) > 20
    assert {"/graphql", "/get-artifact", "/version", "/static-files/<path:path>"} <= set(flask)
    assert {"/health", "/api/3.0/mlflow/server-info"} <= set(native)
    assert any("/mlflow-artifacts/artifacts/" in path for path in native)
    return sorted({re.sub(r"<[^>]+>|{[^}]+}", "1", path) for path in (*flask, *native)})


def test_every_route_but_health_needs_a_login(stranger: Visitor, routes: list[str]) -> None:
    answers = stranger.statuses((method, path) for path in routes if path != "/health" for method in METHODS)
    assert len(answers) > 2000
    assert {key: status for key, status in answers.items() if status not in (401, 403)} == {}


def test_no_spelling_of_a_path_avoids_the_login(stranger: Visitor) -> None:
    for path in (
        "//", "/./", "/health/", "/health/../api/2.0/mlflow/experiments/search", "/healthy", "/static", "/static/x",
        "/static-files/index.html", "/static-files/../version", "/favicon.ico", "/favicon.ico/../version",
        "/%68ealth/../version", "/static-files/%2e%2e/version", "/metrics", "/docs", "/openapi.json", "/nowhere",
        "/mlflow/health", "/API/2.0/mlflow/experiments/search", "/api/2.0/mlflow/experiments/search/",
        "//api/3.0/mlflow/server-info", "/x/mlflow/server-info", "/health%00", "/health;x", "/signup",
    ):  # fmt: skip
        status, answer = stranger.ask("GET", path)
        assert status in (401, 403), f"{path}: {status} {answer[:80]}"


def test_health_reveals_nothing_but_the_health(stranger: Visitor) -> None:
    assert stranger.ask("GET", "/health", Host="anything") == (200, "OK")


def test_wrong_passwords_are_rejected(stack: Stack) -> None:
    for user, secret in (("admin", "password"), ("admin", "password1234"), ("admin", ""), ("", ""), ("overnight", "x")):
        visitor = Visitor(stack, user, secret)
        for path in ("/", "/version", "/api/3.0/mlflow/server-info", "/static-files/1", "/gateway/1/mlflow/x"):
            assert visitor.ask("GET", path)[0] in (401, 403), f"{user}:{secret} at {path}"
    for shown in ("Bearer x", "Basic !!!", "Basic", "Digest a=b", "Basic " + base64.b64encode(b"admin").decode()):
        assert Visitor(stack).ask("GET", "/version", Authorization=shown)[0] in (401, 403), shown


def test_pages_and_api_answer_with_a_login(member: Visitor) -> None:
    assert "<html" in member.ask("GET", "/")[1]
    assert member.ask("GET", "/version")[0] == 200
    assert member.ask("GET", "/api/3.0/mlflow/server-info")[0] == 200
    script = re.search(r'src="(?:\./|/)?(static-files/[^"]+\.js)"', member.ask("GET", "/")[1])
    assert script is not None
    assert member.ask("GET", f"/{script[1]}")[0] == 200
    assert member.ask("POST", "/api/2.0/mlflow/experiments/search", {"max_results": 5})[0] == 200


def test_members_can_log_in_but_not_create_accounts(member: Visitor, admin: Visitor) -> None:
    account = {"username": "intruder", "password": "a-long-enough-password"}
    assert member.ask("POST", "/api/2.0/mlflow/users/create", account)[0] == 403
    raised = {"username": "overnight", "is_admin": True}
    assert member.ask("PATCH", "/api/2.0/mlflow/users/update-admin", raised)[0] == 403
    status, answer = admin.ask("GET", "/api/2.0/mlflow/users/get?username=overnight")
    assert status == 200
    assert json.loads(answer)["user"]["is_admin"] is False


# Origin of requests -------------------------------------------------------------------------------------------------


def test_a_foreign_host_is_rejected_everywhere_but_at_health(member: Visitor, routes: list[str]) -> None:
    for host in ("evil.example", "evil.example:5000", "127.0.0.1:1", "mlflow", "192.168.0.7:5000", ""):
        for path in ("/", "/version", "/api/2.0/mlflow/experiments/search", "/static-files/1"):
            assert member.ask("GET", path, Host=host)[0] == 403, f"{host} at {path}"
    foreign = member.statuses((("GET", path) for path in routes if path != "/health"), Host="evil.example")
    assert set(foreign.values()) == {403}


def test_pages_of_other_sites_can_send_no_requests(member: Visitor, routes: list[str]) -> None:
    for origin in ("https://evil.example", "http://localhost:1", "http://127.0.0.1:1", "null", "file://", ""):
        for method in ("GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"):
            status = member.ask(method, "/api/2.0/mlflow/experiments/search", Origin=origin)[0]
            assert status == 403, f"{method} from {origin!r}: {status}"
    foreign = member.statuses((("POST", path) for path in routes if path != "/health"), Origin="https://evil.example")
    assert set(foreign.values()) == {403}


def test_its_own_pages_can_send_requests(member: Visitor) -> None:
    here = f"127.0.0.1:{member.port}"
    requests = {"max_results": 1}
    assert member.ask("POST", "/ajax-api/2.0/mlflow/experiments/search", requests, Origin=f"http://{here}")[0] == 200
    inside = {"Host": "mlflow:5000", "Origin": "http://mlflow:5000"}
    assert member.ask("GET", "/ajax-api/2.0/mlflow/experiments/search?max_results=1", **inside)[0] == 200


# Files --------------------------------------------------------------------------------------------------------------


def run_in(visitor: Visitor, experiment: str) -> str:
    """Create a run, and return its id."""
    status, answer = visitor.ask("POST", "/api/2.0/mlflow/runs/create", {"experiment_id": experiment, "start_time": 1})
    assert status == 200, answer
    return str(json.loads(answer)["run"]["info"]["run_id"])


def test_no_path_leads_out_of_the_artifacts(stack: Stack, member: Visitor, admin: Visitor) -> None:
    canary = stack.folder / "volumes" / "canary.txt"
    canary.write_text("not an artifact")
    run = run_in(admin, "0")
    passwd = "../" * 8 + "etc/passwd"
    out = ("../canary.txt", "../../volumes/canary.txt", f"{canary}", passwd, "/etc/passwd")
    ways = [
        way
        for path in out
        for way in (
            path,
            path.replace("..", "%2e%2e"),
            path.replace("/", "%2f"),
            path.replace("..", "%2e%2e").replace("/", "%2f"),
            path.replace("..", "%252e%252e").replace("/", "%252f"),
            path.replace("../", "..%5c"),
            f"0/{path}",
            f"0/x/../../{path}",
            f"file://{path}",
        )
    ]
    for visitor in (member, admin):
        for way in ways:
            for method, url in (
                ("GET", f"/api/2.0/mlflow-artifacts/artifacts/{way}"),
                ("GET", f"/ajax-api/2.0/mlflow-artifacts/artifacts/{way}"),
                ("PUT", f"/api/2.0/mlflow-artifacts/artifacts/{way}"),
                ("DELETE", f"/api/2.0/mlflow-artifacts/artifacts/{way}"),
                ("GET", f"/api/2.0/mlflow-artifacts/artifacts?path={way}"),
                ("GET", f"/get-artifact?run_uuid={run}&path={way}"),
                ("GET", f"/api/2.0/mlflow/artifacts/list?run_id={run}&path={way}"),
                ("GET", f"/model-versions/get-artifact?name=x&version=1&path={way}"),
                ("POST", f"/ajax-api/2.0/mlflow/upload-artifact?run_uuid={run}&path={way}"),
                ("GET", f"/static-files/{way}"),
            ):
                status, answer = visitor.ask(method, url)
                assert 400 <= status < 500, f"{method} {url}: {status} {answer[:100]}"
    assert canary.read_text() == "not an artifact"
    assert not list(stack.volume("artifacts").rglob("*passwd*"))


def test_an_experiment_can_not_have_a_location_that_the_server_would_read_outside_its_artifacts(
    member: Visitor,
) -> None:
    for number, location in enumerate(("file:///etc", "/etc", "../../..", "mlflow-artifacts:/../..", "file:../..")):
        made = member.ask(
            "POST", "/api/2.0/mlflow/experiments/create", {"name": f"elsewhere-{number}", "artifact_location": location}
        )
        if made[0] == 200:  # clients read the location, and the server does not
            experiment = json.loads(made[1])["experiment_id"]
            status, answer = member.ask("GET", f"/get-artifact?run_uuid={run_in(member, experiment)}&path=passwd")
            assert "root:" not in answer, f"{location}: {status}"
            assert status != 200, f"{location}: {answer[:100]}"


# Switched off -------------------------------------------------------------------------------------------------------


def test_jobs_are_off(stack: Stack, admin: Visitor) -> None:
    for path, body in (
        ("/ajax-api/3.0/jobs/", {"job_name": "x", "params": {}}),
        ("/ajax-api/3.0/mlflow/genai/evaluate/invoke", {}),
        ("/ajax-api/3.0/mlflow/scorer/invoke", {}),
    ):
        status, answer = admin.ask("POST", path, body)
        assert status >= 400, f"{path}: {status} {answer[:100]}"
    server = psutil.Process(stack.running["mlflow"].pid)
    started = [" ".join(process.cmdline()) for process in server.children(recursive=True)]
    assert started
    assert not [line for line in started if "huey" in line or "jobs" in line]
    assert server.environ()["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] == "false"


class Trap:
    """Creates the file `sprung` in its folder when it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (str(self.folder / "sprung"), "w")


def test_a_pickled_model_is_not_opened(stack: Stack, tmp_path: Path) -> None:
    (tmp_path / "python_model.pkl").write_bytes(pickle.dumps(Trap(tmp_path)))
    (tmp_path / "MLmodel").write_text(
        "flavors:\n  python_function:\n    loader_module: mlflow.pyfunc.model\n    python_model: python_model.pkl\n"
        "    cloudpickle_version: 3.1.2\n    python_version: 3.11.0\n"
    )
    load = "import mlflow, sys; mlflow.pyfunc.load_model(sys.argv[1], suppress_warnings=True)"
    environment = {**stack.environment("worker"), "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(
        [sys.executable, "-c", load, tmp_path], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode != 0
    assert "MLFLOW_ALLOW_PICKLE_DESERIALIZATION" in done.stderr, done.stderr[-1000:]
    assert not (tmp_path / "sprung").exists()
    assert stack.environment("mlflow")["MLFLOW_ALLOW_PICKLE_DESERIALIZATION"] == "false"


# PostgreSQL ---------------------------------------------------------------------------------------------------------


def test_a_role_can_open_its_own_databases_only_and_needs_its_password(stack: Stack) -> None:
    def connect(user: str, secret: str | None, database: str) -> str:
        password = stack.secret(secret) if secret else "wrong"
        with psycopg.connect(
            host="127.0.0.1", port=stack.ports["postgres"], user=user, password=password, dbname=database
        ) as connection:
            method = (
                connection.execute("SELECT rolpassword FROM pg_authid WHERE rolname = current_user")
                if (user == "postgres")
                else connection.execute("SELECT current_user")
            )
            return str(method.fetchone())

    assert "SCRAM-SHA-256" in connect("postgres", "postgres_password", "postgres")
    assert "overnight" in connect("overnight", "storage_password", "overnight")
    for database in ("mlflow", "mlflow_auth"):
        assert "mlflow" in connect("mlflow", "mlflow_password", database)
    for user, secret, database in (
        ("overnight", "storage_password", "mlflow_auth"),
        ("overnight", "storage_password", "mlflow"),
        ("overnight", "storage_password", "postgres"),
        ("mlflow", "mlflow_password", "overnight"),
        ("overnight", None, "overnight"),
        ("postgres", None, "postgres"),
    ):
        with pytest.raises(psycopg.OperationalError, match=r"permission denied|password authentication failed"):
            connect(user, secret, database)


def test_no_password_is_in_a_log_or_on_a_command_line(stack: Stack) -> None:
    passwords = {name: stack.secret(name) for name in stack.file["secrets"] if not name.endswith("_url")}
    lines = [" ".join(process.info["cmdline"] or ()) for process in psutil.process_iter(["cmdline"])]
    logs = [path.read_text(errors="replace") for path in stack.folder.glob("*.log")]
    assert logs
    for name, password in passwords.items():
        assert not [line for line in lines if password in line], f"{name} is on a command line"
        assert not [log for log in logs if password in log], f"{name} is in a log"
    environment = psutil.Process(stack.running["mlflow"].pid).children()[0].environ()
    assert not {"MLFLOW_AUTH_ADMIN_PASSWORD", "MLFLOW_TRACKING_PASSWORD"} & set(environment)


# Work ---------------------------------------------------------------------------------------------------------------


def as_member(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> MlflowClient:
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "overnight")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", stack.secret("tracking_password"))
    return MlflowClient(f"http://127.0.0.1:{stack.ports['mlflow']}")


def test_a_member_logs_a_run_with_its_files(stack: Stack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    client = as_member(stack, monkeypatch)
    experiment = client.create_experiment("a-study")
    run = client.create_run(experiment)
    client.log_metric(run.info.run_id, "val/accuracy", 0.9, step=1)
    client.log_text(run.info.run_id, "seen", "notes/seen.txt")
    assert client.get_run(run.info.run_id).data.metrics == {"val/accuracy": 0.9}
    assert Path(client.download_artifacts(run.info.run_id, "notes/seen.txt", str(tmp_path))).read_text() == "seen"
    assert [path.read_text() for path in stack.volume("artifacts").rglob("seen.txt")] == ["seen"]


def test_a_backup_can_be_restored_into_an_empty_service_only(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    client = as_member(stack, monkeypatch)
    run = client.create_run(client.create_experiment("kept"))
    client.log_text(run.info.run_id, "kept", "kept.txt")

    def script(of: Stack, name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        words = f"{sys.executable} {Path(compose.__file__)} {of.folder}"
        environment = {**os.environ, "COMPOSE": words, "PYTHONPATH": python_path(SUPPORT.parent)}
        return subprocess.run(
            [of.folder / "deploy" / name, *arguments], env=environment, capture_output=True, text=True, check=False
        )

    made = script(stack, "backup.sh")
    assert made.returncode == 0, made.stderr
    folder = stack.folder / made.stdout.strip()
    assert {path.name for path in folder.iterdir()} == {
        "overnight.dump", "mlflow.dump", "mlflow_auth.dump", "artifacts.tar", "SHA256SUMS",
    }  # fmt: skip
    assert {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == {0o600}
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700

    refused = script(stack, "restore.sh", str(folder))
    assert refused.returncode != 0
    assert "must be empty" in refused.stderr

    with new_stack() as other:
        compose.begin_postgres(other)
        other.start("postgres")
        other.wait_until_healthy("postgres")
        spoilt = other.folder / "spoilt"
        shutil.copytree(folder, spoilt)
        (spoilt / "artifacts.tar").write_bytes(b"")
        assert script(other, "restore.sh", str(spoilt)).returncode != 0
        done = script(other, "restore.sh", str(folder))
        assert done.returncode == 0, done.stderr
        with psycopg.connect(
            host="127.0.0.1", port=other.ports["postgres"], user="mlflow", dbname="mlflow",
            password=other.secret("mlflow_password"),
        ) as database:  # fmt: skip
            # The tables keep their owners, whose passwords are those of the new service.
            changed = database.execute("UPDATE runs SET name = 'restored' WHERE run_uuid = %s", [run.info.run_id])
            assert changed.rowcount == 1
        assert [path.read_text() for path in other.volume("artifacts").rglob("kept.txt")] == ["kept"]


@pytest.mark.parametrize("service", ["init", "mlflow"])
def test_a_service_without_a_secret_ends_and_names_it(stack: Stack, service: str) -> None:
    environment = stack.environment(service)
    missing = next(name for name in environment if name.endswith("_URI_FILE"))
    environment[missing] = str(stack.folder / "nowhere")
    done = subprocess.run(stack.command(service), env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr[-1000:]
    assert missing in done.stderr


def test_the_workers_complete_a_study_that_is_launched_from_outside(
    stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["storage=postgres", "tracking=server", "home=/var/lib/overnight", "study.name=night", *SMALL_STUDY]
    launched = stack.run("worker", ["overnight", "tune", "--detach", *words], text=True)
    assert launched.returncode == 0, launched.stdout + launched.stderr

    worker = stack.start("worker")
    stack.wait_until_healthy("worker")
    client = as_member(stack, monkeypatch)
    deadline = time.monotonic() + 150
    while not (runs := runs_of(client, "night")) or {run.info.status for run in runs} != {"FINISHED"}:
        assert worker.poll() is None, stack.log("worker").read_text()[-3000:]
        assert time.monotonic() < deadline, stack.log("worker").read_text()[-3000:]
        time.sleep(1)
    worker.send_signal(signal.SIGTERM)
    worker.wait(60)
    assert "Traceback" not in stack.log("worker").read_text()

    assert sorted(run.data.tags["overnight.role"] for run in runs) == ["study", "trial", "trial"]
    assert list((stack.volume("home") / "checkpoints" / "night").rglob("*")), "the home is the volume"


def runs_of(client: MlflowClient, study: str) -> list[Run]:
    experiment = client.get_experiment_by_name(study)
    return [] if experiment is None else list(client.search_runs([experiment.experiment_id]))
