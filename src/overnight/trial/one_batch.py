"""Epochs of one batch, with which a dry run sees the Trainer as the trial will."""

from __future__ import annotations

import math
from typing import Any


class OneBatchEpochs:
    """Ends each epoch of a Trainer after one batch of training and one of validation.

    The Trainer gets the same arguments as in the trial, and the model sees the same number of batches until its first
    epoch begins. What the model sets on the Trainer before then stays in force: validation comes in the epochs in
    which the trial has it.

    Attributes:
        first_validation: the epoch of the first validation, counted from 1.
    """

    first_validation = 1

    def shorten(self, trainer: Any, module: Any) -> None:  # noqa: ARG002
        """Shorten the epoch that starts. A Trainer that reloads its DataLoaders has counted their batches again."""
        loop, every = trainer.fit_loop, trainer.check_val_every_n_epoch
        validation = loop.epoch_loop.val_loop
        if trainer.val_check_batch is not None and loop.max_batches > 1:  # None: validation depends on the time
            # Without `every`, validation comes after a number of batches that may exceed an epoch.
            epochs = trainer.val_check_batch / loop.max_batches if every is None else 1
            trainer.val_check_batch = max(1, math.ceil(epochs)) if math.isfinite(epochs) else 1
        if every is None and trainer.val_check_batch is not None:
            self.first_validation = trainer.val_check_batch
        else:
            self.first_validation = every or 1
        loop.max_batches = min(1, loop.max_batches)
        if trainer.limit_val_batches:
            trainer.limit_val_batches = 1  # for a loop that has not asked for its DataLoaders yet
        validation._max_batches = [min(1, batches) for batches in validation._max_batches]
