"""The slots of a machine: its devices, and the trials that run on them."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from multiprocessing.connection import wait
from typing import Any

from overnight.runner.trial_process import TrialProcess


class SlotPool:
    """Devices that are free, and running trials by number.

    Args:
        devices: one for each slot, e.g. ["cpu", "cpu"].
    """

    def __init__(self, devices: Sequence[str]) -> None:
        self._free = deque(devices)
        self.count = len(devices)
        self.on_cpu = set(devices) == {"cpu"}
        self.running: dict[int, TrialProcess] = {}

    @property
    def has_free(self) -> bool:
        return bool(self._free)

    def acquire(self) -> str:
        """Take a free device. Call `add` with the trial that runs on it."""
        return self._free.popleft()

    def add(self, trial: TrialProcess) -> None:
        self.running[trial.spec.number] = trial

    def remove(self, number: int) -> TrialProcess:
        """Free the slot of a trial."""
        trial = self.running.pop(number)
        self._free.append(trial.spec.device)
        return trial

    def wait(self, timeout_s: float) -> list[TrialProcess]:
        """Wait until a trial sends, prints or ends; return all that did."""
        handles: dict[Any, TrialProcess] = {}
        for trial in self.running.values():
            handles.update({trial.pipe: trial, trial.process.sentinel: trial})
            if trial.printing:
                handles[trial.output] = trial
        ready = wait(list(handles), timeout=timeout_s)
        return list({id(trial): trial for trial in (handles[h] for h in ready)}.values())

    def close(self) -> None:
        """Kill all running trials."""
        for trial in self.running.values():
            trial.close()
        self.running.clear()
