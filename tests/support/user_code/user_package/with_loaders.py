"""Uses DataLoaders, self.log in the steps, save_hyperparameters, its own optimizer and schedule."""

import pytorch_lightning as pl
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset, random_split
from torchmetrics.classification import MulticlassAccuracy


class Noisy(Dataset):
    """The digits with noise, which is drawn again each time a row is fetched."""

    def __init__(self, noise):
        images, labels = load_digits(return_X_y=True)
        self.images = torch.tensor(images / 16, dtype=torch.float32).reshape(-1, 1, 8, 8)
        self.labels = torch.tensor(labels)
        self.noise = noise

    def __len__(self):
        return 600

    def __getitem__(self, i):
        return self.images[i] + self.noise * torch.randn(1, 8, 8), self.labels[i]


class DigitsData(pl.LightningDataModule):
    def __init__(self, batch_size=50, num_workers=0, noise=0.05, split=(0.8, 0.2)):
        super().__init__()
        self.save_hyperparameters()

    def setup(self, stage=None):
        generator = torch.Generator().manual_seed(0)
        parts = random_split(Noisy(self.hparams.noise), self.hparams.split, generator)
        self.train_set, self.val_set = parts

    def train_dataloader(self):
        return DataLoader(self.train_set, self.hparams.batch_size, shuffle=True, num_workers=self.hparams.num_workers)

    def val_dataloader(self):
        return DataLoader(self.val_set, 60, num_workers=self.hparams.num_workers)


class TensorData(pl.LightningDataModule):
    """The digits as tensors, with a generator of its own for the order of the rows."""

    def setup(self, stage=None):
        images, labels = load_digits(return_X_y=True)
        rows = torch.tensor(images / 16, dtype=torch.float32).reshape(-1, 1, 8, 8)[:600]
        self.train_set = TensorDataset(rows, torch.tensor(labels)[:600])
        self.val_set = random_split(self.train_set, [500, 100], torch.Generator().manual_seed(0))[1]
        self.generator = torch.Generator().manual_seed(5)

    def train_dataloader(self):
        return DataLoader(self.train_set, 64, shuffle=True, drop_last=True, generator=self.generator)

    def val_dataloader(self):
        return DataLoader(self.val_set, 60)


class Classifier(pl.LightningModule):
    def __init__(self, layers=((64, 32), (32, 10)), lr=0.01, dropout=0.2, gamma=0.7, activation=nn.ReLU):
        super().__init__()
        self.save_hyperparameters()
        parts = [nn.Flatten()]
        for n_in, n_out in layers:
            parts += [nn.Dropout(dropout), nn.Linear(n_in, n_out), activation()]
        self.model = nn.Sequential(*parts[:-1])
        self.accuracy = MulticlassAccuracy(10, average="micro")

    def forward(self, x):
        return self.model(x)

    def training_step(self, batch, batch_idx):
        x, y = batch
        loss = nn.functional.cross_entropy(self(x), y)
        self.log("train/loss", loss, on_step=True, on_epoch=True, prog_bar=True)
        return loss

    def validation_step(self, batch, batch_idx):
        x, y = batch
        logits = self(x)
        self.accuracy(logits, y)
        self.log("val/loss", nn.functional.cross_entropy(logits, y), prog_bar=True)
        self.log("val/accuracy", self.accuracy, prog_bar=True)
        print(f"batch {batch_idx}: {self.accuracy.compute():.3f}")

    def configure_optimizers(self):
        optimizer = torch.optim.AdamW(self.parameters(), lr=self.hparams.lr)
        schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, self.hparams.gamma)
        return [optimizer], [{"scheduler": schedule, "interval": "epoch"}]


class OneCycle(Classifier):
    """Asks the trainer for the number of steps, for a schedule that changes at every step."""

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), lr=self.hparams.lr)
        steps = self.trainer.estimated_stepping_batches
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, self.hparams.lr, total_steps=steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}
