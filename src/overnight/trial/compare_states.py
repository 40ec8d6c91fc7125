"""Compare the saved states of two trainings of one trial."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from overnight.trial import checkpoint

# Times differ between any two trainings, as do the notes that only a trial which resumed has.
_NOT_COMPARED = {"identity", "history", "log", "resumed_without", "lost", "pytorch-lightning_version"}
_MAX_NAMES = 3
# What the top-level keys of a state hold, in the user's words.
_PARTS = {
    "state_dict": "weights",
    "weights": "weights",
    "optimizer_states": "optimizer states",
    "lr_schedulers": "schedules",
    "callbacks": "callbacks",
    "random": "random generators",
    "live": "attributes",
    "loops": "the Trainer's counters",
    "trainer": "attributes of the Trainer",
}


def state_differences(one: Path, other: Path) -> list[str]:
    """Compare what two checkpoint folders of a trial hold: its newest state, or its weights once it is complete.

    Returns:
        One line for each kind of content that differs, with the first names of what differs.

    Raises:
        UnusableCheckpoint: if a file is damaged.
    """
    ends = [(folder / checkpoint.WEIGHTS).exists() for folder in (one, other)]
    if ends[0] != ends[1]:
        return ["one training was complete, the other was not"]
    first, second = ((_weights if ends[0] else _state)(folder) for folder in (one, other))
    different: dict[str, list[str]] = {}
    for part, name in _differences(first, second, ()):
        different.setdefault(part, []).append(name)
    return [f"{part}: {_listed(names)}" for part, names in different.items()]


def _state(folder: Path) -> dict[str, Any]:
    state = checkpoint.read(folder / checkpoint.STATE_FILES[0])
    ours = state["overnight"]
    # Lightning counts in private attributes how it was resumed.
    ours["trainer"] = {name: v for name, v in ours["trainer"].items() if not name.rpartition(".")[2].startswith("_")}
    return {**state.pop("overnight"), **state}


def _weights(folder: Path) -> dict[str, Any]:
    import torch

    return {"weights": torch.load(folder / checkpoint.WEIGHTS, map_location="cpu", weights_only=True)["state_dict"]}


def _differences(one: Any, other: Any, path: tuple[Any, ...]) -> Iterator[tuple[str, str]]:
    """Yield (kind of content, name) of every leaf in which two trees differ."""
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        for key in [*one, *(k for k in other if k not in one)]:
            if key not in _NOT_COMPARED:
                yield from _differences(one.get(key), other.get(key), (*path, key))
    elif isinstance(one, list | tuple) and isinstance(other, list | tuple) and len(one) == len(other):
        for number, (a, b) in enumerate(zip(one, other, strict=True)):
            yield from _differences(a, b, (*path, number))
    elif not _equal(one, other):
        yield _PARTS.get(path[0], str(path[0])), ".".join(map(str, path[1:]))


def _equal(one: Any, other: Any) -> bool:
    import torch

    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        # As bits, so that a NaN equals itself.
        return one.dtype == other.dtype and one.shape == other.shape and _bytes(one) == _bytes(other)
    return bool(type(one) is type(other) and (one == other or one != one))


def _bytes(tensor: Any) -> bytes:
    import torch

    return bytes(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()) if tensor.numel() else b""


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - _MAX_NAMES} more" if len(names) > _MAX_NAMES else ""
    return ", ".join(names[:_MAX_NAMES]) + more
