"""Workers on this machine, side by side."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path

from overnight.cluster.launchers.child import Child, Ended
from overnight.config.sections import LauncherSettings


def problems(settings: LauncherSettings) -> list[str]:  # noqa: ARG001
    return []


class Local:
    def __init__(self, arguments: Sequence[str], settings: LauncherSettings, folder: Path) -> None:
        self._children = [Child(arguments, folder / f"worker-{n}.log") for n in range(settings.workers)]

    def poll(self) -> list[Ended | None]:
        return [child.poll() for child in self._children]

    def stop(self) -> None:
        for child in self._children:
            child.stop()

    def close(self) -> None:
        for child in self._children:
            with contextlib.suppress(ProcessLookupError):
                child.kill()
