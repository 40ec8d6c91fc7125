"""What every network that comes with overnight does alike: training, evaluation, metrics, optimizer and schedule."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler
from torchmetrics import Metric, MetricCollection

from overnight.models.schedules import constant
from overnight.models.tasks import task_of

OptimizerOf = Callable[[Iterable[Any]], torch.optim.Optimizer]
ScheduleOf = Callable[[torch.optim.Optimizer, int], LRScheduler | None]


class Supervised(pl.LightningModule):
    """Rows of inputs with a target each; a leaf builds `net`, which answers (B, self.task.outputs).

    Logs once an epoch, over all rows of it: `train/loss`, `val/loss`, and the task's metrics as `val/accuracy` and so
    on. `test/...` come from Trainer.test alone, which nothing here calls. After an evaluation, `confusion_counts` holds
    how often each class (row) was taken for each (column), or None where there are no classes.

    Args:
        task: binary, multiclass or regression. classes: how many, for multiclass.
        optimizer: takes the parameters, returns a torch optimizer.
        schedule: takes the optimizer and how many steps the whole trial has, returns a scheduler that is stepped after
            each, or None for a learning rate that stays.
    """

    net: nn.Module

    def __init__(
        self,
        task: str,
        classes: int | None,
        optimizer: OptimizerOf = torch.optim.Adam,
        schedule: ScheduleOf = constant,
    ) -> None:
        super().__init__()
        self.task = task_of(task, classes)
        self.confusion_counts: Tensor | None = None
        self._optimizer, self._schedule = optimizer, schedule
        self._metrics, self._confusion = self.task.metrics(), self.task.confusion()
        self._loss, self._rows = torch.tensor(0.0), 0
        self._decided: list[tuple[Tensor, Tensor]] = []
        self._train: dict[str, Any] = {}  # not attributes: a module's cost as much to set as the sum to reckon
        self._clip: float | None = None

    def forward(self, inputs: Tensor) -> Tensor:
        """(B, *input_shape) -> (B, outputs), logits where there are classes; (B,) where there is one output."""
        outputs = self.net(inputs)
        return outputs.squeeze(1) if self.task.outputs == 1 else outputs

    def predict_step(self, batch: Any, _: int = 0) -> Tensor:
        """Probabilities, or values, for a batch of (inputs, targets) or of inputs alone."""
        return self.task.predict(self(batch if isinstance(batch, Tensor) else batch[0]))

    # Training

    def step_by_itself(self, clip: float | None) -> None:
        """Take several batches in one step of the Trainer's, and step after each; clip: greatest norm of the gradient.

        What is trained is the same, bit by bit, and the Trainer's bookkeeping is paid once for all of them.
        """
        self.automatic_optimization = False
        self._clip = clip

    def on_train_epoch_start(self) -> None:
        self._train.update(loss=torch.tensor(0.0, device=self.device), rows=0)

    def training_step(self, batch: Any, _: int) -> Tensor | None:
        """batch: (inputs, targets), or an iterator over several of them for a module that steps by itself."""
        if self.automatic_optimization:
            return self._loss_of(*batch)
        optimizer: Any = self.optimizers(use_pl_optimizer=False)
        scheduler: Any = self.lr_schedulers()
        plain, device = _needs_no_closure(optimizer), self.device
        for inputs, targets in batch:
            gradient = partial(self._gradient, optimizer, inputs.to(device), targets.to(device))
            if plain:
                gradient()
                optimizer.step()
            else:
                optimizer.step(gradient)
            if scheduler is not None:
                scheduler.step()
        return None

    def _gradient(self, optimizer: torch.optim.Optimizer, inputs: Tensor, targets: Tensor) -> Tensor:
        loss = self._loss_of(inputs, targets)
        optimizer.zero_grad()
        loss.backward()
        if self._clip is not None:
            nn.utils.clip_grad_norm_(self.parameters(), self._clip)
        return loss

    def _loss_of(self, inputs: Tensor, targets: Tensor) -> Tensor:
        if self.current_epoch == 0:  # every label once; after that it would only cost
            self.task.check(targets)
        loss = self.task.loss(self(inputs), targets)
        # Summed here and logged once an epoch: self.log in every step would cost as much as a small step does.
        self._train["loss"].add_(loss.detach(), alpha=len(targets))
        self._train["rows"] += len(targets)
        return loss

    def on_train_epoch_end(self) -> None:
        self.log("train/loss", self._train["loss"] / self._train["rows"])

    def configure_optimizers(self) -> Any:
        optimizer = self._optimizer(self.parameters())
        steps = int(self.trainer.estimated_stepping_batches)
        if not self.automatic_optimization:  # the Trainer counts its own steps
            loader: Any = self.trainer.train_dataloader
            steps = int(self.trainer.max_epochs or 0) * len(loader.batches)
        scheduler = self._schedule(optimizer, steps)
        if scheduler is None:
            return optimizer
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    # Evaluation

    def on_validation_epoch_start(self) -> None:
        self._begin()

    def validation_step(self, batch: tuple[Tensor, Tensor], _: int) -> None:
        self._evaluate(*batch)

    def on_validation_epoch_end(self) -> None:
        self._conclude("val")

    def on_test_epoch_start(self) -> None:
        self._begin()

    def test_step(self, batch: tuple[Tensor, Tensor], _: int) -> None:  # noqa: PT019
        self._evaluate(*batch)

    def on_test_epoch_end(self) -> None:
        self._conclude("test")

    def _begin(self) -> None:
        self._loss, self._rows = torch.tensor(0.0, device=self.device), 0
        self._decided.clear()

    def _evaluate(self, inputs: Tensor, targets: Tensor) -> None:
        self.task.check(targets)
        outputs = self(inputs)
        self._loss += self.task.loss(outputs, targets, reduction="sum")
        self._rows += len(targets)
        # Measured once for all rows: a metric takes as long for a batch as the network does.
        self._decided.append((self.task.decide(outputs), targets))

    def _conclude(self, stage: str) -> None:
        decided, targets = (torch.cat(parts) for parts in zip(*self._decided, strict=True))
        self.log(f"{stage}/loss", self._loss / self._rows)
        self.log_dict({f"{stage}/{name}": value for name, value in _measured(self._metrics, decided, targets).items()})
        if self._confusion is not None:
            self.confusion_counts = _measured(self._confusion, decided, targets)


def _needs_no_closure(optimizer: torch.optim.Optimizer) -> bool:
    """Whether its step would do nothing with a closure but call it first, which costs some hundredths of a small step.

    So it is with torch's own but LBFGS, which looks at several losses in one step; of others nobody knows.
    """
    return type(optimizer).__module__.startswith("torch.optim.") and not isinstance(optimizer, torch.optim.LBFGS)


def _measured(metric: MetricCollection | Metric, decided: Tensor, targets: Tensor) -> Any:
    metric.reset()
    metric.update(decided, targets)
    return metric.compute()
