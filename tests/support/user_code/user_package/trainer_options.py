"""Modules that set options of their Trainer in on_fit_start, one in each class."""

from pytorch_lightning.callbacks import ModelCheckpoint
from torch.utils.data import DataLoader, IterableDataset

from user_package.with_loaders import Classifier, DigitsData


class Sets(Classifier):
    """Sets attributes of the Trainer."""

    def __init__(self, options, **arguments):
        super().__init__(**arguments)
        self.options = options

    def on_fit_start(self):
        for name, value in self.options.items():
            setattr(self.trainer, name, value)


class CountsBatches(Classifier):
    """Notes how many batches it trains and validates, and how many the Trainer announces."""

    seen = []  # noqa: RUF012

    def on_train_start(self):
        self.seen.append(("announced", self.trainer.num_training_batches))

    def training_step(self, batch, batch_idx):
        self.seen.append(("train", batch_idx))
        return super().training_step(batch, batch_idx)

    def validation_step(self, batch, batch_idx):
        self.seen.append(("validate", batch_idx))
        super().validation_step(batch, batch_idx)


class ReadsItsCheckpointCallback(Classifier):
    """Logs what its ModelCheckpoint holds."""

    def configure_callbacks(self):
        return [ModelCheckpoint(monitor="val/loss")]

    def on_train_epoch_end(self):
        found = self.trainer.checkpoint_callback
        self.log("own_callbacks", float(len(self.trainer.checkpoint_callbacks)))
        self.log("monitored", float(found.monitor == "val/loss"))


class HasNoCheckpointCallback(Classifier):
    def on_train_epoch_end(self):
        self.log("own_callbacks", float(len(self.trainer.checkpoint_callbacks)))
        self.log("none", float(self.trainer.checkpoint_callback is None))


class Stream(IterableDataset):
    def __init__(self, rows):
        self.rows = rows

    def __iter__(self):
        return iter(self.rows)


class StreamedData(DigitsData):
    """Has a training set without a length."""

    def train_dataloader(self):
        return DataLoader(Stream(self.train_set), self.hparams.batch_size)
