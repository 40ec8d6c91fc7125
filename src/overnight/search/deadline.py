"""What still fits before a launch must have ended: functions of trials' records and of the time.

One rule. Counted back from the end: what closing takes, then the test set, then the confirmation, then the search.
The confirmation is planned at the length that its configurations took, first with all its seeds, then with fewer, then
with fewer finalists, until it takes no more than a third of the launch. Nothing is started that, by the epochs
measured, would not be through when its part ends; what runs then saves and stops.
"""

from __future__ import annotations

import heapq
import statistics
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from overnight.config import clock
from overnight.config.sections import StudySettings
from overnight.search.plan import Plan
from overnight.search.record import Confirms, TrialRecord, ranked

# Of a launch's time, for the confirmation and the test set: the search has the rest.
SHARE = 1 / 3
# Seeds that a confirmation keeps before it gives up finalists: with two a 95% interval is three times as wide as with
# three and more (Student's t: 12.7 against 4.3 standard errors).
LEAST_SEEDS = 3
# What was measured is taken so many times, where an overrun would cost the answer.
MARGIN = 1.15
# Seconds for running trials to save, and from the search's last trial to the confirmation's first.
STOP_S, SWITCH_S = 1.0, 3.0
# Seconds that pictures of the search's best may keep the confirmation waiting.
PICTURES_S = 6.0
# Seconds for the report, and for MLflow to have it all, at least; as much again for every so many trials. A machine
# that took longer to start takes longer, but not for ever: that may have been a download. (2 cores, much other work:
# 3 s with 6 trials, 12 s with 66, 28 s with 300.)
CLOSE_S, CLOSE_AT_MOST_S, TRIALS_AS_MUCH = 11.0, 18.0, 75
# Seconds of these to print the answer and leave: the page is waited for no longer.
LEAVE_S = 6.0


@dataclass(frozen=True)
class Deadline:
    """When a launch must have ended, its report included. Seconds since 1970; said: what it goes by."""

    began: float
    ends: float
    said: str


@dataclass(frozen=True)
class Size:
    """Of a confirmation. finalists: beside the baseline; seconds: what it takes, the test set included."""

    finalists: int
    seeds: int
    seconds: float


@dataclass(frozen=True)
class Outlook:
    """What a search is heading for. more: trials that may still be started; typical_s: of a whole trial; both None
    while nothing is measured. beside_s: of a trial beside its epochs."""

    ends: float
    search_ends: float
    size: Size
    more: int | None
    typical_s: float | None
    beside_s: float


def of(study: StudySettings, now: float) -> Deadline | None:
    """The first of a study's limits of time, for a launch that begins now; None where it has none."""
    limits = []
    if study.hours is not None:
        limits.append((now + 3600 * study.hours, f"study.hours={study.hours:g}"))
    if study.until is not None:
        limits.append((clock.next_time(study.until, now), f"study.until={study.until}"))
    return Deadline(now, *min(limits)) if limits else None


def closing_s(trials: int, started_s: float = 0.0) -> float:
    """Seconds from the last word of the test set to the end. started_s: from the launch to its first trial."""
    return min(max(CLOSE_S, started_s), CLOSE_AT_MOST_S) * (1 + trials / TRIALS_AS_MUCH)


def leave_s(started_s: float = 0.0) -> float:
    """Seconds from the page, or from giving it up, to the end."""
    return LEAVE_S * min(max(CLOSE_S, started_s), CLOSE_AT_MOST_S) / CLOSE_S


# What trials take -----------------------------------------------------------------------------------------------------


def pace(records: Iterable[TrialRecord]) -> float | None:
    """Seconds an epoch, over all that these trained; None where they trained none."""
    seconds = [e.seconds for r in records for e in r.history]
    return statistics.fmean(seconds) if seconds else None


def beside(records: Iterable[TrialRecord]) -> float:
    """Seconds that a trial takes beside its epochs, from its start to the first one's: the median."""
    starts = [r.history[0].at - r.history[0].seconds - r.started_at for r in records if r.history and r.started_at]
    return max(statistics.median(starts), 0.0) if starts else 0.0


def typical(records: Sequence[TrialRecord], epochs: int) -> float | None:
    """Seconds of a whole trial, unpruned: half of those measured take longer. None where nothing is measured."""
    paces = [p for r in records if (p := pace([r])) is not None]
    return beside(records) + epochs * statistics.median(paces) if paces else None


def left(record: TrialRecord, ahead: Outlook, epochs: int) -> float | None:
    """Seconds to a trial's last epoch, at its own pace, or, before it has one, at the typical one."""
    own = pace([record])
    return ahead.typical_s if own is None else ahead.beside_s + own * max(epochs - len(record.history), 0)


def makespan(lengths: Iterable[float], slots: int) -> float:
    """Seconds until trials of these lengths, each started as soon as a slot is free, are through."""
    free = [0.0] * slots
    for length in lengths:
        heapq.heapreplace(free, free[0] + length)
    return max(free)


# The confirmation -----------------------------------------------------------------------------------------------------


