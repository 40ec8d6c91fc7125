"""ASHA and PASHA, with trials that pause and resume."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

from overnight.search.schedulers.interface import Answer, Resume, Start, Trial

ETA = 3


class Asha:
    """Asynchronous successive halving (Li et al. 2020, algorithm 2).

    A free slot promotes a trial that is among the best 1/ETA at its rung and was not promoted yet, from the highest
    rung that has one. Otherwise it starts a new trial.
    """

    def __init__(self, max_epochs: int) -> None:
        powers = itertools.takewhile(lambda rung: rung < max_epochs, (ETA**k for k in itertools.count()))
        self.rungs = (*powers, max_epochs)

    def next(self, trials: Sequence[Trial], left: float) -> Start | Resume | None:
        rungs = self.usable_rungs(trials)
        for rung, target in reversed(list(itertools.pairwise(rungs))):
            reached = [t for t in trials if t.epochs >= rung and t.state != "failed"]
            best = sorted(reached, key=lambda t: (-t.score_at(rung), t.number))[: len(reached) // ETA]
            for trial in best:
                if trial.state == "paused" and trial.epochs == rung:
                    return Resume(trial.number, target)
        return Start(rungs[0])

    def report(self, number: int, epoch: int, score: float) -> Answer:
        return Answer.GO_ON

    def usable_rungs(self, trials: Sequence[Trial]) -> Sequence[int]:
        return self.rungs


class Pasha(Asha):
    """Progressive ASHA (Bohdal et al. 2023): the ladder begins with two rungs.

    It gets another rung whenever the trials at its last rung have another order than at the rung below. Trials whose
    scores differ by at most epsilon may change places. Epsilon is the 90th percentile of the differences, at the last
    rung, of pairs of trials whose curves cross each other twice.
    """

    def __init__(self, max_epochs: int) -> None:
        super().__init__(max_epochs)
        self._count = min(2, len(self.rungs))

    def usable_rungs(self, trials: Sequence[Trial]) -> Sequence[int]:
        while self._count < len(self.rungs) and not self._is_settled(trials):
            self._count += 1
        return self.rungs[: self._count]

    def _is_settled(self, trials: Sequence[Trial]) -> bool:
        below, last = self.rungs[self._count - 2 : self._count]
        there = [t for t in trials if t.epochs >= last and t.state != "failed"]
        epsilon = _noise(there, last)
        before, now = (sorted(there, key=lambda t: (-t.score_at(rung), t.number)) for rung in (below, last))
        return all(abs(a.score_at(last) - b.score_at(last)) <= epsilon for a, b in zip(before, now, strict=True))


def _noise(trials: Sequence[Trial], last: int) -> float:
    found = []
    for a, b in itertools.combinations(trials, 2):
        signs = [math.copysign(1, x - y) for x, y in zip(a.scores[:last], b.scores[:last], strict=True) if x != y]
        if sum(x != y for x, y in itertools.pairwise(signs)) >= 2:
            found.append(abs(a.score_at(last) - b.score_at(last)))
    return sorted(found)[math.ceil(0.9 * len(found)) - 1] if found else 0.0
