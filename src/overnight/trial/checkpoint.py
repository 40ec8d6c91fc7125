"""A trial's saved state: whole, checked, and never lost to the saving of the next one.

A file is a line of magic, the sha256 of the rest, and the rest: torch.save's bytes. It is written under another name
in the same folder, flushed to the disk, and renamed; the one before is kept until then.
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

# Torch is imported where it is needed: the doctor looks at these files, and does without.

_MAGIC = b"overnight state 1\n"
_STATE, _BEFORE, WEIGHTS = "state.ckpt", "state.before.ckpt", "weights.ckpt"
STATES = (_STATE, _BEFORE)


class DiskFull(OSError):
    """The disk is full. The files that were there before are unchanged."""


class Unusable(ValueError):
    """A state file that must not be gone on from; the message says which and why."""


def save(folder: Path, state: dict[str, Any]) -> None:
    """Write `state` (tensors, numbers, texts, and lists, tuples and dicts of them) as the folder's newest.

    Raises DiskFull where the disk is full.
    """
    data = _bytes(state)
    head = _MAGIC + hashlib.sha256(data).hexdigest().encode() + b"\n"
    with _disk_full_reported():
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / _STATE, head, data, durable=True, backup=folder / _BEFORE)


def load(folder: Path, of: Mapping[str, Any] | None = None) -> tuple[dict[str, Any] | None, list[str]]:
    """The newest usable state in the folder, or None, and a note on each file that was refused.

    of: what the state's ["overnight"]["of"] must equal, because a folder may be an older study's.
    """
    refused: list[str] = []
    for name in STATES:
        if (folder / name).exists():
            try:
                state = read(folder / name)
                if of is not None and state.get("overnight", {}).get("of") != of:
                    raise Unusable(f"{name}: of another study's trial, or of another configuration")
                return state, refused
            except Unusable as error:
                refused.append(str(error))
    return None, refused


def read(path: Path) -> dict[str, Any]:
    """The state in a file. Raises Unusable where it is torn, changed, foreign, or holds more than plain data."""
    import torch

    payload = verified(path)
    try:
        state = torch.load(io.BytesIO(payload), map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds
        raise Unusable(f"{path.name}: {str(error).splitlines()[0]}") from error
    if not isinstance(state, dict):
        raise Unusable(f"{path.name}: holds {type(state).__name__}, not a state")
    return state


def verified(path: Path) -> bytes:
    """A state file's payload, the very bytes that were written. Raises Unusable where they are not."""
    data = path.read_bytes()
    if not data.startswith(_MAGIC):
        raise Unusable(f"{path.name}: not a state that overnight wrote")
    digest, _, payload = data[len(_MAGIC) :].partition(b"\n")
    if hashlib.sha256(payload).hexdigest().encode() != digest:
        raise Unusable(f"{path.name}: its bytes are not the ones that were written")
    return payload


def save_weights(folder: Path, checkpoint: dict[str, Any]) -> None:
    """Write a finished trial's weights, as Lightning's load_from_checkpoint takes them, and drop its states.

    Raises DiskFull where the disk is full.
    """
    with _disk_full_reported():
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / WEIGHTS, _bytes(checkpoint))
    for name in (*STATES, f"{_STATE}.writing"):
        (folder / name).unlink(missing_ok=True)


def trained(folder: Path, of: Mapping[str, Any]) -> list[dict[str, Any]] | None:
    """The history of a trial whose weights lie there: it was trained to its end, and killed before it could say so."""
    import torch

    if not (folder / WEIGHTS).exists():
        return None
    try:
        kept = torch.load(folder / WEIGHTS, map_location="cpu", weights_only=True)["overnight"]
        return list(kept["history"]) if kept["of"] == of else None
    except Exception:  # torn by a power cut, or foreign: it is trained again
        return None


def _bytes(state: dict[str, Any]) -> bytes:
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
