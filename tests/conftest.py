"""Fixtures of all tests. Tests that only read share one finished study. Each of the others gets a home of its own."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from filelock import FileLock
from hypothesis import settings as hypothesis_settings

from overnight import api
from overnight.config.compose import study_location
from overnight.report.live import NullScreen
from overnight.search.build_plan import build_plan
from overnight.study.snapshot import StudyView, view
from overnight.tracking import store
from support.commands import SMALL

pytest_plugins = ["support.servers", "support.groups", "support.shared_sessions"]

# The same examples in every run and on every machine. Counterexamples of longer searches become an @example.
hypothesis_settings.register_profile("seeded", derandomize=True, max_examples=50, deadline=None)
hypothesis_settings.load_profile("seeded")


def shared_folder(tmp_path_factory: pytest.TempPathFactory, name: str) -> Path:
    """Return a folder that all workers of a test run share."""
    root = tmp_path_factory.getbasetemp()
    return (root.parent if "PYTEST_XDIST_WORKER" in os.environ else root) / name


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A new MLflow store to copy. Creating one takes seconds."""
    home = shared_folder(tmp_path_factory, "empty-store")
    with FileLock(f"{home}.lock"):
        store.open_client(build_plan([f"home={home}"]).settings.location)
    return home / "mlflow.db"


@pytest.fixture
def no_src() -> Iterator[None]:
    """Let a test import a package named src, which several projects of the tests have, as a new process would."""

    def forget() -> None:
        for name in [n for n in sys.modules if n.partition(".")[0] == "src"]:
            del sys.modules[name]

    forget()
    yield
    forget()


@pytest.fixture
def home(tmp_path: Path, empty_store: Path) -> Path:
    shutil.copy(empty_store, tmp_path / "mlflow.db")
    return tmp_path


@pytest.fixture
def tune(home: Path) -> Callable[..., api.Result]:
    """Run a study in this test's home, in this process, with real trial processes; without pictures, which cost time
    and have tests of their own."""

    def run(*overrides: str, config_dir: Path | None = None, **options: object) -> api.Result:
        # test_preflight covers the dry run; here networks fail in trials.
        lines = [f"home={home}", "pictures.when=never", "preflight=never", *overrides]
        return api.run(build_plan(lines, config_dir), screen=NullScreen(), **options)

    return run


@pytest.fixture(scope="session")
def finished_home(tmp_path_factory: pytest.TempPathFactory, empty_store: Path) -> Path:
    """Return the home of one finished study, digits-mlp, which ran with real processes and stores. Copy it to write."""
    home = shared_folder(tmp_path_factory, "finished")
    with FileLock(f"{home}.lock"):
        if not home.exists():
            home.mkdir()
            shutil.copy(empty_store, home / "mlflow.db")
            result = api.run(build_plan([f"home={home}", *SMALL]), screen=NullScreen())
            assert result.stop_reason == "complete"
            assert result.mlflow_error is None
    return home


@pytest.fixture
def finished(finished_home: Path) -> StudyView:
    found, _ = view(study_location([f"home={finished_home}"]))
    assert found is not None
    return found


@pytest.fixture
def overnight(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run the command line in an empty folder."""
    folder = tmp_path / "cwd"
    folder.mkdir()

    def run(*arguments: str, timeout_s: float = 240) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "overnight", *arguments],
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )

    run.folder = folder  # type: ignore[attr-defined]
    return run


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--away", default="12", help="lengths of the outages of a group's store in seconds")
    parser.addoption("--pages", default="100", help="number of trials of the study whose pages are requested")
    parser.addoption("--fuzz-seconds", default="20", help="how long hostile input is tried")
    parser.addoption("--fuzz-seed", default="0", help="decides which hostile input is tried")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print how many hostile inputs were tried."""
    reports = [r for kind in ("passed", "failed") for r in terminalreporter.getreports(kind)]
    counts = {r.nodeid.rpartition("::")[2]: dict(r.user_properties)["inputs"] for r in reports
              if "inputs" in dict(r.user_properties)}  # fmt: skip
    for name, count in counts.items():
        terminalreporter.write_line(f"{name}: {count} inputs")
    if counts:
        terminalreporter.write_line(f"{sum(counts.values())} hostile inputs")
