"""Successive halving that pauses trials and resumes them: no trained epoch is lost.

After Li et al. 2020 (ASHA), with two differences. A trial that is not promoted is paused, not ended. It goes on from
its saved state once it belongs to the best half. And each rung has a quota: at most half of the trials that have
reached a rung are sent beyond it. ASHA promotes whatever is among the best at the time, at first nearly everything.

Values after very few epochs may say nothing, for example while the learning rate warms up. Halving by them would be
halving at random. The first rung is therefore left out where the next one orders the trials otherwise. PASHA (Bohdal et
al. 2023) compares neighbouring rungs as well, to leave out the last ones.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence, Set

from overnight.search.schedulers.interface import Answer, Resume, Start, State, Trial, epochs_spent

ETA = 2
# The first rung is left out where Kendall's tau between its order and that of the next one is lower than this. From
# LEAST_COMPARED trials on that reached both they are compared, and at most the first MOST_COMPARED of these.
AGREEMENT, LEAST_COMPARED, MOST_COMPARED = 0.3, 8, 40
# The search ends by completing its best trials once at most so many whole trainings are left: enough for two trials,
# as these have begun. With a small budget it is half of the budget, but at least one training.
ENDING, ENDING_SHARE = 1.5, 0.5


def rungs(max_epochs: int, min_epochs: int = 1) -> tuple[int, ...]:
    """The numbers of epochs after which a trial may be paused, in rising order; the last is `max_epochs`.

    Each is ETA times the one before. The last rung below `max_epochs` is left out where it is less than half a step
    away in a logarithmic scale, because the rest of the training would tell little more.
    """
    found = [max_epochs]
    rung = min_epochs
    while max_epochs >= math.sqrt(ETA) * rung:
        found.append(rung)
        rung *= ETA
    return tuple(sorted(set(found)))


class Halving:
    """Quota halving with resuming.

    A free slot looks at the rungs below the last one, the highest first. Where fewer than half of the trials that
    reached a rung were sent beyond it, the best of the better half that is paused there is promoted. Where no rung
    promotes, a new trial is started. Once what is left of the budget is enough for about two paused trials, it is spent
    on training the best ones to the end. With a deadline this begins when one slot has time for one whole training, so
    that the slots can complete their trials side by side.

    Args:
        max_epochs: Epochs of a complete trial.
        min_epochs: Epochs of the first rung.
        max_trials: Largest number of trials; None for no limit.
        leaves_out: Whether first rungs are left out whose order tells nothing about the order at the next one. Trials
            that wait there stay there, and new ones train to the next rung at once.
        finalists: The number of complete trials that a search has at least when it ends before its budget.
    """

    def __init__(
        self,
        max_epochs: int,
        min_epochs: int = 1,
        max_trials: int | None = None,
        leaves_out: bool = False,
        finalists: int = 1,
    ) -> None:
        self.rungs = rungs(max_epochs, min_epochs)
        self.max_epochs, self.max_trials, self.leaves_out = max_epochs, max_trials, leaves_out
        self.finalists = finalists

    def next(self, trials: Sequence[Trial], left: float, slot_left: float = math.inf) -> Start | Resume | None:
        """Return what a free slot does.

        Args:
            left: Epochs that neither are trained nor reserved, in all slots together.
            slot_left: Epochs of mean length for which one slot has time; infinite without a deadline.
        """
        if self.is_ending(trials, left, slot_left):
            best = self._complete_best(trials, left, slot_left, -math.inf)
            answer = best or self._start_whole(trials, min(left, slot_left), {"complete"})
            if answer is not None or min(left, slot_left) <= self.max_epochs:
                return answer
        used = self.used_rungs(trials)
        for rung, target in reversed(list(itertools.pairwise(used))):
            promoted = next((t for t in _promotable(trials, rung) if _is_in_time(t, target, slot_left)), None)
            if promoted is not None:
                return Resume(promoted.number, target)
        if self._may_start(trials) and used[0] <= min(left, slot_left):
            return Start(used[0])
        return self.finish(trials, left, slot_left)

    def is_ending(self, trials: Sequence[Trial], left: float, slot_left: float = math.inf) -> bool:
        """Whether the rest of the budget, or of the time, is for the best paused trials."""
        if len(self.rungs) == 1:
            return False
        share = ENDING_SHARE * (left + epochs_spent(trials))
        return slot_left <= self.max_epochs or left <= max(self.max_epochs, min(ENDING * self.max_epochs, share))

    def finish(self, trials: Sequence[Trial], left: float, slot_left: float = math.inf) -> Start | Resume | None:
        """Return what a free slot does where the search ends before its budget.

        Paused trials are trained to the end as long as their value is better than that of the best complete trial, or
        there are too few finalists. A trial on its way to a rung is waited for, because it may be the best.
        """
        if any(t.state == "running" and t.until < self.max_epochs for t in trials):
            return None
        last = [t for t in trials if t.state in ("complete", "running")]
        is_enough = len(last) >= self.finalists
        above = max(t.latest for t in last) if is_enough else -math.inf
        best = self._complete_best(trials, left, slot_left, above)
        return best or self._start_whole(trials, min(left, slot_left), set())

    def used_rungs(self, trials: Sequence[Trial]) -> tuple[int, ...]:
        """The rungs without the first ones that are left out. The last two always stay."""
        first = 0
        while self.leaves_out and first < len(self.rungs) - 2 and _disagree(trials, *self.rungs[first : first + 2]):
            first += 1
        return self.rungs[first:]

    def report(self, number: int, epoch: int, score: float) -> Answer:  # noqa: ARG002
        return Answer.GO_ON  # a trial pauses at the `until` of `next`

    def _may_start(self, trials: Sequence[Trial]) -> bool:
        return self.max_trials is None or len(trials) < self.max_trials

    def _complete_best(self, trials: Sequence[Trial], left: float, slot_left: float, above: float) -> Resume | None:
        """Train the best paused trial to the end for which budget and time are enough, if its score is above a value.

        With -inf for the value, any trial is trained, also one without a score.
        """
        paused = (t for t in trials if t.state == "paused" and self.max_epochs - t.epochs <= left)
        fitting = [t for t in paused if _is_in_time(t, self.max_epochs, slot_left)]
        best = max(fitting, key=lambda t: (t.latest, -t.number), default=None)
        if best is not None and (best.latest > above or above == -math.inf):
            return Resume(best.number, self.max_epochs)
        return None

    def _start_whole(self, trials: Sequence[Trial], left: float, over: Set[State]) -> Start | None:
        """Start a trial to the end, if all others have been stopped, have failed, or are in a state of `over`."""
        is_over = all(t.state in {"stopped", "failed", *over} for t in trials)
        return Start(self.max_epochs) if is_over and left >= self.max_epochs and self._may_start(trials) else None


def _promotable(trials: Sequence[Trial], rung: int) -> Iterator[Trial]:
    """The paused trials among the best half at a rung, the best first, while the quota of the rung allows one more."""
    reached = [t for t in trials if t.state not in ("stopped", "failed") and t.epochs >= rung]
    share = len(reached) // ETA
    if sum(t.until > rung for t in reached) >= share:
        return
    by_score = sorted(reached, key=lambda t: (-t.score_at(rung), t.number))
    yield from (t for t in by_score[:share] if t.state == "paused" and t.until == rung == t.epochs)


def _is_in_time(trial: Trial, until: int, slot_left: float) -> bool:
    """Whether a slot that has time for so many epochs of mean length can train a trial that far."""
    return (until - trial.epochs) * trial.pace <= slot_left


def _disagree(trials: Sequence[Trial], rung: int, further: int) -> bool:
    """Whether enough trials have reached two rungs, and are ordered otherwise at the one than at the other."""
    both = list(itertools.islice((t for t in trials if t.state != "failed" and t.epochs >= further), MOST_COMPARED))
    if len(both) < LEAST_COMPARED:
        return False
    return kendall_tau([t.score_at(rung) for t in both], [t.score_at(further) for t in both]) < AGREEMENT


def kendall_tau(a: Sequence[float], b: Sequence[float]) -> float:
    """The agreement of two orders, from -1 to 1 (Kendall 1938, tau-a: pairs with equal values count as 0)."""
    pairs = list(itertools.combinations(range(len(a)), 2))
    return sum(_sign(a[i], a[j]) * _sign(b[i], b[j]) for i, j in pairs) / len(pairs)


def _sign(x: float, y: float) -> int:
    return (x > y) - (x < y)
