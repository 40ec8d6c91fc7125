"""Derives every seed of a study from the seed of its settings."""

from __future__ import annotations

import hashlib


def derive_seed(*parts: int | str) -> int:
    """Hash the parts to a seed from 0 to 2**32 - 1, the same on every machine and in every version."""
    return int.from_bytes(hashlib.sha256("/".join(map(str, parts)).encode()).digest()[:4], "big")
