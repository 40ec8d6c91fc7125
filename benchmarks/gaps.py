"""Evaluate the time stamps of trials (see probes.py): how long slots were empty."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

STAMPS = "OVERNIGHT_STAMPS"


def first_stamp(path: Path, what: str, since: float) -> float:
    """Return the time of the first stamp of this kind after `since`, both in seconds since 1970."""
    return min(at for times in _times(path, what).values() for at in times if at >= since)


def counts(path: Path, what: str) -> list[int]:
    """Return the numbers of all stamps `what`=NUMBER."""
    kinds = (line.split()[0].partition("=") for line in path.read_text().splitlines())
    return [int(number) for kind, _, number in kinds if kind == what]


def gaps_ms(path: Path, slots: int, last: str, first: str) -> list[float]:
    """Return the milliseconds from each trial's last stamp `last` to the next trial's first stamp `first` in its slot.

    Stamps do not contain the slot. A free slot goes to the next trial, so the first trial that ends is followed by the
    first one that starts after the initial `slots`, the second by the second, and so on. No trial starts without a
    slot, so no gap is negative.
    """
    ended, started = _times(path, last), _times(path, first)
    ends = sorted(max(times) for times in ended.values())
    # A process that draws plots builds data and model too. It is not a trial and has no stamp `last`.
    starts = sorted(min(times) for process, times in started.items() if process in ended)
    return [(start - end) * 1000 for end, start in zip(ends, starts[slots:], strict=False)]


def _times(path: Path, what: str) -> dict[str, list[float]]:
    """Return the times of such stamps by process."""
    found: dict[str, list[float]] = defaultdict(list)
    for line in path.read_text().splitlines():
        kind, process, at = line.split()
        if kind == what:
            found[process].append(float(at))
    return found
