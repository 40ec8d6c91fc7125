"""Wherever workers are placed, they serve the study to its end, or stop when they are told to."""

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
from overnight.config.sections import LauncherSettings, Settings
from overnight.runner.launch import launch_detached
from overnight.search.build_plan import build_plan
from overnight.study.snapshot import StudyView, view
from support.commands import start
from support.paths import SUPPORT

STAND_IN = SUPPORT / "stand_in_worker.py"
PASSWORD = f"planted-{secrets.token_hex(8)}"


def composed(*overrides: str) -> Settings:
    found = compose(overrides).settings
    assert found is not None
    return found


def with_launcher(**given: Any) -> Settings:
    return replace(composed(), launcher=LauncherSettings(**given))


class RayNodes:
    """A Ray cluster of three nodes on this machine, with room for one worker each, behind its token."""

    def __init__(self, folder: Path) -> None:
        (folder / "token").write_text(secrets.token_hex(32))
        self.session = folder / "ray"
        os.environ.update(
            RAY_AUTH_MODE="token",
            RAY_AUTH_TOKEN_PATH=str(folder / "token"),
            OVERNIGHT_STORAGE_URL=f"postgresql://me:{PASSWORD}@localhost/ledger",
        )
        from ray.cluster_utils import Cluster

        # Its sockets' paths must be short.
        self.cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
        self.nodes = [self.cluster.add_node(num_cpus=1) for _ in range(3)]

    @property
    def address(self) -> str:
        return str(self.cluster.address)

    def busy(self) -> Any:
        """A node that has a worker."""
        return next(
            n for n in self.nodes if any("Guardian" in " ".join(p.cmdline()) for p in self.raylet(n).children())
        )

    def raylet(self, node: Any) -> psutil.Process:
        return psutil.Process(node.all_processes["raylet"][0].process.pid)

    def kill(self, node: Any) -> None:
        """As a machine dies that loses its power: all of it at once, with no word to anybody."""
        raylet = self.raylet(node)
        for process in [raylet, *raylet.children(recursive=True)]:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        self.cluster.remove_node(node, allow_graceful=False)
        self.nodes.remove(node)

    def grow(self) -> None:
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
def two(request: pytest.FixtureRequest) -> Settings:
    """Two workers of each launcher; Slurm's jobs by submitit's local executor, as there is no Slurm here."""
    given: dict[str, Any] = {"name": request.param, "workers": 2}
    if request.param == "slurm":
        given["cluster"] = "local"
    if request.param == "ray":
        given.update(address=request.getfixturevalue("ray_nodes").address, cpus_per_worker=1)
    return with_launcher(**given)


class Study:
    """What stand-ins serve."""

    def __init__(self, folder: Path, tasks: int, seconds: float) -> None:
        self.folder, self.tasks = folder, tasks
        folder.mkdir()
        self.worker = [str(STAND_IN), str(folder), str(tasks), str(seconds)]

    @property
    def done_by(self) -> list[int]:
        return [int(path.read_text()) for path in self.folder.glob("done-*")]

    @property
    def pids(self) -> list[int]:
        return [int(path.name.removeprefix("pid-")) for path in self.folder.glob("pid-*")]

    def alive(self) -> list[int]:
        return [p for p in self.pids if psutil.pid_exists(p) and psutil.Process(p).status() != psutil.STATUS_ZOMBIE]


def await_true(holds: Callable[[], object], what: str, seconds: float = 60) -> None:
    until = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < until, f"waited {seconds} s until {what}"
        time.sleep(0.02)


@contextlib.contextmanager
def meanwhile(does: Callable[[], None]) -> Iterator[None]:
    """Do something beside the launch, and have its failure be the test's."""
    failed: list[BaseException] = []

    def run() -> None:
        try:
            does()
        except BaseException as error:
            failed.append(error)
            os.kill(os.getpid(), signal.SIGTERM)  # ends the launch

    thread = threading.Thread(target=run)
    thread.start()
    yield
    thread.join()
    if failed:
        raise failed[0]


def test_all_workers_serve_the_study_until_it_is_done(two: Settings, tmp_path: Path) -> None:
    study, said = Study(tmp_path / "study", tasks=16, seconds=0.2), list[str]()
    assert launch.run(two, study.worker, tmp_path / "logs", said.append) == 0
    assert len(study.done_by) == 16
    assert len(set(study.done_by)) == len(study.pids) == 2
    assert study.alive() == []
    assert [line.partition(" on ")[0] for line in sorted(said)[1:]] == ["worker 0", "worker 1"]


def test_a_worker_that_is_killed_is_started_again(two: Settings, tmp_path: Path) -> None:
    study = Study(tmp_path / "study", tasks=24, seconds=0.2)

    def kill_one() -> None:
        await_true(lambda: len(study.pids) == 2 and study.done_by, "both work")
        os.kill(study.pids[0], signal.SIGKILL)
        await_true(lambda: len(study.pids) == 3, "it was started again")

    with meanwhile(kill_one):
        assert launch.run(two, study.worker, tmp_path / "logs", lambda _: None) == 0
    assert len(study.done_by) == 24


