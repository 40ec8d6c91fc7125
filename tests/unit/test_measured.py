"""The measured weights are copied at a validation only where the network may have others afterwards."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import pytorch_lightning as pl
from pytorch_lightning import callbacks

from overnight.models.supervised import Supervised
from overnight.trial.measured import may_exchange_weights
from overnight.trial.trial_callback import EpochStart


class Exchanges(pl.Callback):
    def on_validation_start(self, trainer: Any, module: Any) -> None: ...


class Averages(callbacks.WeightAveraging):
    """A user's class of Lightning's."""


class Plain(pl.LightningModule):
    """A network without hooks."""


class ExchangesItself(pl.LightningModule):
    def on_validation_epoch_end(self) -> None: ...


def may_exchange(module: type, *of_trainer: Any) -> bool:
    return may_exchange_weights(SimpleNamespace(callbacks=of_trainer), module.__new__(module))


@pytest.mark.parametrize(
    "callback",
    [
        Exchanges(),
        callbacks.EMAWeightAveraging(),
        Averages(),
        callbacks.StochasticWeightAveraging(0.1),
        callbacks.ModelPruning("l1_unstructured"),
        callbacks.LambdaCallback(on_validation_end=lambda *_: None),
    ],
    ids=lambda c: type(c).__name__,
)
def test_a_callback_may_exchange_weights(callback: Any) -> None:
    assert may_exchange(Plain, callback)


def test_a_module_may_exchange_its_weights_itself() -> None:
    assert may_exchange(ExchangesItself)


def test_ours_and_those_that_stop_or_save_do_not() -> None:
    others = callbacks.EarlyStopping("val/loss"), callbacks.ModelCheckpoint(), callbacks.LearningRateMonitor()
    assert not may_exchange(Plain, *others, EpochStart.__new__(EpochStart))
    assert not may_exchange(Supervised)