def sizes(top: int, seeds: int) -> Iterator[tuple[int, int]]:
    """Finalists and seeds of a confirmation, from the one asked for down to the smallest: seeds are given up first,
    down to LEAST_SEEDS, then finalists, down to the best one, then the other seeds."""
    least = min(LEAST_SEEDS, seeds)
    yield from ((top, n) for n in range(seeds, least - 1, -1) if n)
    if least:
        yield from ((finalists, least) for finalists in range(top - 1, 0, -1))
        yield from ((1, n) for n in range(least - 1, 0, -1))


def affordable(top: int, seeds: int, seconds: Callable[[int, int], float], room_s: float) -> Size:
    """The first of `sizes` that is through in `room_s`, or none. seconds: of finalists and seeds, tests included."""
    fitting = ((f, n) for f, n in sizes(top, seeds) if seconds(f, n) <= room_s) if top else iter(())
    finalists, n = next(fitting, (0, 0))
    return Size(finalists, n, seconds(finalists, n) if n else 0.0)


def confirming_s(lengths: Iterable[float], seeds: int, one_test_s: float, slots: int) -> float:
    """Seconds of a confirmation whose trials take `lengths`, and of the test set for its two networks a seed."""
    return MARGIN * (makespan(lengths, slots) + 2 * seeds * one_test_s)


def test_s(records: Sequence[TrialRecord]) -> float:
    """Seconds of the test set for one network: at most about an epoch and what comes with any trial."""
    return beside(records) + (pace(records) or 0.0)


def planned(plan: Plan, records: Sequence[TrialRecord], slots: int, room_s: float) -> Size:
    """The confirmation that a search as it stands would get within `room_s`; what has no finalist yet takes what is
    typical."""
    epochs, top = plan.settings.trainer.max_epochs, plan.settings.study.confirm.top
    usual = typical(records, epochs)
    if not plan.confirmation_trials or usual is None:
        return Size(0, 0, 0.0)
    best = ranked(records, plan.settings)[:top]
    lengths = [beside(records) + epochs * (pace([r]) or 0.0) for r in best] + [usual] * (top - len(best))
    first = next((r for r in records if r.number == 0 and r.history), None)
    baseline = usual if first is None else beside(records) + epochs * (pace([first]) or 0.0)
    also = [] if first is not None and first.number in {r.number for r in best} else [baseline]

    def seconds(finalists: int, seeds: int) -> float:
        return confirming_s([*lengths[:finalists], *also] * seeds, seeds, test_s(records), slots)

    return affordable(top, plan.confirm_seeds, seconds, room_s)


# The search -----------------------------------------------------------------------------------------------------------


def outlook(
    plan: Plan, records: Sequence[TrialRecord], deadline: Deadline, slots: int, now: float, started_s: float = 0.0
) -> Outlook:
    """When a search must end for its confirmation, tests and report to be through by the deadline, and what it can
    still do until then."""
    size = planned(plan, records, slots, SHARE * (deadline.ends - deadline.began))
    pictures = PICTURES_S if plan.settings.pictures.when != "never" and records else 0.0
    switch = SWITCH_S if size.seeds else 0.0
    closing = closing_s(len(records), started_s)
    ends = deadline.ends - closing - size.seconds - switch - pictures - STOP_S
    usual = typical(records, plan.settings.trainer.max_epochs)
    fit = None if usual is None else max(int((ends - now) / max(usual, 1e-3) * slots), 0)
    unspent = max(plan.budget - sum(r.done or r.state == "running" for r in records), 0)
    return Outlook(deadline.ends, ends, size, None if fit is None else min(fit, unspent), usual, beside(records))


def fits(seconds: float | None, now: float, ends: float) -> bool:
    """Whether what takes so long may be started; what was never measured may, as long as there is any time."""
    return now + (seconds or 0.0) < ends


def words(ahead: Outlook, now: float) -> str:
    """An outlook in one line."""
    said = f"ends by {clock.format_time(ahead.ends, now)}"
    if ahead.more is None:
        return f"{said}, nothing measured yet"
    size = ahead.size
    confirmed = (
        f"{size.finalists} finalist{'s' * (size.finalists != 1)} on {size.seeds} fresh seed{'s' * (size.seeds != 1)}"
        if size.seeds
        else "no confirmation"
    )
    return f"{said}: {ahead.more} trials more until {clock.format_time(ahead.search_ends, now)}, then {confirmed}"


# The confirmation as it runs ------------------------------------------------------------------------------------------


def confirming_ends(ends: float, seeds: int, one_test_s: float) -> float:
    """When the confirmation's last trial must be through, for so many seeds of two networks to be tested by
    `ends`."""
    return ends - STOP_S - MARGIN * 2 * seeds * one_test_s


def confirmation_s(
    confirms: Confirms,
    record: TrialRecord,
    confirmations: Sequence[TrialRecord],
    search: Sequence[TrialRecord],
    epochs: int,
) -> float:
    """Seconds to a confirmation's last epoch, at the pace of its configuration so far: that of its other seeds, or,
    before there are any, of its trial in the search. record: the confirmation's own, or that trial."""
    own = record if record.confirms is not None else None
    alike = [r for r in confirmations if r.confirms is not None and r.confirms.trial == confirms.trial]
    trial = [r for r in search if r.number == confirms.trial]
    speed = (pace([own]) if own else None) or pace(alike) or pace(trial) or 0.0
    done = len(own.history) if own else 0
    return MARGIN * (beside([*search, *confirmations]) + speed * max(epochs - done, 0))
