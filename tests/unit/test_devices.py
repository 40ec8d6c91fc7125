"""Where trials run."""

from __future__ import annotations

import psutil
import pytest

from overnight.system import devices


def test_slots_are_the_cores_or_what_was_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert devices.slot_devices(3) == ["cpu"] * 3
    assert len(devices.slot_devices(None)) == devices.cores() >= 1
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,5")
    assert devices.slot_devices(None) == ["cuda:0", "cuda:1"]
    assert devices.slot_devices(3) == ["cuda:0", "cuda:1", "cuda:0"]


def test_the_machines_memory_is_no_more_than_there_is() -> None:
    assert 0 < devices.machine_memory() <= psutil.virtual_memory().total
