"""Workers on this machine, side by side."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path

from overnight.cluster.launchers.worker_process import WorkerExit, WorkerProcess
from overnight.config.settings import LauncherSettings


def find_problems(settings: LauncherSettings) -> list[str]:  # noqa: ARG001
    return []


class LocalWorkers:
    def __init__(self, arguments: Sequence[str], settings: LauncherSettings, folder: Path) -> None:
        self._workers = [WorkerProcess(arguments, folder / f"worker-{n}.log") for n in range(settings.workers)]

    def poll(self) -> list[WorkerExit | None]:
        return [worker.poll() for worker in self._workers]

    def stop(self) -> None:
        for worker in self._workers:
            worker.stop()

    def close(self) -> None:
        for worker in self._workers:
            with contextlib.suppress(ProcessLookupError):
                worker.kill()
