"""What running trials take of the machine, for MLflow's page of system metrics. Off unless tracking.system_metrics."""

from __future__ import annotations

import contextlib
import importlib
import time
from collections.abc import Callable, Mapping
from typing import Any

import psutil

from overnight.runner.trial_process import TrialProcess
from overnight.search.record import TrialRecord
from overnight.tracking.names import SYSTEM
from overnight.tracking.run_update import LoggedMetric
from overnight.tracking.sync import MlflowSync

EVERY_S = 10.0
_MB = 1e6


class SystemMetrics:
    """Samples each running trial every ten seconds. Its steps are seconds since the trial first started.

    The samples are in MLflow alone. A kill loses those of the last seconds.

    Args:
        clock: monotonic, in seconds.
    """

    def __init__(self, sync: MlflowSync, enabled: bool, clock: Callable[[], float] = time.monotonic) -> None:
        self._sync, self._clock = sync, clock
        self._due_at = clock() if enabled else float("inf")
        self._seen: dict[int, psutil.Process] = {}  # pid -> process, which knows its CPU time at the last sample

    def tick(self, running: Mapping[int, TrialProcess], records: Mapping[int, TrialRecord]) -> None:
        """Take a sample of every running trial, if one is due."""
        if not running or self._clock() < self._due_at:  # a sample of no trial would put off the next one
            return
        self._due_at = self._clock() + EVERY_S
        of_machine, now, seen = machine(), time.time(), set()
        for number, trial in running.items():
            of_trial, pids = self._sample(trial.process.pid or 0)
            seen |= pids
            step = round(now - (records[number].first_started_at or now)) if number in records else 0
            values = {**of_trial, **of_machine, **gpu(trial.spec.device)}
            self._sync.add_samples(
                number, [LoggedMetric(SYSTEM + name, value, round(now * 1000), step) for name, value in values.items()]
            )
        self._seen = {pid: process for pid, process in self._seen.items() if pid in seen}

    def _sample(self, pid: int) -> tuple[dict[str, float], set[int]]:
        """The CPU and the memory of a process and its children, and the ids of these processes."""
        cpu = memory = 0.0
        with contextlib.suppress(psutil.Error):
            trial = psutil.Process(pid)
            for process in (trial, *trial.children(recursive=True)):
                with contextlib.suppress(psutil.Error):  # it has ended since it was listed
                    known = self._seen.setdefault(process.pid, process)
                    cpu += known.cpu_percent()
                    held = known.memory_info()
                    memory += held.rss - getattr(held, "shared", 0)  # a trial shares the imports with the forkserver
            pids = {trial.pid, *(p.pid for p in trial.children(recursive=True))}
            return {"trial_cpu_percentage": cpu, "trial_memory_megabytes": memory / _MB}, pids
        return {}, set()


def machine() -> dict[str, float]:
    """Return the CPU and the memory in use on this machine, under MLflow's names."""
    memory = psutil.virtual_memory()
    return {
        "cpu_utilization_percentage": psutil.cpu_percent(),
        "system_memory_usage_megabytes": memory.used / _MB,
        "system_memory_usage_percentage": memory.percent,
    }


def gpu(device: str) -> dict[str, float]:
    """Return the load of an NVIDIA GPU (cuda:N); nothing for another device, or without the package nvidia-ml-py."""
    if not device.startswith("cuda:"):
        return {}
    try:
        nvml: Any = importlib.import_module("pynvml")
        nvml.nvmlInit()
        handle = nvml.nvmlDeviceGetHandleByIndex(int(device.removeprefix("cuda:")))
        used, load = nvml.nvmlDeviceGetMemoryInfo(handle).used, nvml.nvmlDeviceGetUtilizationRates(handle).gpu
    except Exception:  # of the package, which is not ours, or of the driver
        return {}
    return {"gpu_utilization_percentage": float(load), "gpu_memory_usage_megabytes": used / _MB}
