"""Which checkpoints of ended trials are kept."""

from __future__ import annotations

import shutil
from collections.abc import Mapping

from overnight.protocol import fold_folder
from overnight.search.plan import Plan
from overnight.search.record import TrialRecord, trials_with_weights


class CheckpointCleanup:
    """Deletes the checkpoints of ended trials, except the best `study.keep_checkpoints`."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._deleted: set[int] = set()

    def delete_all_but_best(self, records: Mapping[int, TrialRecord]) -> None:
        """Delete what is not kept any more, of earlier launches too: a kill may have left it."""
        kept = trials_with_weights(records.values(), self._plan.settings)
        superfluous = {n for n, r in records.items() if r.done} - kept
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
