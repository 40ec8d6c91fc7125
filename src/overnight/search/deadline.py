"""What still fits before a launch must end: functions of trial records and of the time.

Time is assigned backwards from the deadline: closing (report, MLflow), the test set, the confirmation, the search. The
confirmation is planned with the measured training times of its configurations, first with all seeds, then with fewer
seeds, then with fewer finalists, until it takes at most a third of the launch. A trial is only started if, by the
measured epoch times, it ends before its part does. At the end of a part, running trials save and stop.
"""

from __future__ import annotations

import heapq
import statistics
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from overnight.config import clock
from overnight.config.settings import StudySettings
from overnight.search import patience
from overnight.search.plan import Plan
from overnight.search.record import Confirms, TrialRecord, ranked, typical_units
from overnight.search.schedulers.study import epochs_in_all, trained_epochs

# The largest share of a launch for the confirmation and the test set. The search has the rest.
CONFIRMATION_SHARE = 1 / 3
# A confirmation drops finalists before it goes below this number of seeds: with two seeds a 95% interval is three times
# as wide as with three (Student's t: 12.7 against 4.3 standard errors).
MIN_SEEDS = 3
# Safety factor on measured times, where an overrun would cost the answer.
MARGIN = 1.15
# Seconds in which running trials save, and from the last trial of the search to the first one of the confirmation.
STOP_S, SWITCH_S = 1.0, 3.0
# Seconds that the confirmation may wait for plots of the search's best trial.
PLOTS_S = 6.0
# Closing takes at least CLOSE_S, for the report and for MLflow; as much again for every TRIALS_PER_CLOSE trials. A
# machine that is slow to start is slow to close, up to CLOSE_MAX_S: a longer start may have been a download. (Measured
# on 2 busy cores: 3 s with 6 trials, 12 s with 66, 28 s with 300.)
CLOSE_S, CLOSE_MAX_S, TRIALS_PER_CLOSE = 11.0, 18.0, 75
# The last seconds of closing, to print the answer and exit. The report page is not waited for any longer.
EXIT_S = 6.0


@dataclass(frozen=True)
class Deadline:
    """When a launch must have ended, with its report. Times in seconds since 1970.

    Attributes:
        setting: The setting that it comes from, such as `study.hours=8`.
    """

    started_at: float
    ends_at: float
    setting: str


@dataclass(frozen=True)
class ConfirmationSize:
    """A confirmation that is planned.

    Attributes:
        finalists: The configurations besides the baseline.
        seconds: Wall clock, the test set included.
    """

    finalists: int
    seeds: int
    seconds: float


@dataclass(frozen=True)
class TimePlan:
    """How the rest of a launch is used. Times in seconds since 1970.

    Attributes:
        trials_left: Trials that may still be started, or whole trainings; None while nothing is measured.
        trial_s: Seconds of a typical whole trial; None while nothing is measured.
        overhead_s: Seconds of a trial besides its epochs.
        in_trainings: Whether the budget is counted in epochs, so that trials_left counts whole trainings.
    """

    ends_at: float
    search_ends_at: float
    confirmation: ConfirmationSize
    trials_left: int | None
    trial_s: float | None
    overhead_s: float
    in_trainings: bool = False


def deadline_of(study: StudySettings, now: float) -> Deadline | None:
    """The earlier one of study.hours and study.until for a launch that starts now; None without either."""
    limits = []
    if study.hours is not None:
        limits.append((now + 3600 * study.hours, f"study.hours={study.hours:g}"))
    if study.until is not None:
        limits.append((clock.next_time(study.until, now), f"study.until={study.until}"))
    return Deadline(now, *min(limits)) if limits else None


def closing_s(trials: int, startup_s: float = 0.0) -> float:
    """Seconds from the result of the test set to the end. startup_s: from the launch to its first trial."""
    return min(max(CLOSE_S, startup_s), CLOSE_MAX_S) * (1 + trials / TRIALS_PER_CLOSE)


def exit_s(startup_s: float = 0.0) -> float:
    """Seconds from the report page, finished or not, to the end."""
    return EXIT_S * min(max(CLOSE_S, startup_s), CLOSE_MAX_S) / CLOSE_S


# Measured times -----------------------------------------------------------------------------------------------------


