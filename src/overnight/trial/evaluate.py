"""Measure a trained network on the test set, once, for the winner and its competitors."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from overnight.config.trainer import trainer_arguments
from overnight.protocol import Alive, Finished, Tested, TrialSpec
from overnight.trial import checkpoint, lightning_packages
from overnight.trial.components import build
from overnight.trial.fit import make_trainer, start_process
from overnight.trial.logger import attach, make_logger
from overnight.trial.trial_callback import ALIVE_EVERY_S, Link

_TEST_ARGUMENTS = ("precision", "limit_test_batches", "deterministic", "benchmark", "inference_mode")


def evaluate(spec: TrialSpec, link: Link) -> Finished:
    """Test the weights in the checkpoint folder. A module without a test is reported as such and is no failure."""
    start_process(spec)
    data, model = build(spec.config, spec.cache, spec.locks, lambda _: link.send(Alive(spec.number)))
    missing = _missing_hook(data, model)
    if missing:
        link.send(Tested(spec.number, {}, missing))
        return Finished(spec.number, "complete")
    lightning = lightning_packages.lightning_of(data, model)
    logger = make_logger(lightning, spec)
    trainer = make_trainer(
        lightning,
        spec,
        logger,
        plugins=[],
        callbacks=[lightning_packages.subclass(_SignsOfLife, lightning.Callback)(spec.number, link)],
        **{k: v for k, v in trainer_arguments(spec.config["trainer"]).items() if k in _TEST_ARGUMENTS},
    )
    attach(logger, trainer, model, data)
    data_module = lightning_packages.adapt_data(lightning, data)
    data.trainer = trainer
    weights = str(spec.checkpoint_folder / checkpoint.WEIGHTS)
    trainer.test(model, datamodule=data_module, ckpt_path=weights, weights_only=True, verbose=False)
    metrics = name_test_metrics({name: float(value) for name, value in trainer.callback_metrics.items()})
    link.send(Tested(spec.number, metrics, "" if metrics else f"{type(model).__name__}'s test_step logs nothing"))
    return Finished(spec.number, "complete")


class _SignsOfLife:
    """Sends Alive messages during the test, as a trial in training does."""

    def __init__(self, number: int, link: Link) -> None:
        self._number, self._link, self._sent_at = number, link, time.monotonic()

    def on_test_batch_start(self, *_: Any) -> None:
        now = time.monotonic()
        if now - self._sent_at >= ALIVE_EVERY_S:
            self._sent_at = now
            self._link.send(Alive(self._number))


def _missing_hook(data: Any, model: Any) -> str:
    """Return the reason why a network can't be tested, or an empty text."""
    if not lightning_packages.overrides(type(model), "test_step"):
        return f"{type(model).__name__} has no test_step"
    if not any(lightning_packages.overrides(type(part), "test_dataloader") for part in (data, model)):
        return f"{type(data).__name__} has no test_dataloader"
    return ""


def name_test_metrics(logged: Mapping[str, float]) -> dict[str, float]:
    """Put every metric under test/, so that it is not taken for the metric that the search used."""
    metrics = {name: value for name, value in logged.items() if name.startswith("test/")}
    for name, value in logged.items():
        if name not in metrics:
            shown = f"test/{name.removeprefix('test_')}"
            while shown in metrics:  # a model may log test_acc, test/acc and acc
                shown = f"test/{shown}"
            metrics[shown] = value
    return metrics
