"""Workers on the nodes of a Ray cluster. One actor watches each worker, and Ray restarts the actors."""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from overnight.cluster.launchers.worker_process import WorkerExit, WorkerProcess, missing_package
from overnight.config.problems import ConfigError
from overnight.config.settings import LauncherSettings

_POLL_TIMEOUT_S = 0.5
LOST_AFTER_S = 20.0  # an actor that does not answer for so long is given up, once all other workers have ended


def find_problems(settings: LauncherSettings) -> list[str]:  # noqa: ARG001
    return missing_package("ray", "ray")


class WorkerActor:
    """A Ray actor that runs a worker on its node, and restarts it there.

    If the node dies, Ray creates the actor again on another one. All methods return at once, so that they run in the
    actor's main thread, which is the parent of the worker.
    """

    def __init__(self, arguments: Sequence[str], log: Path) -> None:
        os.environ.pop("OMP_NUM_THREADS", None)  # set by Ray; the supervisor chooses the threads of a trial
        self._worker = WorkerProcess(arguments, log)

    def poll(self, stopping: bool) -> WorkerExit | None:
        if stopping:  # at every poll, because a new actor may have replaced the one that was asked
            self._worker.stop()
        return self._worker.poll()

    def kill(self) -> None:
        self._worker.kill()


class RayWorkers:
    """The workers of a launch. The actors belong to this process and end with it."""

    def __init__(self, arguments: Sequence[str], settings: LauncherSettings, folder: Path) -> None:
        self._ray = _connect(settings.address)
        actor = self._ray.remote(WorkerActor).options(
            num_cpus=settings.cpus_per_worker or 1,
            num_gpus=settings.gpus_per_worker,
            max_restarts=-1,
            max_task_retries=-1,
            scheduling_strategy="SPREAD",
        )
        count = settings.workers
        self._actors = [actor.remote(list(arguments), folder / f"worker-{n}.log") for n in range(count)]
        self._polls: list[Any] = [a.poll.remote(False) for a in self._actors]
        self._stopping = False
        self._answered_at = [time.monotonic()] * count
        self._exits: list[WorkerExit | None] = [None] * count

    def poll(self) -> list[WorkerExit | None]:
        waiting = [ref for ref, e in zip(self._polls, self._exits, strict=True) if e is None]
        ready = set(self._ray.wait(waiting, num_returns=len(waiting), timeout=_POLL_TIMEOUT_S)[0]) if waiting else set()
        for n, ref in enumerate(self._polls):
            if ref not in ready or self._exits[n] is not None:
                continue
            try:
                self._exits[n] = self._ray.get(ref)
                self._answered_at[n] = time.monotonic()
            except self._ray.exceptions.ActorUnavailableError:
                pass  # its node may come back
            except self._ray.exceptions.RayError as error:
                self._exits[n] = WorkerExit(1, "ray", str(error))
            self._polls[n] = self._actors[n].poll.remote(self._stopping)
        self._give_up_lost()
        return list(self._exits)

    def stop(self) -> None:
        self._stopping = True

    def close(self) -> None:
        running = [a for a, e in zip(self._actors, self._exits, strict=True) if e is None]
        kills = [actor.kill.remote() for actor in running]
        with contextlib.suppress(self._ray.exceptions.RayError):
            self._ray.wait(kills, num_returns=len(kills), timeout=5) if kills else None
        for actor in self._actors:
            self._ray.kill(actor)
        self._ray.shutdown()

    def _give_up_lost(self) -> None:
        """Give up the workers whose nodes are lost, once all others have ended. Until then they wait for a new node."""
        codes = [e.code for e in self._exits if e is not None]
        now = time.monotonic()
        lost = [n for n, e in enumerate(self._exits) if e is None and now - self._answered_at[n] > LOST_AFTER_S]
        if codes and len(lost) + len(codes) == len(self._exits):
            for n in lost:
                self._exits[n] = WorkerExit(min(codes), "ray", "its node was lost, and all other workers have ended")


def _connect(address: str | None) -> Any:
    """Connect to a Ray cluster that checks a token. Without one, anybody who reaches its ports can run any code."""
    os.environ.setdefault("RAY_AUTH_MODE", "token")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray
    import ray.exceptions

    if ray.is_initialized():
        return ray
    try:
        ray.init(address=address, namespace="overnight", log_to_driver=False, logging_level=logging.ERROR)
    except ray.exceptions.AuthenticationError as error:
        raise ConfigError(
            [
                "launcher: ray needs the token of its cluster, and this machine has none; put it in ~/.ray/auth_token "
                "or set RAY_AUTH_TOKEN_PATH to its file; set RAY_AUTH_MODE=disabled for a cluster that checks no token"
            ]
        ) from error
    except (ConnectionError, RuntimeError, ValueError) as error:
        shown = address or os.environ.get("RAY_ADDRESS") or "this machine"
        raise ConfigError(
            [
                f"launcher.address: must be a Ray cluster that answers and accepts this machine's token, got {shown}: "
                f"{str(error).splitlines()[0]}"
            ]
        ) from error
    return ray
