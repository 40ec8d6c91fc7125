"""Each launcher: its workers finish the study, or stop after a stop request."""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from overnight.cluster.launchers import launch
from overnight.config.compose import compose
from overnight.config.problems import ConfigError
from overnight.config.settings import LauncherSettings, Settings
from overnight.runner.launch import launch_detached
from overnight.search.build_plan import build_plan
from overnight.study.snapshot import StudyView, view
from support.commands import start
from support.paths import SUPPORT

STAND_IN = SUPPORT / "stand_in_worker.py"
PASSWORD = f"planted-{secrets.token_hex(8)}"


def compose_settings(*overrides: str) -> Settings:
    settings = compose(overrides).settings
    assert settings is not None
    return settings


def with_launcher(**launcher: Any) -> Settings:
    return replace(compose_settings(), launcher=LauncherSettings(**launcher))


class RayNodes:
    """A Ray cluster of three nodes on this machine that checks a token. Each node runs one worker."""

    def __init__(self, folder: Path) -> None:
        (folder / "token").write_text(secrets.token_hex(32))
        self.session = folder / "ray"
        os.environ.update(
            RAY_AUTH_MODE="token",
            RAY_AUTH_TOKEN_PATH=str(folder / "token"),
            OVERNIGHT_STORAGE_URL=f"postgresql://me:{PASSWORD}@localhost/studies",
        )
        from ray.cluster_utils import Cluster

        # The paths of its sockets must be short.
        self.cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
        self.nodes = [self.cluster.add_node(num_cpus=1) for _ in range(3)]

    @property
    def address(self) -> str:
        return str(self.cluster.address)

    def node_with_worker(self) -> Any:
        """Return a node that runs a worker."""
        return next(
            n for n in self.nodes if any("WorkerActor" in " ".join(p.cmdline()) for p in self.raylet(n).children())
        )

    def raylet(self, node: Any) -> psutil.Process:
        return psutil.Process(node.all_processes["raylet"][0].process.pid)

    def kill(self, node: Any) -> None:
        """Kill all processes of a node at once, as a power failure does."""
        raylet = self.raylet(node)
        for process in [raylet, *raylet.children(recursive=True)]:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        self.cluster.remove_node(node, allow_graceful=False)
        self.nodes.remove(node)

    def add(self) -> None:
        self.nodes.append(self.cluster.add_node(num_cpus=1))


@pytest.fixture(scope="module")
def ray_nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RayNodes]:
    before = dict(os.environ)
    nodes = RayNodes(tmp_path_factory.mktemp("nodes"))
    yield nodes
    nodes.cluster.shutdown()
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture(params=["local", *(pytest.param(name, marks=pytest.mark.service) for name in ("slurm", "ray"))])
def two_workers(request: pytest.FixtureRequest) -> Settings:
    """Two workers of each launcher. submitit's local executor runs the Slurm jobs, because no Slurm is installed."""
    options: dict[str, Any] = {"name": request.param, "workers": 2}
    if request.param == "slurm":
        options["cluster"] = "local"
    if request.param == "ray":
        options.update(address=request.getfixturevalue("ray_nodes").address, cpus_per_worker=1)
    return with_launcher(**options)


class TaskFolder:
    """Tasks for stand-in workers."""

    def __init__(self, folder: Path, tasks: int, seconds: float) -> None:
        self.folder, self.tasks = folder, tasks
        folder.mkdir()
        self.worker = [str(STAND_IN), str(folder), str(tasks), str(seconds)]

    @property
    def done_by_pids(self) -> list[int]:
        return [int(path.read_text()) for path in self.folder.glob("done-*")]

    @property
    def pids(self) -> list[int]:
        return [int(path.name.removeprefix("pid-")) for path in self.folder.glob("pid-*")]

    def alive(self) -> list[int]:
        return [p for p in self.pids if psutil.pid_exists(p) and psutil.Process(p).status() != psutil.STATUS_ZOMBIE]


def wait_until(condition: Callable[[], object], description: str, timeout_s: float = 60) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"not within {timeout_s} s: {description}"
        time.sleep(0.02)


