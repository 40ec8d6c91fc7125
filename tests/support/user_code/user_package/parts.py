"""A network and data put together from parts that hold state in places which no state_dict covers."""

import copy
import random
from collections import Counter, deque

import numpy as np
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import (
    BackboneFinetuning,
    EMAWeightAveraging,
    ModelPruning,
    StochasticWeightAveraging,
    WeightAveraging,
)
from torch import nn
from torch.utils.data import DataLoader, Dataset, Sampler
from torchmetrics import CatMetric, MaxMetric, MeanMetric, MetricCollection, RunningMean
from torchmetrics.classification import MulticlassAccuracy


class Shuffled(Sampler):
    """Draws its order from a generator of its own, and counts how often."""

    def __init__(self, length, kind):
        self.length, self.rounds = length, 0
        self.generator = {
            "torch": lambda: torch.Generator().manual_seed(3),
            "numpy": lambda: np.random.default_rng(3),
            "legacy": lambda: np.random.RandomState(3),
            "python": lambda: random.Random(3),
        }[kind]()

    def __len__(self):
        return self.length

    def __iter__(self):
        self.rounds += 1
        if isinstance(self.generator, torch.Generator):
            return iter(torch.randperm(self.length, generator=self.generator).tolist())
        order = list(range(self.length))
        self.generator.shuffle(order)
        return iter(order)


class Noisy(Dataset):
    """Adds noise that grows with the number of rows read so far."""

    def __init__(self, x, y, noise):
        self.x, self.y, self.noise, self.reads = x, y, noise, 0
        self.generator = np.random.default_rng(5)

    def __len__(self):
        return len(self.x)

    def __getitem__(self, row):
        if self.noise:
            self.reads += 1
            return self.x[row] + self.reads * 1e-3 * float(self.generator.normal()), self.y[row]
        return self.x[row], self.y[row]


class Data(pl.LightningDataModule):
    def __init__(self, order="global", noise=False):
        super().__init__()
        self.order, self.noise = order, noise

    def setup(self, stage=None):
        g = torch.Generator().manual_seed(7)
        x = torch.randn(40, 4, generator=g)
        y = (x[:, 0] + 0.5 * x[:, 1] > 0).long()
        self.train = Noisy(x[:24], y[:24], self.noise)
        self.val = Noisy(x[24:], y[24:], False)

    def train_dataloader(self):
        if self.order == "global":
            return DataLoader(self.train, 8, shuffle=True)
        if self.order == "loader":
            return DataLoader(self.train, 8, shuffle=True, generator=torch.Generator().manual_seed(0))
        return DataLoader(self.train, 8, sampler=Shuffled(24, self.order))

    def val_dataloader(self):
        return DataLoader(self.val, 8)


class Habits(pl.Callback):
    """Keeps what it sees in plain attributes."""

    def __init__(self):
        self.losses, self.kinds, self.order = [], Counter(), random.Random(1)
        self.recent = {"first": deque(maxlen=3), "others": {}}

    def on_train_epoch_start(self, trainer, module):
        self.kinds["odd" if trainer.current_epoch % 2 else "even"] += 1
        module.extra["draw"] = self.order.random()

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        self.losses.append(float(outputs["loss"]))
        self.recent["first"].append(outputs["loss"].detach())
        self.recent["others"][batch_idx] = (batch_idx, float(outputs["loss"]))


class OwnAverage(pl.Callback):
    """Averages weights in a copy of the network, and exchanges them for the validation."""

    def on_fit_start(self, trainer, module):
        self.average = [copy.deepcopy(module.net)]

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        for mean, now in zip(self.average[0].parameters(), module.net.parameters(), strict=True):
            mean.data.mul_(0.8).add_(now.data, alpha=0.2)

    def on_validation_start(self, trainer, module):
        self.kept = copy.deepcopy(module.net.state_dict())
        module.net.load_state_dict(self.average[0].state_dict())

    def on_validation_end(self, trainer, module):
        module.net.load_state_dict(self.kept)


AVERAGES = {
    "none": lambda: [],
    "ema": lambda: [EMAWeightAveraging(decay=0.8)],
    "ema by epoch": lambda: [EMAWeightAveraging(decay=0.5, update_every_n_steps=0, update_starting_at_epoch=1)],
    "mean": lambda: [WeightAveraging()],
    "swa": lambda: [StochasticWeightAveraging(0.02, swa_epoch_start=2, annealing_epochs=2)],
    "swa, linear": lambda: [StochasticWeightAveraging(0.02, swa_epoch_start=2, annealing_strategy="linear")],
    "own": lambda: [OwnAverage()],
}


