"""Keeping the machine awake."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from overnight.system.awake import awake


@pytest.mark.parametrize(
    ("wanted", "plugged", "kept"),
    [
        ("auto", None, True),
        ("auto", True, True),
        ("auto", False, False),
        ("always", False, True),
        ("never", True, False),
    ],
    ids=["no battery", "on mains", "on battery", "on battery, always", "never"],
)
def test_sleep_is_inhibited_depending_on_the_setting_and_the_battery(
    monkeypatch: pytest.MonkeyPatch, wanted: Any, plugged: bool | None, kept: bool
) -> None:
    monkeypatch.setenv("WAKEPY_FAKE_SUCCESS", "yes")  # this machine has no desktop to call
    battery = None if plugged is None else SimpleNamespace(power_plugged=plugged)
    monkeypatch.setattr(psutil, "sensors_battery", lambda: battery, raising=False)
    with awake(wanted) as held:
        assert held == kept


def test_a_system_without_a_way_to_inhibit_sleep_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DBUS_SESSION_BUS_ADDRESS", "unix:path=/nowhere")
    with awake("always") as held:
        assert held in (True, False)