@contextlib.contextmanager
def in_background(action: Callable[[], None]) -> Iterator[None]:
    """Run an action in a thread while the launch runs in the main thread. If the action fails, the test fails."""
    errors: list[BaseException] = []

    def run() -> None:
        try:
            action()
        except BaseException as error:
            errors.append(error)
            os.kill(os.getpid(), signal.SIGTERM)  # ends the launch

    thread = threading.Thread(target=run)
    thread.start()
    yield
    thread.join()
    if errors:
        raise errors[0]


def test_all_workers_work_on_the_study_until_it_is_complete(two_workers: Settings, tmp_path: Path) -> None:
    study, messages = TaskFolder(tmp_path / "study", tasks=16, seconds=0.2), list[str]()
    assert launch.run_workers(two_workers, study.worker, tmp_path / "logs", messages.append) == 0
    assert len(study.done_by_pids) == 16
    assert len(set(study.done_by_pids)) == len(study.pids) == 2
    assert study.alive() == []
    assert [line.partition(" on ")[0] for line in sorted(messages)[1:]] == ["worker 0", "worker 1"]


def test_a_killed_worker_is_restarted(two_workers: Settings, tmp_path: Path) -> None:
    study = TaskFolder(tmp_path / "study", tasks=24, seconds=0.2)

    def kill_one() -> None:
        wait_until(lambda: len(study.pids) == 2 and study.done_by_pids, "both workers work")
        os.kill(study.pids[0], signal.SIGKILL)
        wait_until(lambda: len(study.pids) == 3, "the worker is restarted")

    with in_background(kill_one):
        assert launch.run_workers(two_workers, study.worker, tmp_path / "logs", lambda _: None) == 0
    assert len(study.done_by_pids) == 24


def test_a_worker_that_is_killed_every_time_is_given_up_and_reported(tmp_path: Path) -> None:
    messages: list[str] = []
    worker = ["-c", "import os; print('worse and worse', flush=True); os.kill(os.getpid(), 9)"]
    assert launch.run_workers(with_launcher(workers=1), worker, tmp_path / "logs", messages.append) == 137
    assert "ended with exit code 137" in messages[-1]
    assert messages[-1].count("worse and worse") == 4


def test_a_signal_to_stop_reaches_every_worker(two_workers: Settings, tmp_path: Path) -> None:
    study = TaskFolder(tmp_path / "study", tasks=1000, seconds=0.2)

    def stop() -> None:
        wait_until(lambda: len(study.pids) == 2 and study.done_by_pids, "both workers work")
        os.kill(os.getpid(), signal.SIGTERM)

    with in_background(stop):
        assert launch.run_workers(two_workers, study.worker, tmp_path / "logs", lambda _: None) == 143
    assert study.alive() == []
    assert len(study.pids) == 2, "a worker that got a stop request is not restarted"


def test_a_hangup_that_nohup_ignores_does_not_stop_the_workers(tmp_path: Path) -> None:
    study, before = TaskFolder(tmp_path / "study", tasks=8, seconds=0.1), signal.getsignal(signal.SIGHUP)

    def hang_up() -> None:
        wait_until(lambda: bool(study.done_by_pids), "a worker works")
        os.kill(os.getpid(), signal.SIGHUP)

    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with in_background(hang_up):
            assert launch.run_workers(with_launcher(workers=1), study.worker, tmp_path / "logs", lambda _: None) == 0
    finally:
        signal.signal(signal.SIGHUP, before)
    assert len(study.done_by_pids) == 8


def test_the_last_lines_of_a_failed_worker_are_printed_with_its_exit_code(
    two_workers: Settings, tmp_path: Path
) -> None:
    study, messages = TaskFolder(tmp_path / "study", tasks=2, seconds=0.1), list[str]()
    (tmp_path / "study" / "refuse").touch()
    assert launch.run_workers(two_workers, study.worker, tmp_path / "logs", messages.append) == 2
    assert sum("study: must be one that this worker trusts" in line and "exit code 2" in line for line in messages) == 2


