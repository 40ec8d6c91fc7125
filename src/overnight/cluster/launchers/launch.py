"""A launch: workers placed, looked after, told to stop, and what they came to as one exit code.

A worker is `python -m overnight worker STUDY --until-done`, a process of its own wherever it runs; what placed it only
watches over that. It has the stores' addresses and secrets from the environment of its machine: none is handed on.
"""

from __future__ import annotations

import re
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from overnight.cluster.launchers import local, ray, slurm
from overnight.cluster.launchers.child import Ended, Workers
from overnight.config.problems import ConfigError
from overnight.config.sections import Settings

TICK_S = 0.2
_ROOMS = {"local": local, "ray": ray, "slurm": slurm}
_MAKERS: dict[str, Callable[..., Workers]] = {"local": local.Local, "ray": ray.Ray, "slurm": slurm.Slurm}
# What of a command line is a worker's business, too; a study brings the rest of it. A password never stands there.
_MACHINES = re.compile(r"(slots|min_free_mib|stay_awake|(storage|tracking)(\.\w+)?)=.*")


def problems(settings: Settings) -> list[str]:
    """What keeps a study from being launched so, one line each."""
    launcher, location = settings.launcher, settings.location
    found = _ROOMS[launcher.name].problems(launcher)
    who = f"launcher={launcher.name}" if launcher.name != "local" else f"launcher.workers={launcher.workers}"
    if not location.shared:
        found.append(
            f"storage: must be shared where {who}, got a file of this machine; take storage=postgres, or one worker of "
            f"launcher=local"
        )
    if launcher.name != "local" and not location.tracking_uri.startswith(("http://", "https://")):
        found.append(f"tracking: must be a server where {who}, got a file of this machine; take tracking=server")
    return found


def arguments(settings: Settings, overrides: Iterable[str]) -> list[str]:
    """A worker's, for the Python of its machine. overrides: the launch's, of which it gets those about machines."""
    handed = [o for o in overrides if _MACHINES.fullmatch(o)]
    named = {"storage": settings.storage.name, "tracking": settings.tracking.name}  # a worker's own defaults are others
    lacking = [group for group in named if not any(o.startswith(f"{group}=") for o in handed)]
    handed = [*(f"{group}={named[group]}" for group in lacking), *handed]
    launcher = settings.launcher
    if launcher.cpus_per_worker is not None and not launcher.gpus_per_worker and settings.slots is None:
        handed.append(f"slots={launcher.cpus_per_worker}")
    home = str(settings.location.paths.root)
    plain = re.fullmatch(r"[\w./~+-]+", home) is not None
    quoted = home if plain else "'" + home.replace("'", "\\'") + "'"
    return ["-m", "overnight", "worker", settings.study_name, "--until-done", f"home={quoted}", *handed]


def check(settings: Settings) -> None:
    """Raise ConfigError where a study can't be launched so."""
    found = problems(settings)
    if found:
        raise ConfigError(found)


def launch(settings: Settings, overrides: Iterable[str], say: Callable[[str], None]) -> int:
    """Have a study that stands in the ledger worked on until it is done or somebody says stop; an exit code.

    Raises ConfigError, before anything is started.
    """
    check(settings)
    folder = settings.location.paths.study(settings.study_name).worker_logs
    return run(settings, arguments(settings, overrides), folder, say)


def run(settings: Settings, worker: Sequence[str], folder: Path, say: Callable[[str], None]) -> int:
    """Place workers, each the Python arguments `worker`, and look after them. folder: for what they print.

    The first SIGINT, SIGTERM or SIGHUP has all of them save and stop, a second one ends them.
    """
    with _signals() as (received, take):
        workers = _MAKERS[settings.launcher.name](worker, settings.launcher, folder)
        take()  # again: Ray sets handlers of its own
        told: set[int] = set()
        try:
            say(f"{settings.launcher.workers} workers, launcher={settings.launcher.name}; their logs: {folder}")
            stopping = False
            while True:
                ended = workers.poll()
                for n, end in enumerate(ended):
                    if end is not None and n not in told:
                        told.add(n)
                        say(_said(n, end))
                codes = [end.code for end in ended if end is not None]
                if len(codes) == len(ended) or len(received) > 1:
                    return _code(codes, received)
                if received and not stopping:
                    stopping = True
                    say("stopping: trials are saved; once more to end them as they are")
                    workers.stop()
                time.sleep(TICK_S)
        finally:
            workers.close()


def _code(codes: Sequence[int], received: Sequence[int]) -> int:
    """0 where one says that the study is done: whatever became of the others was made good for."""
    if 0 in codes:
        return 0
    if received:
        return 128 + received[0]
    return min(codes)  # a mistake, told by one, says more than that another was killed


def _said(number: int, end: Ended) -> str:
    if end.code == 0:
        return f"worker {number} on {end.where}: done"
    tail = "".join(f"\n    {line}" for line in end.tail.splitlines())
    return f"worker {number} on {end.where}: ended with exit code {end.code}{tail}"


@contextmanager
def _signals() -> Iterator[tuple[list[int], Callable[[], None]]]:
    """The signals to stop that came meanwhile, and what to call to have them noted again where somebody else took them.

    Outside the main thread none are heard.
    """
    received: list[int] = []
    kinds = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    if threading.current_thread() is not threading.main_thread():
        yield received, lambda: None
        return

    def note(number: int, frame: FrameType | None) -> None:  # noqa: ARG001
        received.append(number)

    def take() -> None:
        for kind in kinds:
            signal.signal(kind, note)

    before = {kind: signal.getsignal(kind) for kind in kinds}
    take()
    try:
        yield received, take
    finally:
        for kind, handler in before.items():
            signal.signal(kind, handler)
