"""Networks and data of users that validate within an epoch, or that count steps instead of epochs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset
from torchmetrics.classification import MulticlassAccuracy

Rows = tuple[Tensor, Tensor]


def _row(number: int) -> Rows:
    generator = torch.Generator().manual_seed(number)
    inputs = torch.randn(8, generator=generator)
    return inputs, (inputs[:2].sum() > 0).long()


class NoisyRows(Dataset[Rows]):
    """Rows with noise from the global generator, which training draws from as well."""

    def __init__(self, count: int, noise: float) -> None:
        self._rows, self._noise = [_row(n) for n in range(count)], noise

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Rows:
        inputs, target = self._rows[index]
        return inputs + self._noise * torch.randn(8), target


class Stream(IterableDataset[Rows]):
    """Rows without an end, which remembers where it is."""

    def __init__(self, noise: float, count: int | None = None) -> None:
        self.position, self._noise, self._count = 0, noise, count

    def __iter__(self) -> Iterator[Rows]:
        given = 0
        while self._count is None or given < self._count:
            inputs, target = _row(self.position % 97)
            self.position += 1
            given += 1
            yield inputs + self._noise * torch.randn(8), target


class Data(pl.LightningDataModule):
    """kind: rows, stream (without an end) or finite (a stream with an end, without a length)."""

    def __init__(
        self, kind: str = "rows", noise: float = 0.3, num_workers: int = 0, own_generator: bool = False
    ) -> None:
        super().__init__()
        self._kind, self._noise, self._workers = kind, noise, num_workers
        self._generator = torch.Generator().manual_seed(3) if own_generator else None

    def train_dataloader(self) -> DataLoader[Rows]:
        if self._kind != "rows":
            stream = Stream(self._noise, None if self._kind == "stream" else 90)
            return DataLoader(stream, batch_size=5, num_workers=self._workers)
        rows = NoisyRows(100, self._noise)
        return DataLoader(rows, 5, shuffle=True, num_workers=self._workers, generator=self._generator)

    def val_dataloader(self) -> DataLoader[Rows]:
        return DataLoader(NoisyRows(40, self._noise), batch_size=10)


class Net(pl.LightningModule):
    """Dropout, a schedule by steps, a torchmetrics object, and values that are gathered over the epoch."""

    def __init__(self, lr: float = 0.02) -> None:
        super().__init__()
        self.lr, self.seen = lr, 0
        self.net = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.3), nn.Linear(16, 2))
        self.train_accuracy = MulticlassAccuracy(2)

    def training_step(self, batch: Rows, batch_idx: int) -> Tensor:
        inputs, target = batch
        outputs = self.net(inputs)
        loss = nn.functional.cross_entropy(outputs, target)
        self.seen += len(target)
        self.train_accuracy(outputs, target)
        self.log("train/loss", loss, on_step=True, on_epoch=True)
        self.log("train/largest", inputs.max(), on_step=False, on_epoch=True, reduce_fx="max")
        self.log("train/accuracy", self.train_accuracy, on_step=False, on_epoch=True)
        return loss

    def validation_step(self, batch: Rows, batch_idx: int) -> None:
        inputs, target = batch
        outputs = self.net(inputs)
        self.log("val/loss", nn.functional.cross_entropy(outputs, target))
        self.log("val/accuracy", (outputs.argmax(1) == target).float().mean())
        self.log("seen", float(self.seen))

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.Adam(self.parameters(), self.lr)
        steps = int(self.trainer.estimated_stepping_batches)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


class Gan(pl.LightningModule):
    """Two optimizers with manual optimization, as in the demo that Lightning ships."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.generator = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 8))
        self.discriminator = nn.Sequential(nn.Linear(8, 16), nn.LeakyReLU(), nn.Dropout(0.2), nn.Linear(16, 1))

    def training_step(self, batch: Rows, batch_idx: int) -> None:
        real, _ = batch
        of_generator, of_discriminator = self.optimizers()  # type: ignore[misc, attr-defined]
        ones, zeros = torch.ones(len(real), 1), torch.zeros(len(real), 1)
        loss = nn.functional.binary_cross_entropy_with_logits
        self.toggle_optimizer(of_generator)
        g_loss = loss(self.discriminator(self.generator(torch.randn(len(real), 4))), ones)
        of_generator.zero_grad()
        self.manual_backward(g_loss)
        of_generator.step()
        self.untoggle_optimizer(of_generator)
        self.toggle_optimizer(of_discriminator)
        fake = self.generator(torch.randn(len(real), 4)).detach()
        d_loss = (loss(self.discriminator(real), ones) + loss(self.discriminator(fake), zeros)) / 2
        of_discriminator.zero_grad()
        self.manual_backward(d_loss)
        of_discriminator.step()
        self.untoggle_optimizer(of_discriminator)
        self.log_dict({"g_loss": g_loss, "d_loss": d_loss}, on_epoch=True)

    def validation_step(self, batch: Rows, batch_idx: int) -> None:
        self.log("val/real", self.discriminator(batch[0]).sigmoid().mean())

    def configure_optimizers(self) -> Any:
        return [torch.optim.Adam(part.parameters(), 2e-3) for part in (self.generator, self.discriminator)]