def test_a_worker_that_is_killed_each_time_is_given_up_and_told(tmp_path: Path) -> None:
    said: list[str] = []
    worker = ["-c", "import os; print('worse and worse', flush=True); os.kill(os.getpid(), 9)"]
    assert launch.run(with_launcher(workers=1), worker, tmp_path / "logs", said.append) == 137
    assert "ended with exit code 137" in said[-1]
    assert said[-1].count("worse and worse") == 4


def test_a_word_to_stop_reaches_every_worker(two: Settings, tmp_path: Path) -> None:
    study = Study(tmp_path / "study", tasks=1000, seconds=0.2)

    def stop() -> None:
        await_true(lambda: len(study.pids) == 2 and study.done_by, "both work")
        os.kill(os.getpid(), signal.SIGTERM)

    with meanwhile(stop):
        assert launch.run(two, study.worker, tmp_path / "logs", lambda _: None) == 143
    assert study.alive() == []
    assert len(study.pids) == 2, "what was told to stop is not started again"


def test_what_a_worker_has_to_say_is_told_with_its_exit_code(two: Settings, tmp_path: Path) -> None:
    study, said = Study(tmp_path / "study", tasks=2, seconds=0.1), list[str]()
    (tmp_path / "study" / "refuse").touch()
    assert launch.run(two, study.worker, tmp_path / "logs", said.append) == 2
    assert sum("study: must be one that this worker trusts" in line and "exit code 2" in line for line in said) == 2


