"""In place of MNIST: images of two classes, as a torchvision dataset with a transform."""

from pathlib import Path

import numpy as np
import torch
from lightning import LightningDataModule
from PIL import Image
from torch.utils.data import ConcatDataset, DataLoader, random_split
from torchvision.datasets import VisionDataset
from torchvision.transforms import transforms


class _Images(VisionDataset):
    """Dark images of class 0 and bright ones of class 1."""

    def __init__(self, root: Path, count: int, transform: object) -> None:
        super().__init__(root, transform=transform)
        rng = np.random.default_rng(count)
        self.targets = rng.integers(0, 2, count)
        noise = rng.integers(0, 60, (count, 28, 28))
        self.images = (noise + 180 * self.targets[:, None, None]).astype(np.uint8)

    def __getitem__(self, index: int) -> tuple[object, int]:
        image = Image.fromarray(self.images[index])
        return self.transform(image) if self.transform else image, int(self.targets[index])

    def __len__(self) -> int:
        return len(self.targets)


class MNISTDataModule(LightningDataModule):
    def __init__(
        self, data_dir: str, train_val_test_split: list[int], batch_size: int, num_workers: int, pin_memory: bool
    ):
        super().__init__()
        self.save_hyperparameters(logger=False)
        self.transforms = transforms.Compose([transforms.ToTensor(), transforms.Normalize((0.1307,), (0.3081,))])

    def setup(self, stage: str) -> None:
        root = Path(self.hparams.data_dir)
        whole = ConcatDataset([_Images(root, count, self.transforms) for count in (2000, 1000)])
        self.parts = random_split(whole, [0.5, 0.25, 0.25], torch.Generator().manual_seed(42))

    def train_dataloader(self) -> DataLoader:
        return DataLoader(self.parts[0], self.hparams.batch_size, shuffle=True)

    def val_dataloader(self) -> DataLoader:
        return DataLoader(self.parts[1], self.hparams.batch_size)

    def test_dataloader(self) -> DataLoader:
        return DataLoader(self.parts[2], self.hparams.batch_size)
