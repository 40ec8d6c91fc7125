"""A group of supervisors, each a process with a home of its own, on one PostgreSQL and one MLflow server."""

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
QUICK = ("preflight=never", "pictures.when=never", "study.confirm.seeds=0", "sampler=random", "pruner=none")


class Group:
    """A ledger of its own, and the supervisors that were started on it."""

    def __init__(self, folder: Path, url: str, server: MlflowServer, lease_s: float) -> None:
        self.folder, self.url = folder, url
        self.stores = (*STORES, f"storage.lease_s={lease_s}")
        self.environment = {**os.environ, **server.login, "OVERNIGHT_STORAGE_URL": url}
        self.processes: list[subprocess.Popen[str]] = []

    def launch(self, name: str, *line: str) -> None:
        """Leave a study to whoever is up."""
        command = ["tune", "--detach", f"study.name={name}", *QUICK, *line]
        said = self.start(self.folder / "launcher", *command)
        output = said.communicate(timeout=120)[0]
        assert said.returncode == 0, output
        assert f"{name}: launched" in output

    def work(self, *arguments: str, url: str | None = None, home: Path | None = None) -> subprocess.Popen[str]:
        """One more supervisor, with a slot, and a home of its own unless it is given one."""
        home = home or self.folder / f"home-{len(self.processes)}"
        process = self.start(home, *arguments, "slots=1", url=url)
        self.processes.append(process)
        return process

    def start(self, home: Path, *arguments: str, url: str | None = None) -> subprocess.Popen[str]:
        """The command line, at this ledger; its output is one, and piped."""
        command = [sys.executable, "-m", "overnight", *arguments, f"home={home}", *self.stores]
        environment = {**self.environment, "OVERNIGHT_STORAGE_URL": url or self.url}
        piped: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        return subprocess.Popen(command, env=environment, cwd=self.folder, **piped)

    def said(self, timeout_s: float = 300) -> list[str]:
        """What the supervisors printed, once all have left."""
        return [p.communicate(timeout=timeout_s)[0] for p in self.processes]

    def study(self, name: str) -> StudyView:
        found, _ = view(study_location([f"home={self.folder / 'looks'}", *self.stores]), name)
        assert found is not None
        return found

    def rows(self, query: str) -> list[tuple[Any, ...]]:
        engine = sqlalchemy.create_engine(self.url)
        with engine.connect() as connection:
            rows = [tuple(row) for row in connection.execute(sqlalchemy.text(query))]
        engine.dispose()
        return rows

    def wait_for(self, name: str, holds: Callable[[StudyView], bool], within_s: float = 120) -> StudyView:
        until = time.monotonic() + within_s
        while not holds(seen := self.study(name)):
            assert time.monotonic() < until, [(r.number, r.state) for r in seen.records]
            time.sleep(0.2)
        return seen


@pytest.fixture
def group(
    tmp_path: Path, database: Callable[[], str], mlflow_server: MlflowServer, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., Group]]:
    with ExitStack() as ending:

        def group(lease_s: float = 30.0) -> Group:
            made = Group(tmp_path, database(), mlflow_server, lease_s)
            for name in (*mlflow_server.login, "OVERNIGHT_STORAGE_URL"):
                monkeypatch.setenv(name, made.environment[name])
            ending.callback(_end, made)
            return made

        yield group


def _end(group: Group) -> None:
    for process in group.processes:
        if process.poll() is None:
            process.kill()
            process.communicate()
