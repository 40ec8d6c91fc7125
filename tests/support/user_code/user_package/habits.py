"""Other common ways to write a LightningModule, one in each class."""

import os

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import EarlyStopping, ModelCheckpoint
from torch.utils.data import DataLoader, TensorDataset

from user_package.with_loaders import Classifier, DigitsData


class TakesAConfig(Classifier):
    """Reads its arguments from a DictConfig and keeps the whole DictConfig."""

    def __init__(self, cfg):
        super().__init__(layers=cfg.layers, lr=cfg.lr)
        self._set_hparams(cfg)

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=self.hparams.lr)


class StopsEarly(Classifier):
    """Stops early after three epochs, because its metric never improves. Writes checkpoints."""

    def configure_callbacks(self):
        return [EarlyStopping("rising", patience=3), ModelCheckpoint(monitor="val/loss")]

    def on_validation_epoch_end(self):
        self.log("rising", float(self.current_epoch))


class SetsShouldStop(Classifier):
    def on_train_epoch_end(self):
        self.trainer.should_stop = self.current_epoch == 1


class ValidatesEverySecondEpoch(Classifier):
    """Has a schedule that monitors a metric which exists in every second epoch only."""

    def on_fit_start(self):
        self.trainer.check_val_every_n_epoch = 2

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), lr=self.hparams.lr)
        schedule = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=0)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule, "monitor": "val/loss", "frequency": 1, "strict": False},
        }


class NeverValidates(Classifier):
    validation_step = pl.LightningModule.validation_step  # as if it were not defined


class NoValidationData(DigitsData):
    val_dataloader = pl.LightningDataModule.val_dataloader


class TwoValidationSets(DigitsData):
    def val_dataloader(self):
        other = TensorDataset(torch.zeros(20, 1, 8, 8), torch.zeros(20, dtype=torch.long))
        return [super().val_dataloader(), DataLoader(other, 20)]


class SeesTwoValidationSets(Classifier):
    def validation_step(self, batch, batch_idx, dataloader_idx=0):
        hits = (self(batch[0]).argmax(1) == batch[1]).float().mean()
        self.log("val/accuracy", hits)


class DiesWhenLoaded(Classifier):
    """Ends the process that loads its weights, after it has written the priority of that process to `marker`."""

    def __init__(self, marker, **options):
        super().__init__(**options)
        self.marker = marker

    def load_state_dict(self, *_):
        with open(self.marker, "a") as file:
            file.write(f"{os.getpriority(os.PRIO_PROCESS, 0)} ")
        os._exit(9)
