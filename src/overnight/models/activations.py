"""Activations, and first weights that fit them."""

from __future__ import annotations

import math
from collections.abc import Callable

from torch import Tensor, nn

ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "leaky_relu": nn.LeakyReLU,
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
    "elu": nn.ELU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "mish": nn.Mish,
}
_SLOPE = 0.01  # of nn.LeakyReLU below zero


def _he(weight: Tensor) -> None:
    """Normal with variance 2 / fan_in (He et al. 2015, eq. 10)."""
    nn.init.kaiming_normal_(weight, nonlinearity="relu")


def _he_leaky(weight: Tensor) -> None:
    """Normal with variance 2 / ((1 + a^2) fan_in) for slope a below zero (He et al. 2015, eq. 15)."""
    nn.init.kaiming_normal_(weight, a=_SLOPE, nonlinearity="leaky_relu")


def _glorot(weight: Tensor) -> None:
    """Uniform within sqrt(6 / (fan_in + fan_out)) (Glorot and Bengio 2010, eq. 16)."""
    nn.init.xavier_uniform_(weight)


def _glorot_sigmoid(weight: Tensor) -> None:
    """Four times tanh's, because the sigmoid is (1 + tanh(z / 2)) / 2, whose slope at 0 is a quarter of tanh's."""
    nn.init.xavier_uniform_(weight, gain=4)


# elu, gelu, silu and mish are smooth forms of the relu, and start as it does.
_FIRST_WEIGHTS: dict[str, Callable[[Tensor], None]] = {
    "leaky_relu": _he_leaky,
    "tanh": _glorot,
    "sigmoid": _glorot_sigmoid,
}


def check_activation(name: str) -> None:
    if name not in ACTIVATIONS:
        raise ValueError(f"model.activation: must be one of {', '.join(ACTIVATIONS)}, got {name!r}")


def initialise(net: nn.Module, activation: str) -> None:
    """Draw the weights of every linear and convolutional layer anew, so that signals keep their size; biases are 0.

    The last linear layer, which no activation follows, is drawn normal with variance 1 / fan_in (LeCun et al. 1998,
    Efficient BackProp, eq. 16).
    """
    layers = [m for m in net.modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    for layer in layers:
        _FIRST_WEIGHTS.get(activation, _he)(layer.weight)
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)
    last = layers[-1]
    assert isinstance(last, nn.Linear), "a network ends in a linear layer"
    nn.init.normal_(last.weight, std=1 / math.sqrt(last.in_features))