class Net(pl.LightningModule):
    """Its loss depends on all the state that it keeps, so that a lost part shows.

    Args:
        unfreeze: how the first layer is unfrozen: never, switch (requires_grad), group (of the optimizer) or callback.
        average: a key of AVERAGES.
        schedule: none, step, plateau.
        metrics: whether it keeps torchmetrics objects that no checkpoint holds.
        attributes: whether it keeps plain attributes.
        batch_norm: whether there is a batch norm layer.
        manual: manual optimization, with gradients that are summed over epochs.
    """

    def __init__(
        self,
        unfreeze="never",
        average="none",
        schedule="none",
        metrics=False,
        attributes=False,
        batch_norm=False,
        manual=False,
        draws=False,
        every=1,
    ):
        super().__init__()
        self.save_hyperparameters()
        self.backbone = nn.Sequential(nn.Linear(4, 6), nn.ReLU())
        self.net = nn.Sequential(nn.BatchNorm1d(6) if batch_norm else nn.Identity(), nn.Dropout(0.1), nn.Linear(6, 2))
        if unfreeze in ("switch", "group"):
            self.backbone.requires_grad_(False)
        self.automatic_optimization = not manual
        self.extra = {"draw": 0.0}
        if metrics:
            self.acc, self.best = MulticlassAccuracy(2), MaxMetric()
            self.mean, self.all = MeanMetric(), CatMetric()
            self.all.persistent(True)
            self.running = RunningMean(window=4)
            self.others = {"several": MetricCollection([MulticlassAccuracy(2, average="macro")])}
        if attributes:
            self.steps, self.history, self.queue = 0, [], deque(maxlen=4)
            self.table = np.zeros(3)
            self.weight = torch.zeros(2)
            self.register_buffer("memory", torch.zeros(2), persistent=False)
            self.nested = {"a": [1, (2, 3)], "b": {4}}

    def on_fit_start(self):
        self.trainer.check_val_every_n_epoch = self.hparams.every

    def on_train_start(self):
        if self.hparams.draws:
            torch.rand(3)
        if self.hparams.metrics:
            self.best.reset()

    def on_train_epoch_start(self):
        if self.hparams.draws:
            self.extra["draw"] += float(torch.rand(())) + np.random.rand() + random.random()
        if self.current_epoch == 2 and self.hparams.unfreeze in ("switch", "group"):
            self.backbone.requires_grad_(True)
            if self.hparams.unfreeze == "group":
                self.trainer.optimizers[0].add_param_group({"params": self.backbone.parameters(), "lr": 1e-3})
        if self.hparams.attributes and self.current_epoch == 1:
            self.made_later = torch.ones(2)
            self.net[1].p = 0.3

    def forward(self, x):
        return self.net(self.backbone(x))

    def training_step(self, batch, i):
        x, y = batch
        out = self(x)
        loss = nn.functional.cross_entropy(out, y) * (1 + 0.1 * self.extra["draw"])
        if self.hparams.metrics:
            self.mean.update(loss.detach())
            self.all.update(loss.detach())
            self.running.update(loss.detach())
            self.others["several"].update(out.argmax(1), y)
            loss = loss * (1 + 0.01 * float(self.mean.compute()))
            loss = loss * (1 + 0.01 * float(self.others["several"].compute().popitem()[1]))
        if self.hparams.attributes:
            self.steps += 1
            self.history.append(loss.item())
            self.queue.append(loss.detach())
            self.table[i % 3] += loss.item()
            self.weight += 0.01
            self.memory += loss.detach()
            self.nested["a"][0] += 1
            self.nested["b"].add(self.steps)
            loss = loss * (
                1 + 1e-3 * (len(self.history) + float(self.table.sum()) + float(self.memory.sum() + self.weight.sum()))
            )
            loss = loss * (1 + 1e-3 * (float(sum(self.queue)) + self.nested["a"][0] + len(self.nested["b"])))
            loss = loss * getattr(self, "made_later", torch.zeros(2)).mean().add(1)
        self.log("train/loss", loss, on_step=False, on_epoch=True)
        if self.hparams.manual:
            optimizer = self.optimizers()
            self.manual_backward(loss)
            if (self.global_step + i) % 2:
                optimizer.step()
                optimizer.zero_grad()
        return loss

    def validation_step(self, batch, i):
        x, y = batch
        out = self(x)
        self.log("val/loss", nn.functional.cross_entropy(out, y))
        if self.hparams.metrics:
            self.acc(out, y)
            self.log("val/acc", self.acc, on_epoch=True)

    def on_validation_epoch_end(self):
        if self.hparams.metrics:
            self.best(self.acc.compute())
            self.log("val/best", self.best.compute())
            self.log("val/kept", float(self.all.compute().sum()) + float(self.running.compute()))

    def configure_optimizers(self):
        optimizer = torch.optim.Adam([p for p in self.parameters() if p.requires_grad], lr=0.02)
        if self.hparams.unfreeze == "switch":
            optimizer = torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9)
        if self.hparams.schedule == "step":
            return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 2, 0.5)]
        if self.hparams.schedule == "plateau":
            plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=0, threshold=0.5)
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": plateau, "monitor": "train/loss"}}
        return optimizer

    def configure_callbacks(self):
        callbacks = AVERAGES[self.hparams.average]()
        if self.hparams.unfreeze == "callback":
            callbacks.append(BackboneFinetuning(unfreeze_backbone_at_epoch=2, verbose=False))
        if self.hparams.attributes:
            callbacks.append(Habits())
        return callbacks


