"""The three kinds of tasks, with their outputs, loss, predictions and metrics."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor
from torch.nn import functional
from torchmetrics import Metric, MetricCollection
from torchmetrics.classification import (
    BinaryAccuracy,
    BinaryAUROC,
    BinaryConfusionMatrix,
    BinaryF1Score,
    MulticlassAccuracy,
    MulticlassConfusionMatrix,
    MulticlassF1Score,
)
from torchmetrics.regression import MeanAbsoluteError, MeanSquaredError, R2Score


class Task(ABC):
    """A kind of task.

    Attributes:
        outputs: units of the network's last layer. With one unit the network returns (B,), otherwise (B, outputs).
    """

    outputs: int = 1

    @abstractmethod
    def loss(self, outputs: Tensor, targets: Tensor, reduction: str = "mean") -> Tensor:
        """Return the "mean" or "sum" over the batch, from outputs (B,) or (B, classes) and targets (B,)."""

    @abstractmethod
    def predict(self, outputs: Tensor) -> Tensor:
        """Convert outputs to probabilities or values, of the same shape."""

    def decide(self, outputs: Tensor) -> Tensor:
        """Return what the metrics compare with the targets, (B,): the class, or the prediction."""
        return self.predict(outputs)

    @abstractmethod
    def metrics(self) -> MetricCollection:
        """Return the usual metrics by name, to be updated with the results of `decide` and the targets."""

    def confusion(self) -> Metric | None:
        """Return a metric that counts (true class, predicted class), or None if there are no classes."""
        return None

    @abstractmethod
    def check(self, targets: Tensor) -> None:
        """Raise ValueError for targets that a network of this task can't learn."""


class Binary(Task):
    """Two classes: one logit z, p = 1 / (1 + exp(-z)), targets 0 and 1.

    The loss of a row is the binary cross-entropy, -y log p - (1 - y) log(1 - p) (Bishop 2006, eq. 4.90). The metrics
    are accuracy and F1 (of class 1) at p = 0.5, and the area under the ROC curve.
    """

    def loss(self, outputs: Tensor, targets: Tensor, reduction: str = "mean") -> Tensor:
        return functional.binary_cross_entropy_with_logits(outputs, targets.float(), reduction=reduction)

    def predict(self, outputs: Tensor) -> Tensor:
        """Return the probability of class 1."""
        return outputs.sigmoid()

    def metrics(self) -> MetricCollection:
        return MetricCollection(
            {
                "accuracy": BinaryAccuracy(validate_args=False),
                "auroc": BinaryAUROC(validate_args=False),
                "f1": BinaryF1Score(validate_args=False),
            }
        )

    def confusion(self) -> Metric:
        return BinaryConfusionMatrix(validate_args=False)

    def check(self, targets: Tensor) -> None:
        _check_shape(targets)
        wrong = targets[(targets != 0) & (targets != 1)]
        if len(wrong):
            raise ValueError(
                f"data.task: binary takes the targets 0 and 1, got {wrong[0].item()}; for more classes the data module "
                f"must set task = 'multiclass' and `classes`"
            )


class Multiclass(Task):
    """K classes: K logits z, p_k = exp(z_k) / sum_j exp(z_j), targets 0 to K - 1.

    The loss of a row with true class y is the cross-entropy, -log p_y (Bishop 2006, eq. 4.108). The metrics are
    accuracy over all rows, and F1 as the mean over classes (macro).
    """

    def __init__(self, classes: int) -> None:
        self.outputs = classes

    def loss(self, outputs: Tensor, targets: Tensor, reduction: str = "mean") -> Tensor:
        return functional.cross_entropy(outputs, targets, reduction=reduction)

    def predict(self, outputs: Tensor) -> Tensor:
        """Return the probability of each class."""
        return outputs.softmax(1)

    def decide(self, outputs: Tensor) -> Tensor:
        """Return the most probable class."""
        return outputs.argmax(1)

    def metrics(self) -> MetricCollection:
        return MetricCollection(
            {
                "accuracy": MulticlassAccuracy(self.outputs, average="micro", validate_args=False),
                "f1": MulticlassF1Score(self.outputs, average="macro", validate_args=False),
            }
        )

    def confusion(self) -> Metric:
        return MulticlassConfusionMatrix(self.outputs, validate_args=False)

    def check(self, targets: Tensor) -> None:
        _check_shape(targets)
        if targets.is_floating_point():
            raise ValueError(f"data.task: multiclass takes whole numbers as targets, got {targets.dtype}")
        lowest, highest = targets.aminmax()  # one pass over the batch; two would slow down a small step
        if lowest < 0 or highest >= self.outputs:
            wrong = targets[(targets < 0) | (targets >= self.outputs)]
            raise ValueError(
                f"model.classes: a label must be from 0 to {self.outputs - 1}, as the network has {self.outputs} "
                f"outputs, got {wrong[0].item()}; set the data module's `classes` to their number"
            )


class Regression(Task):
    """Numbers: the output z is the prediction, targets are numbers.

    The loss of a row is the squared error (z - y)^2, whose mean over rows is the MSE. The metrics are the mean absolute
    error, the root of the MSE, and R2 = 1 - sum (y - z)^2 / sum (y - mean y)^2, which is 0 for a constant prediction of
    the mean of the targets.
    """

    def loss(self, outputs: Tensor, targets: Tensor, reduction: str = "mean") -> Tensor:
        return functional.mse_loss(outputs, targets.float(), reduction=reduction)

    def predict(self, outputs: Tensor) -> Tensor:
        return outputs

    def metrics(self) -> MetricCollection:
        return MetricCollection(
            {"mae": MeanAbsoluteError(), "rmse": MeanSquaredError(squared=False), "r2": R2Score()}, compute_groups=False
        )

    def check(self, targets: Tensor) -> None:
        _check_shape(targets)
        if not torch.isfinite(targets).all():
            raise ValueError("data: targets must be finite numbers, got one that is not")


def make_task(name: str, classes: int | None = None) -> Task:
    """Build the task of a name. Raise ValueError with key, rule and value if there is none."""
    if name == "binary":
        return Binary()
    if name == "regression":
        return Regression()
    if name != "multiclass":
        raise ValueError(f"data.task: must be one of binary, multiclass, regression, got {name!r}")
    if classes is None or classes < 2:
        raise ValueError(
            f"model.classes: multiclass needs at least 2, from the data module or the config, got {classes}"
        )
    return Multiclass(classes)


def _check_shape(targets: Tensor) -> None:
    if targets.ndim != 1:
        raise ValueError(f"data: targets must be one a row, (B,), got a batch of shape {tuple(targets.shape)}")
