"""The base class of the bundled networks: training, evaluation, metrics, optimizer and schedule."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler
from torchmetrics import Metric, MetricCollection

from overnight.models.schedules import constant, steps_of_training
from overnight.models.tasks import make_task

OptimizerFactory = Callable[[Iterable[Any]], torch.optim.Optimizer]
ScheduleFactory = Callable[[torch.optim.Optimizer, int], LRScheduler | None]


class Supervised(pl.LightningModule):
    """A network that learns one target for each row of inputs.

    A subclass builds `net`, which maps (B, *input_shape) to (B, self.task.outputs).

    Once an epoch it logs, over all rows of the epoch, `train/loss`, `val/loss`, and the task's metrics as
    `val/accuracy` and so on. Trainer.test logs `test/...`.

    Args:
        task: binary, multiclass or regression.
        classes: number of classes, for multiclass.
        optimizer: takes the parameters and returns a torch optimizer.
        schedule: takes the optimizer and the number of steps of the whole trial; returns a scheduler that is stepped
            after every step, or None for a constant learning rate.

    Attributes:
        confusion_counts: after an evaluation, (K, K) counts of rows by true class (row) and predicted class (column);
            None if there are no classes.
    """

    net: nn.Module

    def __init__(
        self,
        task: str,
        classes: int | None,
        optimizer: OptimizerFactory = torch.optim.Adam,
        schedule: ScheduleFactory = constant,
    ) -> None:
        super().__init__()
        self.task = make_task(task, classes)
        self.confusion_counts: Tensor | None = None
        self._optimizer, self._schedule = optimizer, schedule
        self._metrics, self._confusion = self.task.metrics(), self.task.confusion()
        self._loss, self._rows = torch.tensor(0.0), 0
        self._decided: list[tuple[Tensor, Tensor]] = []
        self._train: dict[str, Any] = {}  # a dict: to set an attribute of a module costs as much as the sum itself
        self._clip_norm: float | None = None

    def forward(self, inputs: Tensor) -> Tensor:
        """(B, *input_shape) -> (B, outputs), or (B,) for one output. Outputs are logits if there are classes."""
        outputs = self.net(inputs)
        return outputs.squeeze(1) if self.task.outputs == 1 else outputs

    def predict_step(self, batch: Any, _: int = 0) -> Tensor:
        """Return probabilities or values for a batch of (inputs, targets), or of inputs alone."""
        return self.task.predict(self(batch if isinstance(batch, Tensor) else batch[0]))

    # Training

    def step_over_batches(self, clip_norm: float | None) -> None:
        """Take a group of batches in each step of the Trainer, with an optimizer step for every batch.

        The result is the same bit by bit, and the Trainer's bookkeeping is done once for each group.

        Args:
            clip_norm: maximum norm of the gradient; None for no limit.
        """
        self.automatic_optimization = False
        self._clip_norm = clip_norm

    def on_train_epoch_start(self) -> None:
        self._train.update(loss=torch.tensor(0.0, device=self.device), rows=0)

    def training_step(self, batch: Any, _: int) -> Tensor | None:
        """batch: (inputs, targets), or an iterator over a group of them after `step_over_batches`."""
        if self.automatic_optimization:
            return self._loss_of(*batch)
        optimizer: Any = self.optimizers(use_pl_optimizer=False)
        scheduler: Any = self.lr_schedulers()
        needs_closure, device = _needs_closure(optimizer), self.device
        for inputs, targets in batch:
            gradient = partial(self._backward, optimizer, inputs.to(device), targets.to(device))
            if needs_closure:
                optimizer.step(gradient)
            else:
                gradient()
                optimizer.step()
            if scheduler is not None:
                scheduler.step()
        return None

    def _backward(self, optimizer: torch.optim.Optimizer, inputs: Tensor, targets: Tensor) -> Tensor:
        loss = self._loss_of(inputs, targets)
        optimizer.zero_grad()
        loss.backward()
        if self._clip_norm is not None:
            nn.utils.clip_grad_norm_(self.parameters(), self._clip_norm)
        return loss

    def _loss_of(self, inputs: Tensor, targets: Tensor) -> Tensor:
        if self.current_epoch == 0:  # once for every label
            self.task.check(targets)
        loss = self.task.loss(self(inputs), targets)
        # Summed here and logged once an epoch: self.log costs as much as a small step.
        self._train["loss"].add_(loss.detach(), alpha=len(targets))
        self._train["rows"] += len(targets)
        return loss

    def on_train_epoch_end(self) -> None:
        self.log("train/loss", self._train["loss"] / self._train["rows"])

    def configure_optimizers(self) -> Any:
        optimizer = self._optimizer(self.parameters())
        steps = steps_of_training(self.trainer.estimated_stepping_batches, self._schedule)
        if not self.automatic_optimization:  # the Trainer counts steps over groups
            loader: Any = self.trainer.train_dataloader
            steps = int(self.trainer.max_epochs or 0) * len(loader.batches)
        scheduler = self._schedule(optimizer, steps)
        if scheduler is None:
            return optimizer
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    # Evaluation

    def on_validation_epoch_start(self) -> None:
        self._reset_evaluation()

    def validation_step(self, batch: tuple[Tensor, Tensor], _: int) -> None:
        self._evaluate(*batch)

    def on_validation_epoch_end(self) -> None:
        self._log_evaluation("val")

    def on_test_epoch_start(self) -> None:
        self._reset_evaluation()

    def test_step(self, batch: tuple[Tensor, Tensor], _: int) -> None:  # noqa: PT019
        self._evaluate(*batch)

    def on_test_epoch_end(self) -> None:
        self._log_evaluation("test")

    def _reset_evaluation(self) -> None:
        self._loss, self._rows = torch.tensor(0.0, device=self.device), 0
        self._decided.clear()

    def _evaluate(self, inputs: Tensor, targets: Tensor) -> None:
        self.task.check(targets)
        outputs = self(inputs)
        self._loss += self.task.loss(outputs, targets, reduction="sum")
        self._rows += len(targets)
        # Metrics are computed once for all rows: for one batch they take as long as the network.
        self._decided.append((self.task.decide(outputs), targets))

    def _log_evaluation(self, stage: str) -> None:
        decided, targets = (torch.cat(parts) for parts in zip(*self._decided, strict=True))
        self.log(f"{stage}/loss", self._loss / self._rows)
        self.log_dict({f"{stage}/{name}": value for name, value in _compute(self._metrics, decided, targets).items()})
        if self._confusion is not None:
            self.confusion_counts = _compute(self._confusion, decided, targets)


def _needs_closure(optimizer: torch.optim.Optimizer) -> bool:
    """Return whether an optimizer may evaluate the loss itself, in its step.

    Of torch's own optimizers only LBFGS does. The others call a closure once at the start, which costs a few
    hundredths of a small step. Optimizers of other packages get the closure.
    """
    return not type(optimizer).__module__.startswith("torch.optim.") or isinstance(optimizer, torch.optim.LBFGS)


def _compute(metric: MetricCollection | Metric, decided: Tensor, targets: Tensor) -> Any:
    metric.reset()
    metric.update(decided, targets)
    return metric.compute()
