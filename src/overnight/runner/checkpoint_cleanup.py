"""Which checkpoints are kept: of ended trials, and of trials that are paused at a rung."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping

from overnight.protocol import fold_folder
from overnight.search.plan import Plan
from overnight.search.record import TrialRecord, trials_with_weights
from overnight.search.schedulers.study import promising_first
from overnight.study.queue import TrialQueue
from overnight.study.storage.outage import Unreachable

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
        self._bytes: dict[tuple[int, int | None], int] = {}  # number and rung of a paused trial -> of its state

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

    def limit_paused(self, records: Iterable[TrialRecord], queue: TrialQueue) -> None:
        """Delete states of paused trials, the least promising first, until the others fit.

        Each is held while its state is deleted, because a peer with the same home may be about to resume it.

        Args:
            records: All that are known.
        """
        is_full = bool(self._superfluous(records))
        while is_full:
            try:
                with queue.held(self._superfluous) as number:
                    is_full = number is not None
                    if number is not None:
                        self.delete(number)
                        self._bytes |= {key: 0 for key in self._bytes if key[0] == number}
            except Unreachable:
                return  # the end of the next trial tries again

    def _superfluous(self, records: Iterable[TrialRecord]) -> list[int]:
        """Return the numbers of the paused trials whose states there is no room for, the least promising first."""
        paused = {r.number: r for r in records if r.waits_at_rung}
        sizes: dict[int, int] = {}
        for number in promising_first(paused.values(), self._plan.settings):
            key = number, paused[number].until
            if key not in self._bytes:
                self._bytes[key] = self._size(number)
            sizes[number] = self._bytes[key]
        found, limit = [], self._limit_bytes(sum(sizes.values()))
        while sizes and sum(sizes.values()) > limit:
            number, size = sizes.popitem()
            if size:
                found.append(number)
        return found

    def _limit_bytes(self, used: int) -> float:
        keep_gib = self._plan.settings.scheduler.keep_gib
        if keep_gib is not None:
            return keep_gib * _GIB
        return _SHARE_OF_FREE * (shutil.disk_usage(self._plan.settings.location.paths.root).free + used)

    def _size(self, number: int) -> int:
        folder = self._plan.paths.checkpoint(number)
        return sum(path.stat().st_size for path in folder.glob("*") if path.is_file())
