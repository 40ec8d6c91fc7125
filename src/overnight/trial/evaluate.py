"""A trained network on the test set: asked once, of the winner and of what it is compared with."""

from __future__ import annotations

import importlib
import time
from typing import Any

import pytorch_lightning as pl
import torch

from overnight.protocol import Alive, Finished, Tested, TrialSpec
from overnight.trial import checkpoint, namespaces
from overnight.trial.fit import ALIVE_EVERY_S, Link, build, quiet


def evaluate(spec: TrialSpec, link: Link) -> Finished:
    """Test the weights in the spec's folder. A module without a test is said to have none, which is no failure."""
    torch.set_num_threads(spec.threads)
    quiet()
    pl.seed_everything(spec.seed, workers=True, verbose=False)
    data, model = build(spec.config, spec.cache)
    lacking = _lacking(data, model)
    if lacking:
        link.send(Tested(spec.number, {}, lacking))
        return Finished(spec.number, "complete")
    lightning = namespaces.lightning_of(data, model)
    environments = importlib.import_module(f"{lightning.__name__}.plugins.environments")
    trainer = lightning.Trainer(
        accelerator="gpu" if spec.device.startswith("cuda") else "cpu",
        devices=[int(spec.device.removeprefix("cuda:"))] if spec.device.startswith("cuda") else 1,
        precision=spec.config["trainer"].get("precision", "32-true"),
        callbacks=[namespaces.joined(_Speaking, lightning.Callback)(spec.number, link)],
        plugins=[environments.LightningEnvironment()],
        default_root_dir=spec.folder,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    here = namespaces.at_home(lightning, data)
    data.trainer = trainer
    weights = str(spec.folder / checkpoint.WEIGHTS)
    trainer.test(model, datamodule=here, ckpt_path=weights, weights_only=True, verbose=False)
    metrics = {_named(name): float(value) for name, value in trainer.callback_metrics.items()}
    link.send(Tested(spec.number, metrics, "" if metrics else f"{type(model).__name__}'s test_step logs nothing"))
    return Finished(spec.number, "complete")


class _Speaking:
    """Is heard of now and then, as a trial in training is: whoever waits takes silence for a stall."""

    def __init__(self, number: int, link: Link) -> None:
        self._number, self._link, self._told_at = number, link, time.monotonic()

    def on_test_batch_start(self, *_: Any) -> None:
        now = time.monotonic()
        if now - self._told_at >= ALIVE_EVERY_S:
            self._told_at = now
            self._link.send(Alive(self._number))


def _lacking(data: Any, model: Any) -> str:
    """What keeps a network from being tested; empty where nothing does."""
    if not namespaces.own(type(model), "test_step"):
        return f"{type(model).__name__} has no test_step"
    if not any(namespaces.own(type(part), "test_dataloader") for part in (data, model)):
        return f"{type(data).__name__} has no test_dataloader"
    return ""


def _named(name: str) -> str:
    """Under test/, whatever the model calls it: nobody may take it for a metric that was searched by."""
    return name if name.startswith("test/") else f"test/{name.removeprefix('test_')}"
