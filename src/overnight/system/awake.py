"""Keep the machine awake while a study runs, if its system supports that."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Literal

import psutil


@contextlib.contextmanager
def awake(wanted: Literal["auto", "always", "never"]) -> Iterator[bool]:
    """Prevent sleep within the block, and yield whether the system agreed.

    A closed laptop sleeps anyway, and so does a machine whose system does not support this.

    Args:
        wanted: always, never, or auto (unless the machine runs on battery).
    """
    battery = getattr(psutil, "sensors_battery", lambda: None)()
    if wanted == "never" or (wanted == "auto" and battery is not None and not battery.power_plugged):
        yield False
        return
    from wakepy import keep

    with keep.running(on_fail="pass") as mode:
        yield bool(mode.active)
