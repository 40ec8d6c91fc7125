"""Callbacks of a user."""

import pytorch_lightning as pl


class LooksAtTheBestScore(pl.Callback):
    """Keeps the best score that the ModelCheckpoint knows at the start of an epoch and at the end of training."""

    seen = []  # noqa: RUF012

    def on_train_start(self, trainer, module):
        self.seen.clear()

    def on_train_epoch_start(self, trainer, module):
        if trainer.current_epoch:
            self.seen.append(float(trainer.checkpoint_callback.best_model_score))

    def on_train_end(self, trainer, module):
        self.seen.append(float(trainer.checkpoint_callback.best_model_score))
