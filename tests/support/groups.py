"""A group of supervisors: processes with homes of their own that share a PostgreSQL and an MLflow server."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy

from overnight.config.compose import study_location
from overnight.study.snapshot import StudyView, view
from support.servers import MlflowServer

STORES = ("storage=postgres", "tracking=server")
QUICK = ("preflight=never", "pictures.when=never", "study.confirm.seeds=0", "sampler=random", "scheduler=none")


class Group:
    """A database, and the supervisors that were started on it."""

    def __init__(self, folder: Path, url: str, server: MlflowServer, lease_s: float) -> None:
        self.folder, self.url = folder, url
        self.stores = (*STORES, f"storage.lease_s={lease_s}")
        self.environment = {**os.environ, **server.login, "OVERNIGHT_STORAGE_URL": url}
        self.processes: list[subprocess.Popen[str]] = []

    def launch(self, name: str, *line: str) -> None:
        """Launch a study for the workers that are running."""
        command = ["tune", "--detach", f"study.name={name}", *QUICK, *line]
        process = self.start(self.folder / "launcher", *command)
        output = process.communicate(timeout=120)[0]
        assert process.returncode == 0, output
        assert f"{name}: launched" in output

    def work(self, *arguments: str, url: str | None = None, home: Path | None = None) -> subprocess.Popen[str]:
        """Start a supervisor with one slot. Without `home` it has a home of its own."""
        home = home or self.folder / f"home-{len(self.processes)}"
        process = self.start(home, *arguments, "slots=1", url=url)
        self.processes.append(process)
        return process

    def start(self, home: Path, *arguments: str, url: str | None = None) -> subprocess.Popen[str]:
        """Start a command on this database. Its stdout and stderr share one pipe."""
        command = [sys.executable, "-m", "overnight", *arguments, f"home={home}", *self.stores]
        environment = {**self.environment, "OVERNIGHT_STORAGE_URL": url or self.url}
        pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        return subprocess.Popen(command, env=environment, cwd=self.folder, **pipes)

    def outputs(self, timeout_s: float = 300) -> list[str]:
        """Wait until all supervisors have ended, and return their outputs."""
        return [p.communicate(timeout=timeout_s)[0] for p in self.processes]

    def study(self, name: str) -> StudyView:
        found, _ = view(study_location([f"home={self.folder / 'view'}", *self.stores]), name)
        assert found is not None
        return found

    def rows(self, query: str) -> list[tuple[Any, ...]]:
        engine = sqlalchemy.create_engine(self.url)
        with engine.connect() as connection:
            rows = [tuple(row) for row in connection.execute(sqlalchemy.text(query))]
        engine.dispose()
        return rows

    def wait_for(self, name: str, condition: Callable[[StudyView], bool], timeout_s: float = 120) -> StudyView:
        deadline = time.monotonic() + timeout_s
        while not condition(seen := self.study(name)):
            assert time.monotonic() < deadline, [(r.number, r.state) for r in seen.records]
            time.sleep(0.2)
        return seen


@pytest.fixture
def group(
    tmp_path: Path, database: Callable[[], str], mlflow_server: MlflowServer, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., Group]]:
    with ExitStack() as ending:

        def group(lease_s: float = 30.0) -> Group:
            created = Group(tmp_path, database(), mlflow_server, lease_s)
            for name in (*mlflow_server.login, "OVERNIGHT_STORAGE_URL"):
                monkeypatch.setenv(name, created.environment[name])
            ending.callback(_end, created)
            return created

        yield group


def _end(group: Group) -> None:
    for process in group.processes:
        if process.poll() is None:
            process.kill()
            process.communicate()
