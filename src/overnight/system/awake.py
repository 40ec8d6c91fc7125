"""Keeping the machine from falling asleep while a study runs, where its system offers that."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Literal

import psutil


@contextlib.contextmanager
def awake(wanted: Literal["auto", "always", "never"]) -> Iterator[bool]:
    """Inhibit sleep within the block; the value says whether the system agreed. auto: not while on battery.

    A laptop that is closed sleeps all the same, and so does a machine whose system has no word for this.
    """
    battery = getattr(psutil, "sensors_battery", lambda: None)()
    if wanted == "never" or (wanted == "auto" and battery is not None and not battery.power_plugged):
        yield False
        return
    from wakepy import keep

    with keep.running(on_fail="pass") as mode:
        yield bool(mode.active)
