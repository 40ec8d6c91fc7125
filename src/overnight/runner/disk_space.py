"""Whether the disk is nearly full."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from overnight.runner.stop_state import StopState
from overnight.study.storage.database import DiskFull, free_mib

_RETRY_EVERY_S = 1.0
_RESUME_FACTOR = 1.1  # so that trials do not stop and start again with every file


class DiskSpace:
    """Watches the free space of a home. While it is full, trials save and wait; saving takes what is left.

    Attributes:
        is_full: less than `min_free_mib` was free at the last check, or a write has failed since.
    """

    def __init__(self, root: Path, min_free_mib: float) -> None:
        self._root, self._min_free_mib = root, min_free_mib
        self.is_full = False

    def check(self) -> None:
        minimum_mib = self._min_free_mib * (_RESUME_FACTOR if self.is_full else 1.0)
        self.is_full = free_mib(self._root) < minimum_mib

    def wait(self, stopping: StopState, on_change: Callable[[], None]) -> None:
        """Wait before a write of the storage is tried again that has found no space. Raises DiskFull at a stop."""
        self.is_full = True
        on_change()
        if stopping.is_stopping:
            raise DiskFull("the disk is full; nothing is lost, and the same command resumes once there is room")
        time.sleep(_RETRY_EVERY_S)
