"""Tests that take seconds and may save a night: does the network learn, and are its shapes right?"""

import pytorch_lightning as pl
import torch
from my_data import Data
from my_network import Network


def test_two_epochs_of_training_are_better_than_guessing() -> None:
    pl.seed_everything(0)
    data = Data()
    trainer = pl.Trainer(
        max_epochs=2, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False
    )
    trainer.fit(Network(data.input_shape, data.classes), datamodule=data)
    assert trainer.callback_metrics["val/accuracy"] > 0.5


def test_the_network_returns_one_logit_for_each_class() -> None:
    assert Network((1, 8, 8), 10, hidden_sizes=[16, 16])(torch.zeros(3, 1, 8, 8)).shape == (3, 10)
