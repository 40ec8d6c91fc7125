"""Which checkpoints are kept: of ended trials, and of trials that are paused at a rung."""

from __future__ import annotations

import shutil
from collections.abc import Mapping

from overnight.protocol import fold_folder
from overnight.search.plan import Plan
from overnight.search.record import TrialRecord, trials_with_weights
from overnight.search.schedulers.study import promising_first

_GIB = 1 << 30
# The share of the free space that the states of paused trials may take, unless scheduler.keep_gib says otherwise.
_SHARE_OF_FREE = 0.25


class CheckpointCleanup:
    """Deletes checkpoints that are not needed, or for which there is no room.

    Of ended trials the best `study.keep_checkpoints` are kept. Of the trials that are paused at a rung, those with the
    lowest ranks at their rungs lose their states once all take more space than they may. Such a trial trains again from
    its first epoch if it is promoted after all.
    """

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._deleted: set[int] = set()
        self._bytes: dict[int, int] = {}  # of the states of paused trials

    def delete_all_but_best(self, records: Mapping[int, TrialRecord]) -> None:
        """Delete what is not kept any more, of earlier launches too: a kill may have left it."""
        kept = trials_with_weights(records.values(), self._plan.settings)
        superfluous = {n for n, r in records.items() if not r.may_resume} - kept
        # Each folder is tried once, not again at the end of every trial.
        for number in superfluous - self._deleted:
            self.delete(number)
        self._deleted = superfluous
        if self._plan.settings.study.folds is not None:  # the network of a trial is that of its first fold
            for number in kept:
                for folder in self._plan.paths.checkpoint(number).glob(fold_folder("*")):
                    shutil.rmtree(folder, ignore_errors=True)

    def delete(self, number: int) -> None:
        folder = self._plan.paths.checkpoint(number)
        if folder.exists():
            shutil.rmtree(folder, ignore_errors=True)

    def limit_paused(self, records: Mapping[int, TrialRecord], paused: int) -> None:
        """Delete states of paused trials, the least promising first, until the others fit. paused: the latest one."""
        waiting = promising_first([r for r in records.values() if r.waits_at_rung], self._plan.settings)
        self._bytes.pop(paused, None)
        sizes = {n: self._bytes.setdefault(n, self._size(n)) for n in waiting}
        while sizes and sum(sizes.values()) > self._limit_bytes(sum(sizes.values())):
            number = waiting.pop()
            if sizes.pop(number):
                self.delete(number)
            self._bytes[number] = 0

    def _limit_bytes(self, used: int) -> float:
        keep_gib = self._plan.settings.scheduler.keep_gib
        if keep_gib is not None:
            return keep_gib * _GIB
        return _SHARE_OF_FREE * (shutil.disk_usage(self._plan.settings.location.paths.root).free + used)

    def _size(self, number: int) -> int:
        folder = self._plan.paths.checkpoint(number)
        return sum(path.stat().st_size for path in folder.glob("*") if path.is_file())
