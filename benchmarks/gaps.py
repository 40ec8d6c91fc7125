"""What the stamps tell that trials left (see probes.py): above all, how long slots stood empty."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

STAMPS = "OVERNIGHT_STAMPS"


def first_stamp(path: Path, what: str, since: float) -> float:
    """When the first of its kind was left; both in seconds since 1970."""
    return min(at for times in _times(path, what).values() for at in times if at >= since)


def counts(path: Path, what: str) -> list[int]:
    """The numbers of the stamps that count something: `what`=NUMBER."""
    kinds = (line.split()[0].partition("=") for line in path.read_text().splitlines())
    return [int(number) for kind, _, number in kinds if kind == what]


def gaps_ms(path: Path, slots: int, last: str, first: str) -> list[float]:
    """From each trial's last stamp `last` to the first stamp `first` of the trial that took its slot, in milliseconds.

    Which trial took which slot needs no telling: a slot that is freed goes to the next trial there is. So the first
    trial to end makes room for the first that starts beyond the `slots`, the second to end for the second, and so on;
    and as no trial starts without a slot, none of these is negative.
    """
    ended, started = _times(path, last), _times(path, first)
    ends = sorted(max(times) for times in ended.values())
    # A process that draws the winner's pictures builds data and model too, and is no trial: it ends nothing.
    starts = sorted(min(times) for process, times in started.items() if process in ended)
    return [(start - end) * 1000 for end, start in zip(ends, starts[slots:], strict=False)]


def _times(path: Path, what: str) -> dict[str, list[float]]:
    """Process -> when it left such a stamp."""
    found: dict[str, list[float]] = defaultdict(list)
    for line in path.read_text().splitlines():
        kind, process, at = line.split()
        if kind == what:
            found[process].append(float(at))
    return found
