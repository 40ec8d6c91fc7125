"""The callback of a trial whose progress is counted in validations, which may come within an epoch."""

from __future__ import annotations

import time
from typing import Any

from overnight.protocol import Decision
from overnight.trial.trial_callback import TrialCallback
from overnight.trial.within_epoch import WithinEpoch, expected_units, finish_restart


class ValidationCallback(TrialCallback):
    """Reports each validation, and keeps the state of the boundary that follows it in memory.

    A validation after the last batch of an epoch, or of the training, is reported at the end of the epoch, with what is
    logged there. Its boundary is the one between the two epochs. The boundary of any other validation is just before
    the next batch. A trial without validations reports its epochs.
    """

    within_epochs = True

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._within: WithinEpoch | None = None
        self._unreported = False  # there was a validation since the last report
        self._reported_within = False  # the state at the next batch is to be taken

    def on_fit_start(self, trainer: Any, module: Any) -> None:
        super().on_fit_start(trainer, module)
        saved = self._state["overnight"].get("within") if self._state is not None else None
        self._within = WithinEpoch(
            trainer,
            saved,
            on_start=lambda: self._begin(trainer, module),
            on_resumed=self._put_back,
            before_batch=self._before_batch,
            between=self.poll,
        )

    def on_train_start(self, trainer: Any, module: Any) -> None:
        super().on_train_start(trainer, module)
        if self._state is not None and "within" not in self._state["overnight"]:
            # Where the number of steps is limited, Lightning takes a state between two epochs for one within an epoch.
            loop = trainer.fit_loop
            for counts in (loop.epoch_progress.total, loop.epoch_progress.current):
                counts.completed = counts.processed
            resuming = loop._resuming_from_checkpoint
            finish_restart(loop)
            loop._resuming_from_checkpoint = resuming  # until the loaders have their states

    def _begin(self, trainer: Any, module: Any) -> None:
        super()._begin(trainer, module)
        assert self._within is not None
        self._within.boundary = self._boundary

    def at_boundary(self, trainer: Any, module: Any) -> None:
        started_at = self._unit_started_at if self._boundary is not None else time.monotonic()
        super().at_boundary(trainer, module)
        self._unit_started_at = started_at

    def on_validation_end(self, trainer: Any, module: Any) -> None:  # noqa: ARG002
        if trainer.sanity_checking:
            return
        self._unreported = True
        if not self.ends(trainer, trainer.fit_loop.epoch_loop._is_training_done):
            self._stopping = self._report_unit(trainer) is Decision.SAVE_AND_STOP
            self._reported_within = True

    def on_train_epoch_end(self, trainer: Any, module: Any) -> None:  # noqa: ARG002
        if trainer.enable_validation and not self._unreported:
            return
        is_last_epoch = trainer.current_epoch + 1 == trainer.max_epochs
        is_last_step = trainer.max_steps != -1 and trainer.global_step >= trainer.max_steps
        ends = self.ends(trainer, is_last_epoch or is_last_step)
        decision = self._report_unit(trainer, ends_epoch=True, ends_training=ends)
        if not ends:  # to finish takes less time than to save
            self._stopping = decision is Decision.SAVE_AND_STOP
            self._epoch_ended = True

    def _report_unit(self, trainer: Any, ends_epoch: bool = False, ends_training: bool = False) -> Decision:
        """Report the validation, or the epoch, that has just ended."""
        self._unreported = False
        index = len(self.history)
        step = trainer.fit_loop.epoch_loop._batches_that_stepped - ends_epoch  # as Lightning logs it
        if self.history and self.history[-1].step is not None:  # gradients may be accumulated over two validations
            step = max(step, self.history[-1].step + 1)
        total = index + 1 if ends_training else expected_units(trainer, index)
        decision = self.report(trainer, index, max(step, 0), total)
        self._unit_started_at = time.monotonic()
        return decision

    def _before_batch(self) -> None:
        """Take the state after a validation within an epoch."""
        if not self._reported_within:
            return
        self._reported_within = False
        assert self._boundary is not None
        assert self._within is not None
        if not self._within.can_save:
            if self._stopping:
                self._save_and_stop()  # with the last state between two epochs
            return
        state = self._boundary.take(self._memory, self._within.epoch_start["live"])
        state["overnight"]["within"], lost = self._within.state()
        state["overnight"]["lost"] += lost
        self._keep(state)