def epoch_s(records: Iterable[TrialRecord]) -> float | None:
    """Mean seconds of an epoch, over all epochs of these trials; None without any."""
    seconds = [e.seconds for r in records for e in r.history]
    return statistics.fmean(seconds) if seconds else None


def overhead_s(records: Iterable[TrialRecord]) -> float:
    """Median seconds of a trial besides its epochs: from its start to the start of its first epoch."""
    starts = [r.history[0].at - r.history[0].seconds - r.started_at for r in records if r.history and r.started_at]
    first = [s for s in starts if s > 0]  # a trial that was resumed has the time of its last start
    return statistics.median(first) if first else 0.0


def whole_s(record: TrialRecord) -> float | None:
    """Seconds that a trial took, without its pauses; None before it has ended.

    A trial that its scheduler may pause counts only if it is complete.
    """
    trained_s = sum(e.seconds for e in record.history)
    if record.until is not None:
        return trained_s if record.state == "complete" and record.history else None
    if not record.done or not record.ended_at or not record.started_at:
        return None
    was_resumed = record.first_started_at != record.started_at
    return trained_s if was_resumed else record.ended_at - record.started_at


def typical_trial_s(records: Sequence[TrialRecord], epochs: int) -> float | None:
    """Median seconds of a whole trial that is not pruned; None while nothing is measured."""
    measured = [s for r in records if (s := epoch_s([r])) is not None]
    return overhead_s(records) + epochs * statistics.median(measured) if measured else None


def remaining_s(record: TrialRecord, time_plan: TimePlan, epochs: int) -> float | None:
    """Seconds to a trial's last epoch, by its own epoch time, or by the typical trial before its first epoch."""
    own = epoch_s([record])
    return time_plan.trial_s if own is None else time_plan.overhead_s + own * max(epochs - len(record.history), 0)


def makespan_s(lengths: Iterable[float], slots: int) -> float:
    """Seconds until trials of these lengths have ended, each started as soon as a slot is free."""
    free_at = [0.0] * slots
    for length in lengths:
        heapq.heapreplace(free_at, free_at[0] + length)
    return max(free_at)


# The confirmation ---------------------------------------------------------------------------------------------------


def confirmation_sizes(top: int, seeds: int) -> Iterator[tuple[int, int]]:
    """Numbers of finalists and seeds, from the confirmation that was asked for down to the smallest.

    Seeds are dropped first, down to MIN_SEEDS, then finalists, down to one, then the remaining seeds.
    """
    least = min(MIN_SEEDS, seeds)
    yield from ((top, n) for n in range(seeds, least - 1, -1) if n)
    if least:
        yield from ((finalists, least) for finalists in range(top - 1, 0, -1))
        yield from ((1, n) for n in range(least - 1, 0, -1))


def largest_affordable(
    top: int, seeds: int, seconds: Callable[[int, int], float], available_s: float
) -> ConfirmationSize:
    """The first of `confirmation_sizes` that fits in `available_s`, or a confirmation of size 0.

    Args:
        seconds: (finalists, seeds) -> seconds, the test set included.
    """
    fitting = ((f, n) for f, n in confirmation_sizes(top, seeds) if seconds(f, n) <= available_s) if top else iter(())
    finalists, n = next(fitting, (0, 0))
    return ConfirmationSize(finalists, n, seconds(finalists, n) if n else 0.0)


def confirmation_s(lengths: Iterable[float], seeds: int, one_test_s: float, slots: int) -> float:
    """Seconds of a confirmation with trials of these lengths, and of the test set for two networks a seed."""
    return MARGIN * (makespan_s(lengths, slots) + 2 * seeds * one_test_s)


def test_set_s(records: Sequence[TrialRecord]) -> float:
    """Seconds of the test set for one network: an upper bound, about one epoch and the overhead of a trial."""
    return overhead_s(records) + (epoch_s(records) or 0.0)


