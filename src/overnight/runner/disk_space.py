"""Whether the disk is nearly full."""

from __future__ import annotations

from pathlib import Path

from overnight.study.storage.database import free_mib

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

    def note_failed_write(self) -> None:
        """A write has found no space."""
        self.is_full = True
