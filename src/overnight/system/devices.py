"""Where trials run: one slot a GPU of the machine, or one a core."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from pathlib import Path

import psutil

_ASKED = "nvidia-smi"  # of GPUs


def slot_devices(slots: int | None) -> list[str]:
    """One device a slot: the machine's GPUs in turn, or the CPU, once a core unless told otherwise."""
    gpus = _gpus()
    if gpus:
        return [f"cuda:{i % gpus}" for i in range(slots or gpus)]
    return ["cpu"] * (slots or cores())


def machine_memory() -> int:
    """Bytes of memory that this process may use, a container's share included."""
    total = int(psutil.virtual_memory().total)
    with contextlib.suppress(OSError, ValueError):
        total = min(total, int(Path("/sys/fs/cgroup/memory.max").read_text()))  # "max" where there is no limit
    return total


def cores() -> int:
    """The cores that this process may use, a container's share included."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with contextlib.suppress(OSError, ValueError):
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        if quota != "max":
            cores = min(cores, max(1, round(int(quota) / int(period))))
    return cores


def no_gpu() -> bool:
    """Whether there is none that trials may use, as far as that is known at once."""
    return _visible() == 0 or (_visible() is None and shutil.which(_ASKED) is None)


def _gpus() -> int:
    """How many NVIDIA GPUs there are, asked without torch, which the supervisor never imports."""
    visible = _visible()
    if visible is not None:
        return visible
    try:
        listed = subprocess.run([_ASKED, "-L"], capture_output=True, text=True, timeout=20, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return 0
    return sum(line.startswith("GPU ") for line in listed.splitlines())


def _visible() -> int | None:
    """How many GPUs the environment leaves; None where it says nothing."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return None if visible is None else len([d for d in visible.split(",") if d.strip() not in ("", "-1")])
