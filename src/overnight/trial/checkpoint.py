"""Checkpoint files of a trial: complete, verified, and never lost while the next one is written.

A state file is a line of magic bytes, the SHA-256 digest of the rest as a hexadecimal line, and torch.save's bytes. The
previous state is kept until its successor is on the disk.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from overnight.system.files import write_atomically

# Torch is imported inside the functions that need it: the doctor verifies these files without it.

_MAGIC = b"overnight state 3\n"
_OLDER_MAGIC = (b"overnight state 1\n", b"overnight state 2\n")  # lack part of what training changes
_STATE, _PREVIOUS_STATE, WEIGHTS = "state.ckpt", "state.before.ckpt", "weights.ckpt"
STATE_FILES = (_STATE, _PREVIOUS_STATE)  # newest first


class DiskFull(OSError):
    """The disk is full. The files that were there before are unchanged."""


class UnusableCheckpoint(ValueError):
    """A file that training must not resume from. The message names the file and the reason."""


def save(folder: Path, state: dict[str, Any]) -> None:
    """Write the newest state of a trial.

    Args:
        folder: the trial's checkpoint folder.
        state: tensors, numbers, texts, and lists, tuples and dicts of them.

    Raises:
        DiskFull: if there is no space left.
    """
    payload = _serialised(state)
    header = _MAGIC + hashlib.sha256(payload).hexdigest().encode() + b"\n"
    with _disk_full_reported():
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / _STATE, header, payload, durable=True, backup=folder / _PREVIOUS_STATE)


def load(folder: Path, identity: Mapping[str, Any] | None = None) -> tuple[dict[str, Any] | None, list[str]]:
    """Load the newest usable state of a folder.

    Args:
        folder: the trial's checkpoint folder.
        identity: what the state must belong to, because the folder may be that of an older study. None accepts any.

    Returns:
        The state, or None, and one line for each unusable file.
    """
    unusable: list[str] = []
    for name in STATE_FILES:
        if (folder / name).exists():
            try:
                state = read(folder / name)
                if identity is not None and state.get("overnight", {}).get("identity") != identity:
                    raise UnusableCheckpoint(f"{name}: of another study's trial, or of another configuration")
                return state, unusable
            except UnusableCheckpoint as error:
                unusable.append(str(error))
    return None, unusable


def read(path: Path) -> dict[str, Any]:
    """Read a state file.

    Raises:
        UnusableCheckpoint: if the file is incomplete, changed, foreign, or holds more than plain data.
    """
    import torch

    payload = read_verified(path)
    try:
        state = torch.load(io.BytesIO(payload), map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds
        raise UnusableCheckpoint(f"{path.name}: {str(error).splitlines()[0]}") from error
    if not isinstance(state, dict):
        raise UnusableCheckpoint(f"{path.name}: holds {type(state).__name__}, not a state")
    return state


def read_verified(path: Path) -> bytes:
    """Return the payload of a state file. Raise UnusableCheckpoint if it is not what was written."""
    data = path.read_bytes()
    if data.startswith(_OLDER_MAGIC):
        raise UnusableCheckpoint(f"{path.name}: of an older version, which did not save all that training changes")
    if not data.startswith(_MAGIC):
        raise UnusableCheckpoint(f"{path.name}: not a state that overnight wrote")
    digest, _, payload = data[len(_MAGIC) :].partition(b"\n")
    if hashlib.sha256(payload).hexdigest().encode() != digest:
        raise UnusableCheckpoint(f"{path.name}: its bytes are not the ones that were written")
    return payload


def save_weights(folder: Path, weights: dict[str, Any]) -> None:
    """Write the weights of a finished trial, for Lightning's load_from_checkpoint, and delete its states.

    Raises:
        DiskFull: if there is no space left.
    """
    with _disk_full_reported():
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / WEIGHTS, _serialised(weights))
    for name in (*STATE_FILES, f"{_STATE}.writing"):
        (folder / name).unlink(missing_ok=True)


def read_history(folder: Path, identity: Mapping[str, Any]) -> list[dict[str, Any]] | None:
    """Return the epochs of a trial that was killed after it saved its weights and before it reported its end.

    Returns:
        The fields of each Progress, or None if the folder holds no weights of this trial.
    """
    import torch

    if not (folder / WEIGHTS).exists():
        return None
    try:
        ours = torch.load(folder / WEIGHTS, map_location="cpu", weights_only=True)["overnight"]
        return list(ours["history"]) if ours["identity"] == identity else None
    except Exception:  # incomplete after a power failure, or foreign: the trial is trained again
        return None


def _serialised(state: dict[str, Any]) -> bytes:
    import torch

    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()


@contextlib.contextmanager
def _disk_full_reported() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DiskFull(*error.args) from error
        raise
