"""The digits in DataLoaders, shifted during training. It imports nothing from overnight."""

import pytorch_lightning as pl
import torch
from sklearn.datasets import load_digits
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, random_split


class Digits(Dataset[tuple[Tensor, Tensor]]):
    def __init__(self) -> None:
        images, labels = load_digits(return_X_y=True)
        self.images = torch.tensor(images / 16, dtype=torch.float32).reshape(-1, 1, 8, 8)
        self.labels = torch.tensor(labels)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, row: int) -> tuple[Tensor, Tensor]:
        return self.images[row], self.labels[row]


class ShiftedDigits(pl.LightningDataModule):
    input_shape = (1, 8, 8)
    classes = 10

    def __init__(self, batch_size: int = 64, shift: int = 1, num_workers: int = 0) -> None:
        super().__init__()
        self.save_hyperparameters()

    def setup(self, stage: str) -> None:
        # A fixed seed, so that all trials use the same rows. The last fifth is the test set.
        parts = random_split(Digits(), [0.6, 0.2, 0.2], torch.Generator().manual_seed(0))
        self.train_rows, self.val_rows, self.test_rows = parts

    def on_after_batch_transfer(self, batch: tuple[Tensor, Tensor], dataloader_idx: int) -> tuple[Tensor, Tensor]:
        images, labels = batch
        shift = self.hparams["shift"]
        if self.trainer is not None and self.trainer.training and shift:
            down, right = torch.randint(-shift, shift + 1, (2,)).tolist()
            images = torch.roll(images, (down, right), (2, 3))
        return images, labels

    def train_dataloader(self) -> DataLoader[tuple[Tensor, Tensor]]:
        return self._loader(self.train_rows, shuffle=True)

    def val_dataloader(self) -> DataLoader[tuple[Tensor, Tensor]]:
        return self._loader(self.val_rows)

    def test_dataloader(self) -> DataLoader[tuple[Tensor, Tensor]]:
        return self._loader(self.test_rows)

    def _loader(self, rows: Dataset[tuple[Tensor, Tensor]], shuffle: bool = False) -> DataLoader[tuple[Tensor, Tensor]]:
        return DataLoader(rows, self.hparams["batch_size"], shuffle=shuffle, num_workers=self.hparams["num_workers"])
