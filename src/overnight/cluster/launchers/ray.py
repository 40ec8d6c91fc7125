"""Workers on the nodes of a Ray cluster: an actor watches over each, and Ray over the actors."""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from overnight.cluster.launchers.child import Child, Ended, lacking
from overnight.config.problems import ConfigError
from overnight.config.sections import LauncherSettings

# Seconds that an answer may take at a look; after LOST_S without any, with all others through, one is given up.
_LOOK_S, LOST_S = 0.5, 20.0


def problems(settings: LauncherSettings) -> list[str]:  # noqa: ARG001
    return lacking("ray", "ray")


class Guardian:
    """An actor: starts a worker on its node, and starts it again there when it is killed. When the node dies Ray makes
    another, elsewhere. Its methods return at once, so that all run in its main thread, whose child the worker is."""

    def __init__(self, arguments: Sequence[str], log: Path) -> None:
        os.environ.pop("OMP_NUM_THREADS", None)  # Ray's; how many threads a trial has is the supervisor's business
        self._child = Child(arguments, log)

    def poll(self, stopping: bool) -> Ended | None:
        if stopping:  # each time: this one may be the successor of one that was told
            self._child.stop()
        return self._child.poll()

    def kill(self) -> None:
        self._child.kill()


class Ray:
    """Of a launch that Ray must outlive: the actors are this process's, and end with it."""

    def __init__(self, arguments: Sequence[str], settings: LauncherSettings, folder: Path) -> None:
        self._ray = _connected(settings.address)
        actor = self._ray.remote(Guardian).options(
            num_cpus=settings.cpus_per_worker or 1,
            num_gpus=settings.gpus_per_worker,
            max_restarts=-1,
            max_task_retries=-1,
            scheduling_strategy="SPREAD",
        )
        count = settings.workers
        self._actors = [actor.remote(list(arguments), folder / f"worker-{n}.log") for n in range(count)]
        self._asked: list[Any] = [a.poll.remote(False) for a in self._actors]
        self._stopping = False
        self._heard = [time.monotonic()] * count
        self._ended: list[Ended | None] = [None] * count

    def poll(self) -> list[Ended | None]:
        open_ = [ref for ref, ended in zip(self._asked, self._ended, strict=True) if ended is None]
        ready = set(self._ray.wait(open_, num_returns=len(open_), timeout=_LOOK_S)[0]) if open_ else set()
        for n, ref in enumerate(self._asked):
            if ref not in ready or self._ended[n] is not None:
                continue
            try:
                self._ended[n] = self._ray.get(ref)
                self._heard[n] = time.monotonic()
            except self._ray.exceptions.ActorUnavailableError:
                pass  # its node may come back
            except self._ray.exceptions.RayError as error:
                self._ended[n] = Ended(1, "ray", str(error))
            self._asked[n] = self._actors[n].poll.remote(self._stopping)
        return self._less_lost()

    def stop(self) -> None:
        self._stopping = True

    def close(self) -> None:
        left = [a for a, ended in zip(self._actors, self._ended, strict=True) if ended is None]
        killed = [actor.kill.remote() for actor in left]
        with contextlib.suppress(self._ray.exceptions.RayError):
            self._ray.wait(killed, num_returns=len(killed), timeout=5) if killed else None
        for actor in self._actors:
            self._ray.kill(actor)
        self._ray.shutdown()

    def _less_lost(self) -> list[Ended | None]:
        """One whose node is gone waits for another; where the rest are through there is nothing left to wait for."""
        if any(self._ended):
            now, others = time.monotonic(), [e.code for e in self._ended if e is not None]
            lost = [n for n, e in enumerate(self._ended) if e is None and now - self._heard[n] > LOST_S]
            if len(lost) + len(others) == len(self._ended):
                for n in lost:
                    self._ended[n] = Ended(min(others), "ray", "its node was lost, and the others were through")
        return list(self._ended)


def _connected(address: str | None) -> Any:
    """Ray, at a cluster that checks a token: whoever reaches its ports could otherwise run anything."""
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
                "launcher: ray's cluster must be joined with its token, and there is none here; put it into the "
                "file ~/.ray/auth_token, or let RAY_AUTH_TOKEN_PATH name its file; RAY_AUTH_MODE=disabled for a "
                "cluster that checks none"
            ]
        ) from error
    except (ConnectionError, RuntimeError, ValueError) as error:
        where = address or os.environ.get("RAY_ADDRESS") or "this machine"
        raise ConfigError(
            [
                f"launcher.address: must be of a Ray cluster that answers and takes this machine's token, got {where}: "
                f"{str(error).splitlines()[0]}"
            ]
        ) from error
    return ray