def plan_confirmation(plan: Plan, records: Sequence[TrialRecord], slots: int, available_s: float) -> ConfirmationSize:
    """The confirmation that fits in `available_s` with the present finalists. Missing finalists count as typical."""
    epochs, top = typical_units(records, plan), plan.settings.study.confirm.top
    typical = typical_trial_s(records, epochs)
    if not plan.confirmation_trials or typical is None:
        return ConfirmationSize(0, 0, 0.0)
    overhead = overhead_s(records)
    best = ranked(records, plan.settings)[:top]
    lengths = [overhead + epochs * (epoch_s([r]) or 0.0) for r in best] + [typical] * (top - len(best))
    first = next((r for r in records if r.number == 0 and r.history), None)
    baseline = typical if first is None else overhead + epochs * (epoch_s([first]) or 0.0)
    baseline_lengths = [] if first is not None and first.number in {r.number for r in best} else [baseline]

    def seconds(finalists: int, seeds: int) -> float:
        return confirmation_s([*lengths[:finalists], *baseline_lengths] * seeds, seeds, test_set_s(records), slots)

    return largest_affordable(top, plan.confirm_seeds, seconds, available_s)


# The search ---------------------------------------------------------------------------------------------------------


def plan_time(
    plan: Plan, records: Sequence[TrialRecord], deadline: Deadline, slots: int, now: float, startup_s: float = 0.0
) -> TimePlan:
    """When the search must end so that confirmation, test set and report fit, and what it can do until then."""
    available_s = CONFIRMATION_SHARE * (deadline.ends_at - deadline.started_at)
    confirmation = plan_confirmation(plan, records, slots, available_s)
    plots = PLOTS_S if plan.settings.pictures.when != "never" and records else 0.0
    switch = SWITCH_S if confirmation.seeds else 0.0
    closing = closing_s(len(records), startup_s)
    search_ends_at = deadline.ends_at - closing - confirmation.seconds - switch - plots - STOP_S
    typical = typical_trial_s(records, typical_units(records, plan))
    fitting = None if typical is None else max(int((search_ends_at - now) / max(typical, 1e-3) * slots), 0)
    unspent = max(plan.budget.trials - sum(r.done or r.state == "running" for r in records), 0)
    if plan.pauses:
        finishes = patience.finish_reason(records, plan) is not None
        left = epochs_in_all(records, plan, finishes) - trained_epochs(records)
        unspent = max(left, 0) // plan.units
    trials_left = None if fitting is None else min(fitting, unspent)
    return TimePlan(
        deadline.ends_at, search_ends_at, confirmation, trials_left, typical, overhead_s(records), plan.pauses
    )


def fits(seconds: float | None, now: float, ends_at: float) -> bool:
    """Whether something that takes `seconds` ends in time. Something not measured fits while any time is left."""
    return now + (seconds or 0.0) < ends_at


def describe(time_plan: TimePlan, now: float) -> str:
    """A time plan in one line."""
    end = f"ends by {clock.format_time(time_plan.ends_at, now)}"
    if time_plan.trials_left is None:
        return f"{end}, nothing measured yet"
    size = time_plan.confirmation
    confirmation = (
        f"{size.finalists} finalist{'s' * (size.finalists != 1)} on {size.seeds} fresh seed{'s' * (size.seeds != 1)}"
        if size.seeds
        else "no confirmation"
    )
    what = "whole training" if time_plan.in_trainings else "trial"
    trials = f"{time_plan.trials_left} more {what}{'s' * (time_plan.trials_left != 1)}"
    return f"{end}: {trials} until {clock.format_time(time_plan.search_ends_at, now)}, then {confirmation}"


# The running confirmation -------------------------------------------------------------------------------------------


def confirmation_ends_at(tests_end_at: float, seeds: int, one_test_s: float) -> float:
    """When the last trial must have ended so that two networks for each of `seeds` are tested by `tests_end_at`."""
    return tests_end_at - STOP_S - MARGIN * 2 * seeds * one_test_s


def confirmation_trial_s(
    confirms: Confirms,
    record: TrialRecord,
    confirmations: Sequence[TrialRecord],
    search: Sequence[TrialRecord],
    epochs: int,
) -> float:
    """Seconds to the last epoch of a confirmation's trial.

    The epoch time is the trial's own, or that of the other seeds of its configuration, or that of the configuration's
    trial in the search.

    Args:
        record: The trial of the confirmation, or, before it exists, the trial of the search.
    """
    own = record if record.confirms is not None else None
    other_seeds = [r for r in confirmations if r.confirms is not None and r.confirms.trial == confirms.trial]
    searched = [r for r in search if r.number == confirms.trial]
    seconds = (epoch_s([own]) if own else None) or epoch_s(other_seeds) or epoch_s(searched) or 0.0
    done = len(own.history) if own else 0
    return MARGIN * (overhead_s([*search, *confirmations]) + seconds * max(epochs - done, 0))
