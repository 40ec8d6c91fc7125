"""The devices on which trials run, and the cores and memory of the machine."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import psutil

_NVIDIA_SMI = "nvidia-smi"


def slot_devices(slots: int | None, accelerator: str = "auto") -> list[str]:
    """Return a device for each slot: the GPUs in turn, or the CPU. By default one slot for each GPU or core.

    Args:
        accelerator: as in trainer.accelerator. With mps, or with gpu on a Mac, all slots share the one GPU.
    """
    if accelerator == "mps" or (accelerator == "gpu" and sys.platform == "darwin"):
        return ["mps"] * (slots or 1)
    gpus = _gpus() if accelerator != "cpu" else 0
    if gpus:
        return [f"cuda:{i % gpus}" for i in range(slots or gpus)]
    return ["cpu"] * (slots or cores())


def machine_memory() -> int:
    """Return the bytes of memory that this process may use, within the limit of its container."""
    total = int(psutil.virtual_memory().total)
    with contextlib.suppress(OSError, ValueError):
        total = min(total, int(Path("/sys/fs/cgroup/memory.max").read_text("utf-8")))  # "max" if there is no limit
    return total


def cores() -> int:
    """Return the number of cores that this process may use, within the limit of its container."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with contextlib.suppress(OSError, ValueError):
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text("utf-8").split()
        if quota != "max":
            cores = min(cores, max(1, round(int(quota) / int(period))))
    return cores


def accelerator_problem(accelerator: str) -> str | None:
    """Return why this machine can't train on an accelerator, or None."""
    if accelerator == "mps" and sys.platform != "darwin":
        return "mps is the GPU of a Mac, and this machine is none"
    if accelerator in ("gpu", "cuda") and slot_devices(1, accelerator) == ["cpu"]:
        return "this machine has no NVIDIA GPU, or CUDA_VISIBLE_DEVICES hides it"
    return None


def no_gpu() -> bool:
    """Return whether trials can use no GPU, as far as the environment and the installed programs show."""
    return _visible() == 0 or (_visible() is None and shutil.which(_NVIDIA_SMI) is None)


def _gpus() -> int:
    """Count the NVIDIA GPUs, without torch, which the supervisor never imports."""
    visible = _visible()
    if visible is not None:
        return visible
    try:
        listed = subprocess.run([_NVIDIA_SMI, "-L"], capture_output=True, text=True, timeout=20, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return 0
    return sum(line.startswith("GPU ") for line in listed.splitlines())


def _visible() -> int | None:
    """Return how many GPUs CUDA_VISIBLE_DEVICES allows; None if it is not set."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return None if visible is None else len([d for d in visible.split(",") if d.strip() not in ("", "-1")])
