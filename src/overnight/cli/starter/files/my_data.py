"""Your data. Replace the handwritten digits of 8x8 pixels with your own."""

import pytorch_lightning as pl
import torch
from sklearn.datasets import load_digits
from torch.utils.data import DataLoader, TensorDataset, random_split


class Data(pl.LightningDataModule):
    # overnight passes these to a network whose constructor has arguments of the same names.
    input_shape = (1, 8, 8)
    classes = 10

    def __init__(self, batch_size: int = 32) -> None:
        super().__init__()
        self.batch_size = batch_size

    def setup(self, stage: str) -> None:
        images, labels = load_digits(return_X_y=True)
        inputs = torch.tensor(images / 16, dtype=torch.float32).reshape(-1, *self.input_shape)
        rows = TensorDataset(inputs, torch.tensor(labels))
        # A fixed seed, so that every trial is validated on the same rows.
        self.train_rows, self.val_rows = random_split(rows, [0.8, 0.2], torch.Generator().manual_seed(0))

    def train_dataloader(self) -> DataLoader:
        return DataLoader(self.train_rows, self.batch_size, shuffle=True)

    def val_dataloader(self) -> DataLoader:
        return DataLoader(self.val_rows, 256)
