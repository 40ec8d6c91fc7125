"""The parts of a trial's saved state: what it belongs to, random generators, copies of tensors, hyperparameters."""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from omegaconf import OmegaConf

from overnight.protocol import Progress, TrialSpec

_PLAIN_TYPES = (bool, int, float, str, bytes, torch.Tensor, torch.dtype)
DROPPED = object()


def identity_of(spec: TrialSpec) -> dict[str, Any]:
    """Return what a checkpoint belongs to. A trial resumes only from a checkpoint with its own identity.

    The folder of the data is left out: data that is moved stays the same data.
    """
    data = {key: value for key, value in spec.config["data"].items() if key != "root"}
    return {"study": spec.study, "trial": spec.number, "seed": spec.seed, "config": {**spec.config, "data": data}}


def history_of(saved: Iterable[Mapping[str, Any]]) -> tuple[Progress, ...]:
    """Return the history in a checkpoint. Earlier versions name the index `epoch`."""
    return tuple(Progress(**{"index" if key == "epoch" else key: value for key, value in e.items()}) for e in saved)


def get_random_state() -> dict[str, Any]:
    """Return the state of every random generator, in types that a checkpoint may hold."""
    kind, keys, position, has_gauss, gauss = np.random.get_state(legacy=True)
    return {
        "python": random.getstate(),
        "numpy": (
            str(kind),
            torch.from_numpy(np.asarray(keys).astype(np.int64)),
            int(position),
            int(has_gauss),
            float(gauss),
        ),
        "torch": torch.get_rng_state(),
        "cuda": [torch.cuda.get_rng_state()] if torch.cuda.is_initialized() else [],  # of the trial's GPU
    }


def set_random_state(state: dict[str, Any]) -> None:
    random.setstate(state["python"])
    kind, keys, position, has_gauss, gauss = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), position, has_gauss, gauss))
    torch.set_rng_state(state["torch"])
    if state["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"][0])


def copy_to_cpu(value: Any, copies: dict[Any, torch.Tensor] | None = None) -> Any:
    """Copy a tree with all its tensors to the CPU, so that further training does not change the copy.

    A tensor that is in the tree twice is copied once, and is in a file once.
    """
    if value is None or type(value) in (int, str, float, bool):
        return value
    copies = {} if copies is None else copies
    if isinstance(value, torch.Tensor):
        if value.layout is not torch.strided:
            return value.detach().to("cpu", copy=True)
        key = (value.data_ptr(), value.shape, value.stride(), value.dtype, value.device)
        if key not in copies:
            copies[key] = value.detach().to("cpu", copy=True)
        return copies[key]
    if isinstance(value, dict) or isinstance(value, Mapping):  # noqa: SIM101 - the first is a fast way
        return {k: copy_to_cpu(v, copies) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(copy_to_cpu(v, copies) for v in value) if type(value) in (list, tuple) else value
    return value


def plain_hyperparameters(value: Any) -> Any:
    """Return a module's hyperparameters as plain data, without classes, functions and objects.

    Returns:
        The plain value, or DROPPED if nothing of it is plain.
    """
    if OmegaConf.is_config(value):
        value = OmegaConf.to_container(value, resolve=True)
    if isinstance(value, Mapping):
        return {k: plain for k, v in value.items() if (plain := plain_hyperparameters(v)) is not DROPPED}
    if type(value) in (list, tuple):
        items = [plain_hyperparameters(v) for v in value]
        return type(value)(items) if not any(v is DROPPED for v in items) else DROPPED
    return value if value is None or isinstance(value, _PLAIN_TYPES) else DROPPED
