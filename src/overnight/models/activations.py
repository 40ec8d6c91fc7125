"""Activation functions, and the initialisation of weights for each."""

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
_NEGATIVE_SLOPE = 0.01  # of nn.LeakyReLU


def _he(weight: Tensor) -> None:
    """Draw from a normal distribution with variance 2 / fan_in (He et al. 2015, eq. 10)."""
    nn.init.kaiming_normal_(weight, nonlinearity="relu")


def _he_leaky(weight: Tensor) -> None:
    """Draw from a normal distribution with variance 2 / ((1 + a^2) fan_in), a the slope below 0 (He 2015, eq. 15)."""
    nn.init.kaiming_normal_(weight, a=_NEGATIVE_SLOPE, nonlinearity="leaky_relu")


def _glorot(weight: Tensor) -> None:
    """Draw uniformly between -+ sqrt(6 / (fan_in + fan_out)) (Glorot and Bengio 2010, eq. 16)."""
    nn.init.xavier_uniform_(weight)


def _glorot_sigmoid(weight: Tensor) -> None:
    """Draw four times tanh's weights: the sigmoid, (1 + tanh(z / 2)) / 2, has a quarter of tanh's slope at 0."""
    nn.init.xavier_uniform_(weight, gain=4)


# elu, gelu, silu and mish are smooth forms of the relu and use its initialisation.
_INITIALISATIONS: dict[str, Callable[[Tensor], None]] = {
    "leaky_relu": _he_leaky,
    "tanh": _glorot,
    "sigmoid": _glorot_sigmoid,
}


def check_activation(name: str) -> None:
    if name not in ACTIVATIONS:
        raise ValueError(f"model.activation: must be one of {', '.join(ACTIVATIONS)}, got {name!r}")


def initialise(net: nn.Module, activation: str) -> None:
    """Initialise all linear and convolutional layers so that activations keep their variance; biases are 0.

    The last linear layer, which has no activation, is drawn from a normal distribution with variance 1 / fan_in (LeCun
    et al. 1998, Efficient BackProp, eq. 16).
    """
    layers = [m for m in net.modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    for layer in layers:
        _INITIALISATIONS.get(activation, _he)(layer.weight)
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)
    last = layers[-1]
    assert isinstance(last, nn.Linear), "a network ends in a linear layer"
    nn.init.normal_(last.weight, std=1 / math.sqrt(last.in_features))
