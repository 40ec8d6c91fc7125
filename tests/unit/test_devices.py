"""The cores, slots and memory of the machine."""

from __future__ import annotations

import psutil
import pytest

from overnight.system import devices


def test_slots_default_to_the_cores_and_can_be_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert devices.slot_devices(3) == ["cpu"] * 3
    assert len(devices.slot_devices(None)) == devices.cores() >= 1
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,5")
    assert devices.slot_devices(None) == ["cuda:0", "cuda:1"]
    assert devices.slot_devices(3) == ["cuda:0", "cuda:1", "cuda:0"]


def test_the_available_memory_is_at_most_the_memory_of_the_machine() -> None:
    assert 0 < devices.machine_memory() <= psutil.virtual_memory().total
