"""A convolutional network for images."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from overnight.models.activations import ACTIVATIONS, check_activation, initialise
from overnight.models.mlp import hidden_layers
from overnight.models.schedules import constant
from overnight.models.supervised import OptimizerOf, ScheduleOf, Supervised

POOLINGS: dict[str, type[nn.Module]] = {"max": nn.MaxPool2d, "average": nn.AvgPool2d}


class CNN(Supervised):
    """Blocks of convolutions that each end in 2x2 pooling, then a small MLP as its head.

    Args:
        input_shape: (channels, height, width); taken from the data module, as `classes` and `task` are.
        classes: how many, for multiclass.
        channels: of each block, first to last: as many blocks as there are entries.
        convolutions: in each block.
        kernel: side of a convolution, odd, so that it keeps the image's size.
        pooling: max or average, halving each side, rounded down.
        head: units of the hidden layers after the blocks; empty for none.
        activation: after every layer, a key of ACTIVATIONS; the first weights fit it (see activations.py).
        dropout: share of the head's inputs and hidden units dropped while training, 0 included, 1 excluded.
        batch_norm: normalise each channel over the batch (Ioffe and Szegedy 2015).
        task: see Supervised.
        optimizer: see Supervised.
        schedule: see Supervised.

    Raises:
        ValueError: naming key, value, rule and remedy, where an argument is impossible or pooling eats the image up.
    """

    def __init__(
        self,
        input_shape: Sequence[int],
        classes: int | None = None,
        channels: Sequence[int] = (16, 32),
        convolutions: int = 1,
        kernel: int = 3,
        pooling: str = "max",
        head: Sequence[int] = (64,),
        activation: str = "relu",
        dropout: float = 0.0,
        batch_norm: bool = True,
        task: str = "multiclass",
        optimizer: OptimizerOf = torch.optim.Adam,
        schedule: ScheduleOf = constant,
    ) -> None:
        super().__init__(task, classes, optimizer, schedule)
        check_activation(activation)
        _check(input_shape, channels, convolutions, kernel, pooling, head)
        self.save_hyperparameters(ignore=["optimizer", "schedule"])
        depth, height, width = input_shape
        layers: list[nn.Module] = []
        for size in channels:
            for i in range(convolutions):
                # Batch norm has a bias of its own.
                layers.append(nn.Conv2d(depth, size, kernel, padding=kernel // 2, bias=not batch_norm))
                if i == convolutions - 1:
                    # Before batch norm and activation, which then have a quarter of the work, and for max pooling the
                    # same outcome as after them, where the activation rises and the norm's gain is positive.
                    layers.append(POOLINGS[pooling](2))
                if batch_norm:
                    layers.append(nn.BatchNorm2d(size))
                layers.append(ACTIVATIONS[activation]())
                depth = size
            height, width = height // 2, width // 2
        layers.append(nn.Flatten())
        if dropout > 0:
            layers.append(nn.Dropout(dropout))
        hidden, last = hidden_layers(depth * height * width, head, activation, dropout)
        self.net = nn.Sequential(*layers, *hidden, nn.Linear(last, self.task.outputs))
        initialise(self.net, activation)
        # Channels beside each other in memory: a step then takes about two thirds of the time on a CPU.
        self.net = self.net.to(memory_format=torch.channels_last)

    def forward(self, inputs: Tensor) -> Tensor:
        return super().forward(inputs.contiguous(memory_format=torch.channels_last))


def _check(
    input_shape: Sequence[int],
    channels: Sequence[int],
    convolutions: int,
    kernel: int,
    pooling: str,
    head: Sequence[int],
) -> None:
    if len(input_shape) != 3:
        raise ValueError(
            f"model: a cnn needs images of (channels, height, width), and the data has rows of {tuple(input_shape)}; "
            f"take model=mlp"
        )
    if not channels or any(size < 1 for size in channels):
        raise ValueError(f"model.channels: must have at least one block, of at least 1 each, got {list(channels)}")
    if convolutions < 1:
        raise ValueError(f"model.convolutions: must be at least 1, got {convolutions!r}")
    if kernel < 1 or kernel % 2 == 0:
        raise ValueError(f"model.kernel: must be odd, so that it keeps the image's size, got {kernel!r}")
    if pooling not in POOLINGS:
        raise ValueError(f"model.pooling: must be one of {', '.join(POOLINGS)}, got {pooling!r}")
    if any(size < 1 for size in head):
        raise ValueError(f"model.head: each must be at least 1, got {list(head)}")
    height, width = input_shape[1:]
    most = min(height, width).bit_length() - 1  # times that a side can be halved before nothing is left
    if len(channels) > most:
        raise ValueError(
            f"model.channels: each block halves the image, and {len(channels)} leave nothing of {height}x{width} "
            f"pixels, got {list(channels)}; take at most {most}"
        )
