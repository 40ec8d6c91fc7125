"""Samples of what running trials take of the machine."""

from __future__ import annotations

import os
import sys
import time
from types import SimpleNamespace
from typing import Any

import pytest

from overnight.protocol import Progress
from overnight.runner import system_metrics
from overnight.runner.system_metrics import SystemMetrics
from overnight.search.record import TrialRecord
from overnight.tracking import names
from overnight.tracking.run_update import LoggedMetric


class Samples:
    """Stands in for the synchronisation with MLflow."""

    def __init__(self) -> None:
        self.of: dict[int, list[LoggedMetric]] = {}

    def add_samples(self, number: int, samples: list[LoggedMetric]) -> None:
        self.of.setdefault(number, []).extend(samples)


def test_a_running_trial_is_sampled_every_ten_seconds_from_its_first_start_on() -> None:
    now, sync = [0.0], Samples()
    taken = SystemMetrics(sync, True, lambda: now[0])  # type: ignore[arg-type]
    spec = SimpleNamespace(device="cpu")
    running: Any = {3: SimpleNamespace(process=SimpleNamespace(pid=os.getpid()), spec=spec)}
    begun = Progress(3, 0, {}, time.time() - 55, seconds=5.0)
    resumed = TrialRecord(3, "running", {}, (begun,), None, None, "", started_at=time.time() - 10, ended_at=None)
    records = {3: resumed}
    for now[0] in (0.0, 5.0, 10.0):
        taken.tick(running, records)
        deadline = time.process_time() + 0.05
        while time.process_time() < deadline:
            pass
    found: dict[str, list[LoggedMetric]] = {}
    for sample in sync.of[3]:
        found.setdefault(sample.name, []).append(sample)
    assert set(found) == {name for name in names.SYSTEM_METRICS if "gpu" not in name}
    assert all(len(samples) == 2 for samples in found.values()), "at 0 and 10 seconds"
    assert all(60 <= s.step <= 90 for samples in found.values() for s in samples)
    assert found["system/trial_cpu_percentage"][-1].value > 0
    assert 10 < found["system/trial_memory_megabytes"][-1].value < 5000


def test_a_trial_that_starts_after_a_sample_was_due_is_sampled_at_once() -> None:
    sync = Samples()
    taken = SystemMetrics(sync, True, lambda: 0.0)  # type: ignore[arg-type]
    process = SimpleNamespace(process=SimpleNamespace(pid=os.getpid()), spec=SimpleNamespace(device="cpu"))
    taken.tick({}, {})
    taken.tick({3: process}, {})  # type: ignore[dict-item]
    assert {sample.step for sample in sync.of[3]} == {0}


def test_nothing_is_sampled_unless_it_is_asked_for() -> None:
    sync = Samples()
    SystemMetrics(sync, False, lambda: 1e9).tick({}, {})  # type: ignore[arg-type]
    assert sync.of == {}


def test_a_gpu_is_sampled_by_its_number_and_its_failure_is_no_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    nvml = SimpleNamespace(
        nvmlInit=lambda: None,
        nvmlDeviceGetHandleByIndex=lambda i: asked.append(i),
        nvmlDeviceGetMemoryInfo=lambda _: SimpleNamespace(used=2e6),
        nvmlDeviceGetUtilizationRates=lambda _: SimpleNamespace(gpu=37),
    )
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    assert system_metrics.gpu("cuda:1") == {"gpu_utilization_percentage": 37.0, "gpu_memory_usage_megabytes": 2.0}
    assert asked == [1]
    monkeypatch.setattr(nvml, "nvmlInit", lambda: 1 / 0)
    assert system_metrics.gpu("cuda:1") == system_metrics.gpu("cpu") == {}


def test_a_metric_of_the_user_with_such_a_name_is_another_metric() -> None:
    assert names.metric_name("system/trial_cpu_percentage") != "system/trial_cpu_percentage"
    assert names.metric_name("system/mine") == "system/mine"