class KeepsObjects(Net):
    """Keeps what can't be saved: an object that it makes during training, and the positions of three iterators."""

    def __init__(self):
        super().__init__()
        self.numbers = (number for number in range(100))
        self.unlabelled = iter(DataLoader(torch.zeros(100, 4)))
        self.by_name = {"more": [iter(range(100))]}

    def training_step(self, batch, i):
        self.seen = Habits()
        return super().training_step(batch, i)


class KeepsItsSchedulers(Net):
    """Steps schedulers that Lightning does not know by hand, and scales its loss with a scaler of its own."""

    def __init__(self):
        super().__init__(manual=True)
        self.scaler = torch.amp.GradScaler("cpu", init_scale=4.0, growth_interval=2)

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), lr=0.05)
        of_torch = torch.optim.lr_scheduler
        self.by_epoch = of_torch.SequentialLR(
            optimizer, [of_torch.LinearLR(optimizer, 0.1, 1, 2), of_torch.CosineAnnealingLR(optimizer, 3)], [2]
        )
        self.others = {"plateau": of_torch.ReduceLROnPlateau(optimizer, patience=0, threshold=0.5)}
        self.known = of_torch.StepLR(optimizer, 2, 0.9)
        return [optimizer], [self.known]

    def training_step(self, batch, i):
        optimizer = self.optimizers(use_pl_optimizer=False)
        loss = nn.functional.cross_entropy(self(batch[0]), batch[1])
        optimizer.zero_grad()
        self.scaler.scale(loss).backward()
        self.scaler.step(optimizer)
        self.scaler.update()
        self.log("scale", self.scaler.get_scale())

    def on_train_epoch_end(self):
        self.by_epoch.step()
        self.others["plateau"].step(1.0)
        self.known.step()
        self.log("rate", self.optimizers(use_pl_optimizer=False).param_groups[0]["lr"])


class KeepsAnOptimizer(Net):
    """Trains a factor of its loss with an optimizer and a scheduler that Lightning does not know."""

    def __init__(self):
        super().__init__()
        self.factor = nn.Parameter(torch.ones(()))
        self.inner = torch.optim.SGD([self.factor], lr=0.1, momentum=0.5)
        self.schedule = torch.optim.lr_scheduler.StepLR(self.inner, 1, 0.5)

    def configure_optimizers(self):
        return torch.optim.SGD(self.net.parameters(), lr=0.05)

    def training_step(self, batch, i):
        self.log("rate", self.inner.param_groups[0]["lr"])
        return nn.functional.cross_entropy(self(batch[0]) * self.factor, batch[1])

    def on_after_backward(self):
        self.inner.step()
        self.inner.zero_grad()

    def on_train_epoch_end(self):
        self.schedule.step()


COUNTS = {"steps": 0}


class CountsElsewhere(Net):
    """Counts in a variable of its module and in an attribute of its class."""

    epochs = 0

    def on_train_epoch_start(self):
        super().on_train_epoch_start()
        type(self).epochs += 1

    def training_step(self, batch, i):
        COUNTS["steps"] += 1
        return super().training_step(batch, i) * (1 + 0.1 * COUNTS["steps"] + 0.1 * type(self).epochs)


class Lookahead(torch.optim.Optimizer):
    """An optimizer around another one, with which it shares the groups of parameters."""

    def __init__(self, inner):
        self.inner, self.steps, self.slow = inner, 0, {}
        super().__init__(inner.param_groups, {})
        self.param_groups = inner.param_groups

    def step(self, closure=None):
        loss = self.inner.step(closure)
        self.steps += 1
        for p in (p for group in self.param_groups for p in group["params"]):
            slow = self.slow.setdefault(p, p.detach().clone())
            if self.steps % 4 == 0:
                p.data.copy_(slow.add_(p.detach() - slow, alpha=0.5))
        return loss


class LooksAhead(Net):
    def configure_optimizers(self):
        optimizer = Lookahead(torch.optim.Adam(self.parameters(), lr=0.02))
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)]


class ExchangesParts(Net):
    """Exchanges a layer, adds a hook and replaces its loss by a function in the third epoch."""

    def on_train_epoch_start(self):
        if self.current_epoch == 2:
            self.backbone[1] = nn.Tanh()
            self.net[2].register_forward_hook(lambda *args: args[2] * 0.5)
            self.loss = lambda out: out


class RemovesParameters(Net):
    """Prunes its first layer, for which torch replaces a parameter by another one."""

    def configure_callbacks(self):
        return [ModelPruning("l1_unstructured", amount=0.2)]