@pytest.mark.long
def test_workers_stop_when_their_launcher_is_killed(tmp_path: Path) -> None:
    study = TaskFolder(tmp_path / "study", tasks=1000, seconds=0.2)
    code = (
        "import sys; from pathlib import Path; from overnight.config.compose import compose\n"
        "from overnight.cluster.launchers import launch\n"
        "s = compose(['launcher.workers=2']).settings\n"
        f"launch.run_workers(s, {study.worker!r}, Path({str(tmp_path)!r}), print)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.DEVNULL) as launcher:
        wait_until(lambda: len(study.pids) == 2, "both workers work")
        launcher.kill()
    wait_until(lambda: not study.alive(), "the workers have stopped", 10)


def test_workers_need_shared_stores() -> None:
    for launcher in (["launcher=ray"], ["launcher=slurm", "launcher.cluster=local"], ["launcher.workers=2"]):
        with pytest.raises(ConfigError) as caught:
            launch.launch(compose_settings(*launcher), [], print)
        wanted = ["storage"] if launcher == ["launcher.workers=2"] else ["storage", "tracking"]
        assert [p.partition(":")[0] for p in caught.value.problems] == wanted
        assert "use storage=postgres" in caught.value.problems[0]
    assert not compose_settings().launcher.uses_workers


@pytest.mark.parametrize(("launcher", "package"), [("ray", "ray"), ("slurm", "submitit")])
def test_a_launcher_whose_package_is_missing_names_the_extra(
    launcher: str, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)  # makes the import fail
    (problem, *_) = launch.find_problems(compose_settings(f"launcher={launcher}"))
    assert problem.startswith(f"launcher: {launcher} needs the package {package}; pip install 'overnight[{launcher}]'")


def test_slurm_needs_sbatch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    (problem, *_) = launch.find_problems(compose_settings("launcher=slurm"))
    assert problem.startswith("launcher: slurm needs sbatch")


def test_a_worker_gets_only_the_overrides_of_its_machine() -> None:
    typed = [
        "model=cnn",
        "home=/mine/a b",
        "slots=3",
        "optimizer.lr=0.1",
        "stay_awake=never",
        "storage.url=postgresql://x",
    ]
    arguments = launch.worker_arguments(compose_settings(*typed), typed)
    assert arguments[:5] == ["-m", "overnight", "worker", "digits-cnn", "--until-done"]
    assert arguments[5] == "home='/mine/a b'"
    assert arguments[6:] == [
        "storage=sqlite",
        "tracking=local",
        "slots=3",
        "stay_awake=never",
        "storage.url=postgresql://x",
    ]
    arguments = launch.worker_arguments(compose_settings("launcher=ray", "launcher.cpus_per_worker=4"), [])
    assert arguments[-1] == "slots=4"


# Real workers -----------------------------------------------------------------------------------------------------


class LaunchedStudy:
    """A launched study in PostgreSQL for real workers with one slot each."""

    def __init__(self, home: Path, url: str, *overrides: str) -> None:
        quick = ["pictures.when=never", "preflight=never", "scheduler=none", "study.confirm.seeds=0", "slots=1"]
        self.plan = build_plan([f"home={home}", f"storage.url='{url}'", *quick, *overrides])
        launch_detached(self.plan)
        stores = [f"home={home}", "storage=sqlite", f"storage.url='{url}'", "tracking=local", "slots=1"]
        self.worker = ["-m", "overnight", "worker", self.plan.name, "--until-done", *stores]

    def view(self) -> StudyView:
        found, _ = view(self.plan.settings.location, self.plan.name)
        assert found is not None
        return found


@pytest.mark.service
def test_tune_starts_the_workers_of_its_launcher(home: Path, database: Callable[[], str]) -> None:
    quick = ["pictures.when=never", "preflight=never", "scheduler=none", "study.confirm.seeds=0", "study.trials=6"]
    url = f"storage.url='{database()}'"
    line = [f"home={home}", "slots=1", "launcher.workers=2", url, "trainer.max_epochs=20", *quick]
    with start("tune", *line, stdout=subprocess.PIPE, text=True) as tune:
        output, _ = tune.communicate(timeout=280)
    assert tune.returncode == 0, output
    assert "worker 0 on" in output
    assert "6 of 6" in output
    logs = [path.read_text() for path in (home / "logs/digits-mlp/workers").glob("worker-*.log")]
    assert len(logs) == 2
    assert all("trial-000" in log for log in logs), "both workers trained trials"


@pytest.mark.service
def test_a_study_continues_on_other_nodes_when_a_node_dies(
    ray_nodes: RayNodes, home: Path, database: Callable[[], str]
) -> None:
    two_workers = with_launcher(name="ray", workers=2, cpus_per_worker=1, address=ray_nodes.address)
    study = LaunchedStudy(home, database(), "study.trials=3", "trainer.max_epochs=60", "checkpoint.every_s=0")

    def kill_a_node() -> None:
        def both_train() -> bool:
            return sum(r.state == "running" and len(r.history) > 5 for r in study.view().records) == 2

        wait_until(both_train, "both workers train", 120)
        ray_nodes.kill(ray_nodes.node_with_worker())

    with in_background(kill_a_node):
        assert launch.run_workers(two_workers, study.worker, home / "launch", lambda _: None) == 0
    records = study.view().records
    assert [r.number for r in records if r.state == "complete"] == [*range(3)] == [r.number for r in records]
    for r in records:
        assert [e.index for e in r.history] == [*range(60)]
    ray_nodes.add()


@pytest.mark.service
def test_a_worker_is_restarted_on_another_node_when_its_node_dies(ray_nodes: RayNodes, tmp_path: Path) -> None:
    two_workers = with_launcher(name="ray", workers=2, cpus_per_worker=1, address=ray_nodes.address)
    study = TaskFolder(tmp_path / "study", tasks=120, seconds=0.25)

    def kill_a_node() -> None:
        wait_until(lambda: len(study.pids) == 2 and study.done_by_pids, "both workers work")
        ray_nodes.kill(ray_nodes.node_with_worker())
        wait_until(lambda: len(study.pids) == 3, "another node runs the worker", 90)
        assert len(study.alive()) == 2

    with in_background(kill_a_node):
        assert launch.run_workers(two_workers, study.worker, tmp_path / "logs", lambda _: None) == 0
    assert len(study.done_by_pids) == 120
    ray_nodes.add()


@pytest.mark.service
def test_ray_stores_no_secrets_and_asks_for_its_token(ray_nodes: RayNodes, tmp_path: Path) -> None:
    study = TaskFolder(tmp_path / "study", tasks=1, seconds=0.1)
    two_workers = with_launcher(name="ray", workers=2, cpus_per_worker=1, address=ray_nodes.address)
    assert launch.run_workers(two_workers, study.worker, tmp_path / "logs", lambda _: None) == 0
    session = Path(ray_nodes.cluster.head_node.get_session_dir_path())
    files = [path for path in session.rglob("*") if path.is_file()]
    assert len(files) > 5
    assert [path for path in files if PASSWORD.encode() in path.read_bytes()] == []

    code = (
        "from pathlib import Path; from overnight.cluster.launchers import launch\n"
        "from overnight.config.problems import ConfigError\n"
        "from overnight.config.compose import compose\n"
        "from overnight.config.settings import LauncherSettings\n"
        "from dataclasses import replace\n"
        f"s = LauncherSettings(name='ray', address={ray_nodes.address!r})\n"
        "s = replace(compose([]).settings, launcher=s)\n"
        "try:\n    launch.run_workers(s, ['-c', ''], Path('.'), print)\n"
        "except ConfigError as error:\n    print('REFUSED', error)"
    )
    env = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")} | {"HOME": str(tmp_path)}
    for token, output in (
        ({}, "REFUSED launcher: ray needs the token of its cluster, and this machine has none"),
        (
            {"RAY_AUTH_TOKEN": secrets.token_hex(32)},
            "REFUSED launcher.address: must be a Ray cluster that answers and",
        ),
    ):
        process = subprocess.run(
            [sys.executable, "-c", code], env={**env, **token}, cwd=tmp_path, capture_output=True, text=True, check=True
        )
        assert process.stdout.startswith(output)