def test_workers_stop_where_their_launcher_is_killed(tmp_path: Path) -> None:
    study = Study(tmp_path / "study", tasks=1000, seconds=0.2)
    code = (
        "import sys; from pathlib import Path; from overnight.config.compose import compose\n"
        "from overnight.cluster.launchers import launch\n"
        "s = compose(['launcher.workers=2']).settings\n"
        f"launch.run(s, {study.worker!r}, Path({str(tmp_path)!r}), print)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.DEVNULL) as launcher:
        await_true(lambda: len(study.pids) == 2, "both work")
        launcher.kill()
    await_true(lambda: not study.alive(), "they heard of it", 10)


def test_what_is_not_shared_is_served_by_nobody_else() -> None:
    for launcher in (["launcher=ray"], ["launcher=slurm", "launcher.cluster=local"], ["launcher.workers=2"]):
        with pytest.raises(ConfigError) as caught:
            launch.launch(composed(*launcher), [], print)
        wanted = ["storage"] if launcher == ["launcher.workers=2"] else ["storage", "tracking"]
        assert [p.partition(":")[0] for p in caught.value.problems] == wanted
        assert "take storage=postgres" in caught.value.problems[0]
    assert not composed().launcher.uses_workers


@pytest.mark.parametrize(("launcher", "package"), [("ray", "ray"), ("slurm", "submitit")])
def test_a_launcher_whose_package_is_missing_names_the_extra(
    launcher: str, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)  # as Python has it where an import is forbidden
    (told, *_) = launch.problems(composed(f"launcher={launcher}"))
    assert told.startswith(f"launcher: {launcher} needs the package {package}; pip install 'overnight[{launcher}]'")


def test_slurm_wants_a_machine_that_can_send_jobs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    (told, *_) = launch.problems(composed("launcher=slurm"))
    assert told.startswith("launcher: slurm needs sbatch")


def test_a_worker_gets_what_is_its_machines_business_and_nothing_else() -> None:
    typed = [
        "model=cnn",
        "home=/mine/a b",
        "slots=3",
        "optimizer.lr=0.1",
        "stay_awake=never",
        "storage.url=postgresql://x",
    ]
    handed = launch.arguments(composed(*typed), typed)
    assert handed[:5] == ["-m", "overnight", "worker", "digits-cnn", "--until-done"]
    assert handed[5] == "home='/mine/a b'"
    assert handed[6:] == [
        "storage=sqlite",
        "tracking=local",
        "slots=3",
        "stay_awake=never",
        "storage.url=postgresql://x",
    ]
    shares = launch.arguments(composed("launcher=ray", "launcher.cpus_per_worker=4"), [])
    assert shares[-1] == "slots=4"


# Real workers -----------------------------------------------------------------------------------------------------


class RealStudy:
    """A study in a PostgreSQL that real workers serve, one trial at a time each."""

    def __init__(self, home: Path, url: str, *overrides: str) -> None:
        quick = ["pictures.when=never", "preflight=never", "pruner=none", "study.confirm.seeds=0", "slots=1"]
        self.plan = build_plan([f"home={home}", f"storage.url='{url}'", *quick, *overrides])
        launch_detached(self.plan)
        stores = [f"home={home}", "storage=sqlite", f"storage.url='{url}'", "tracking=local", "slots=1"]
        self.worker = ["-m", "overnight", "worker", self.plan.name, "--until-done", *stores]

    def view(self) -> StudyView:
        found, _ = view(self.plan.settings.location, self.plan.name)
        assert found is not None
        return found


@pytest.mark.service
def test_tune_places_the_workers_that_its_launcher_names(home: Path, database: Callable[[], str]) -> None:
    quick = ["pictures.when=never", "preflight=never", "pruner=none", "study.confirm.seeds=0", "study.trials=6"]
    url = f"storage.url='{database()}'"
    line = [f"home={home}", "slots=1", "launcher.workers=2", url, "trainer.max_epochs=20", *quick]
    with start("tune", *line, stdout=subprocess.PIPE, text=True) as tune:
        said, _ = tune.communicate(timeout=280)
    assert tune.returncode == 0, said
    assert "worker 0 on" in said
    assert "6 of 6" in said
    logs = [path.read_text() for path in (home / "logs/digits-mlp/workers").glob("worker-*.log")]
    assert len(logs) == 2
    assert all("trial-000" in log for log in logs), "each had its share"


@pytest.mark.service
def test_a_study_goes_on_elsewhere_when_a_node_dies(
    ray_nodes: RayNodes, home: Path, database: Callable[[], str]
) -> None:
    two = with_launcher(name="ray", workers=2, cpus_per_worker=1, address=ray_nodes.address)
    study = RealStudy(home, database(), "study.trials=3", "trainer.max_epochs=60", "checkpoint.every_s=0")

    def kill_a_node() -> None:
        def both_train() -> bool:
            return sum(r.state == "running" and len(r.history) > 5 for r in study.view().records) == 2

        await_true(both_train, "both train", 120)
        ray_nodes.kill(ray_nodes.busy())

    with meanwhile(kill_a_node):
        assert launch.run(two, study.worker, home / "launch", lambda _: None) == 0
    records = study.view().records
    assert [r.number for r in records if r.state == "complete"] == [*range(3)] == [r.number for r in records]
    for r in records:
        assert [e.epoch for e in r.history] == [*range(60)]
    ray_nodes.grow()


@pytest.mark.service
def test_a_worker_goes_on_elsewhere_when_its_node_dies(ray_nodes: RayNodes, tmp_path: Path) -> None:
    two = with_launcher(name="ray", workers=2, cpus_per_worker=1, address=ray_nodes.address)
    study = Study(tmp_path / "study", tasks=120, seconds=0.25)

    def kill_a_node() -> None:
        await_true(lambda: len(study.pids) == 2 and study.done_by, "both work")
        ray_nodes.kill(ray_nodes.busy())
        await_true(lambda: len(study.pids) == 3, "another node took it up", 90)
        assert len(study.alive()) == 2

    with meanwhile(kill_a_node):
        assert launch.run(two, study.worker, tmp_path / "logs", lambda _: None) == 0
    assert len(study.done_by) == 120
    ray_nodes.grow()


@pytest.mark.service
def test_ray_knows_none_of_the_secrets_and_asks_for_its_own(ray_nodes: RayNodes, tmp_path: Path) -> None:
    study = Study(tmp_path / "study", tasks=1, seconds=0.1)
    two = with_launcher(name="ray", workers=2, cpus_per_worker=1, address=ray_nodes.address)
    assert launch.run(two, study.worker, tmp_path / "logs", lambda _: None) == 0
    written = Path(ray_nodes.cluster.head_node.get_session_dir_path())
    files = [path for path in written.rglob("*") if path.is_file()]
    assert len(files) > 5
    assert [path for path in files if PASSWORD.encode() in path.read_bytes()] == []

    code = (
        "from pathlib import Path; from overnight.cluster.launchers import launch\n"
        "from overnight.config.problems import ConfigError\n"
        "from overnight.config.compose import compose\n"
        "from overnight.config.sections import LauncherSettings\n"
        "from dataclasses import replace\n"
        f"s = LauncherSettings(name='ray', address={ray_nodes.address!r})\n"
        "s = replace(compose([]).settings, launcher=s)\n"
        "try:\n    launch.run(s, ['-c', ''], Path('.'), print)\n"
        "except ConfigError as error:\n    print('REFUSED', error)"
    )
    env = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")} | {"HOME": str(tmp_path)}
    for token, told in (
        ({}, "REFUSED launcher: ray's cluster must be joined with its token, and there is none"),
        (
            {"RAY_AUTH_TOKEN": secrets.token_hex(32)},
            "REFUSED launcher.address: must be of a Ray cluster that answers and",
        ),
    ):
        done = subprocess.run(
            [sys.executable, "-c", code], env={**env, **token}, cwd=tmp_path, capture_output=True, text=True, check=True
        )
        assert done.stdout.startswith(told)
