"""Launches the workers of a study, watches and stops them, and turns their ends into one exit code.

A worker is `python -m overnight worker STUDY --until-done`, a process of its own. A launcher starts and watches it.
A worker reads addresses and secrets from the environment of its own machine. A launcher passes no secrets on.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from overnight.cluster.launchers import local, ray, slurm
from overnight.cluster.launchers.worker_process import WorkerExit, Workers
from overnight.config.problems import Problems
from overnight.config.settings import LauncherSettings, Settings
from overnight.system.signals import Signals

POLL_EVERY_S = 0.2
_CLASSES: dict[str, Callable[[Sequence[str], LauncherSettings, Path], Workers]] = {
    "local": local.LocalWorkers,
    "ray": ray.RayWorkers,
    "slurm": slurm.SlurmWorkers,
}
_CHECKS: dict[str, Callable[[LauncherSettings], list[str]]] = {
    "local": local.find_problems,
    "ray": ray.find_problems,
    "slurm": slurm.find_problems,
}
# The overrides that concern a worker's machine. All others are stored with the study. None of them is a secret.
_MACHINE_OVERRIDE = re.compile(r"(slots|min_free_mib|stay_awake|import_path|(storage|tracking)(\.\w+)?)=.*")


def find_problems(settings: Settings) -> Problems:
    """Return what keeps a study from being launched."""
    launcher, location = settings.launcher, settings.location
    problems = Problems(_CHECKS[launcher.name](launcher))
    choice = f"launcher={launcher.name}" if launcher.name != "local" else f"launcher.workers={launcher.workers}"
    if not location.shared:
        problems.add(
            "storage",
            f"must be shared with {choice}, got a file of this machine",
            remedy="use storage=postgres, or launcher=local with one worker",
        )
    if launcher.name != "local" and not location.tracking_uri.startswith(("http://", "https://")):
        problems.add(
            "tracking", f"must be a server with {choice}, got a file of this machine", remedy="use tracking=server"
        )
    return problems


def worker_arguments(settings: Settings, overrides: Iterable[str]) -> list[str]:
    """Return the arguments of a worker's Python interpreter.

    Args:
        overrides: The overrides of the launch. A worker gets those that concern its machine.
    """
    passed = [o for o in overrides if _MACHINE_OVERRIDE.fullmatch(o)]
    # A worker has other defaults than `tune`, so both groups are always named.
    groups = {"storage": settings.storage.name, "tracking": settings.tracking.name}
    unnamed = [group for group in groups if not any(o.startswith(f"{group}=") for o in passed)]
    passed = [*(f"{group}={groups[group]}" for group in unnamed), *passed]
    launcher = settings.launcher
    if launcher.cpus_per_worker is not None and not launcher.gpus_per_worker and settings.slots is None:
        passed.append(f"slots={launcher.cpus_per_worker}")
    home = str(settings.location.paths.root)
    if re.fullmatch(r"[\w./~+-]+", home) is None:
        home = "'" + home.replace("'", "\\'") + "'"
    return ["-m", "overnight", "worker", settings.study_name, "--until-done", f"home={home}", *passed]


def launch(settings: Settings, overrides: Iterable[str], echo: Callable[[str], None]) -> int:
    """Run workers until a stored study is complete or is stopped; returns an exit code.

    Raises:
        ConfigError: The study can't be launched. Nothing was started.
    """
    find_problems(settings).raise_if_any()
    folder = settings.location.paths.study(settings.study_name).worker_logs
    return run_workers(settings, worker_arguments(settings, overrides), folder, echo)


def run_workers(settings: Settings, arguments: Sequence[str], folder: Path, echo: Callable[[str], None]) -> int:
    """Run workers until all have ended; returns an exit code.

    The first SIGINT, SIGTERM or SIGHUP asks all workers to save and stop. The second one kills them.

    Args:
        arguments: The arguments of each worker's Python interpreter.
        folder: Where the workers' logs are written.
    """
    with Signals() as signals, signals.working(_noted):
        received = signals.received
        workers = _CLASSES[settings.launcher.name](arguments, settings.launcher, folder)
        signals.install()  # again, because Ray installs its own
        reported: set[int] = set()
        try:
            echo(f"{settings.launcher.workers} workers, launcher={settings.launcher.name}; their logs: {folder}")
            stopping = False
            while True:
                exits = workers.poll()
                for n, worker_exit in enumerate(exits):
                    if worker_exit is not None and n not in reported:
                        reported.add(n)
                        echo(_describe(n, worker_exit))
                codes = [e.code for e in exits if e is not None]
                if len(codes) == len(exits) or len(received) > 1:
                    return _exit_code(codes, received)
                if received and not stopping:
                    stopping = True
                    echo("stopping: workers save their trials; send the signal again to kill them")
                    workers.stop()
                time.sleep(POLL_EVERY_S)
        finally:
            workers.close()


def _noted() -> None:
    """Leave a signal to the loop, which looks at those that were received."""


def _exit_code(codes: Sequence[int], received: Sequence[int]) -> int:
    """Return 0 if one worker found the study complete: other workers did the trials of those that failed."""
    if 0 in codes:
        return 0
    if received:
        return 128 + received[0]
    return min(codes)  # an error that a worker reports says more than the signal that killed another


def _describe(number: int, worker_exit: WorkerExit) -> str:
    if worker_exit.code == 0:
        return f"worker {number} on {worker_exit.machine}: done"
    tail = "".join(f"\n    {line}" for line in worker_exit.log_tail.splitlines())
    return f"worker {number} on {worker_exit.machine}: ended with exit code {worker_exit.code}{tail}"
