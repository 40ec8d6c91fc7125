"""A convolutional network for images."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from overnight.models.activations import ACTIVATIONS, check_activation, initialise
from overnight.models.mlp import hidden_layers
from overnight.models.schedules import constant
from overnight.models.supervised import OptimizerFactory, ScheduleFactory, Supervised

POOLINGS: dict[str, type[nn.Module]] = {"max": nn.MaxPool2d, "average": nn.AvgPool2d}


class CNN(Supervised):
    """Blocks of convolutions, each with a 2x2 pooling at its end, then a small MLP as the head.

    Args:
        input_shape: (channels, height, width). The data module provides it, as well as `classes` and `task`.
        classes: number of classes, for multiclass.
        channels: of each block, first to last; one entry for each block.
        convolutions: number in each block.
        kernel: side of a convolution in pixels; odd, so that the image keeps its size.
        pooling: max or average; it halves each side, rounded down.
        head: units of each hidden layer after the blocks; empty for none.
        activation: of every layer, a key of ACTIVATIONS. It decides the initialisation (see activations.py).
        dropout: share of the head's inputs and hidden units to drop in training, in [0, 1).
        batch_norm: normalise each channel over the batch (Ioffe and Szegedy 2015).
        task: see Supervised.
        optimizer: see Supervised.
        schedule: see Supervised.

    Raises:
        ValueError: with key, rule, value and remedy, if an argument is impossible or pooling leaves no pixel.
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
        optimizer: OptimizerFactory = torch.optim.Adam,
        schedule: ScheduleFactory = constant,
    ) -> None:
        super().__init__(task, classes, optimizer, schedule)
        check_activation(activation)
        _check(input_shape, channels, convolutions, kernel, pooling, head)
        self.save_hyperparameters(ignore=["optimizer", "schedule"])
        depth, height, width = input_shape
        layers: list[nn.Module] = []
        for size in channels:
            for i in range(convolutions):
                # Batch norm has its own bias.
                layers.append(nn.Conv2d(depth, size, kernel, padding=kernel // 2, bias=not batch_norm))
                if i == convolutions - 1:
                    # Before batch norm and activation, which then process a quarter of the values. Max pooling gives
                    # the same result as after them, if the activation is increasing and the gain of the norm positive.
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
        # With the channels of a pixel adjacent in memory, a step takes about two thirds of the time on a CPU.
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
    most = min(height, width).bit_length() - 1  # halvings of the shorter side that leave a pixel
    if len(channels) > most:
        raise ValueError(
            f"model.channels: each block halves the image, and {len(channels)} leave nothing of {height}x{width} "
            f"pixels, got {list(channels)}; take at most {most}"
        )
