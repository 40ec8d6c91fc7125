"""Cross-validation: a trial trains once for each fold, one fold after another in one process.

A trial that resumes skips the folds whose weights are saved, and reports their histories again. Each fold begins with
its own seed, so that it does not depend on the folds that the process has trained before.
"""

from __future__ import annotations

import gc
from dataclasses import replace
from typing import Protocol

from overnight.protocol import Decision, Finished, FoldEnded, Progress, Resumed, StateSaved, TrialMessage, TrialSpec
from overnight.trial.fit import fit
from overnight.trial.trial_callback import Link


def fit_folds(spec: TrialSpec, link: FoldsLink) -> Finished:
    """Train a trial on each fold. Returns and raises what `fit` does."""
    notes: tuple[str, ...] = ()
    done = 0
    for fold in range(len(spec.fold_seeds)):
        of_fold = FoldLink(link, fold, done)
        finished = fit(spec.of_fold(fold), of_fold)
        notes = (*notes, *(f"fold {fold}: {note}" for note in finished.notes))
        if finished.outcome != "complete":
            return replace(finished, notes=notes)
        done = of_fold.after
        is_last = fold == len(spec.fold_seeds) - 1
        decision = Decision.CONTINUE if is_last else of_fold.ask_whether_to_go_on(spec.number)
        if decision is not Decision.CONTINUE:
            return Finished(spec.number, "stopped" if decision is Decision.STOP else "saved", notes=notes)
        gc.collect()  # the objects of a fold refer to each other, and hold the memory of its network
    return Finished(spec.number, "complete", notes=notes)


class FoldsLink(Link, Protocol):
    """Connection to the supervisor of a trial with folds."""

    def ask(self, message: Progress | FoldEnded) -> Decision: ...


class FoldLink:
    """The link of one fold: its messages carry the fold, and indices that go on from the folds before.

    Args:
        before: number of epochs, or validations, of the folds before.

    Attributes:
        after: the number with those of this fold.
    """

    def __init__(self, link: FoldsLink, fold: int, before: int) -> None:
        self._link, self._fold, self._before = link, fold, before
        self.after = before
        self._stopping = False

    def send(self, message: TrialMessage) -> None:
        if isinstance(message, Resumed):
            message = replace(message, history=tuple(map(self._placed, message.history)))
        elif isinstance(message, StateSaved):
            message = replace(message, index=self._before + message.index)
        self._link.send(message)

    def ask(self, message: Progress) -> Decision:
        return self._noted(self._link.ask(self._placed(message)))

    def stop_wanted(self) -> bool:
        self._stopping = self._stopping or self._link.stop_wanted()
        return self._stopping

    def ask_whether_to_go_on(self, number: int) -> Decision:
        """Report that the fold is complete. A fold ignores a request to stop that comes with its last epoch."""
        if self._stopping:
            return Decision.SAVE_AND_STOP
        return self._link.ask(FoldEnded(number, self._fold))

    def _noted(self, decision: Decision) -> Decision:
        self._stopping = self._stopping or decision is Decision.SAVE_AND_STOP
        return decision

    def _placed(self, done: Progress) -> Progress:
        index = self._before + done.index
        self.after = max(self.after, index + 1)
        return replace(done, index=index, fold=self._fold)
