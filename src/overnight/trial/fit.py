"""Train one trial: build data and model, run Lightning's fit, report epochs, save states that training resumes from."""

from __future__ import annotations

import importlib
import logging
import time
import traceback
import warnings
from typing import Any, Literal

import pytorch_lightning as pl
import torch
from hydra.utils import instantiate

from overnight.config.trainer import counts_validations, trainer_arguments, unit_of
from overnight.protocol import Alive, Decision, Finished, Resumed, TrialSpec
from overnight.trial import checkpoint, fast_loading, fast_steps, lightning_packages
from overnight.trial.callbacks import build_callbacks
from overnight.trial.components import build
from overnight.trial.logger import attach, make_logger
from overnight.trial.one_batch import OneBatchEpochs
from overnight.trial.state import history_of, identity_of
from overnight.trial.trial_callback import (
    ALIVE_EVERY_S,
    EpochStart,
    InMemoryCheckpoints,
    Link,
    TrialCallback,
    TrialStopped,
    TrialTrainer,
)
from overnight.trial.validation_callback import ValidationCallback

# Training batches in one step of the Trainer, for SplitData with Supervised. The Trainer's bookkeeping is about two
# thirds of the time of a small step.
BATCHES_PER_STEP = 64

_NOTHING_TRAINED = {
    "epoch": "the trial trained no epoch: does the data module have a train_dataloader with batches?",
    "validation": "the trial ended without a validation: trainer.val_check_interval must be a number of batches that "
    "come before trainer.max_steps or the end of the data",
}


def fit(spec: TrialSpec, link: Link, one_batch: OneBatchEpochs | None = None) -> Finished:
    """Train a trial, from the state in its checkpoint folder if there is one.

    Args:
        one_batch: ends each epoch after one batch, for a dry run. Everything else is as in the trial.

    Returns:
        How the trial ended. Messages before that go to `link`.

    Raises:
        Exception: any error that the data module or the model raises.
    """
    start_process(spec)
    history = checkpoint.read_history(spec.checkpoint_folder, identity_of(spec))
    if history is not None:
        link.send(Resumed(spec.number, history_of(history)))
        return Finished(spec.number, "complete")
    state, unusable = checkpoint.load(spec.checkpoint_folder, identity_of(spec))
    notes = tuple(unusable)
    data, model = build(spec.config, spec.cache, spec.locks, lambda waits_for: _show_life(spec, link, waits_for))
    lightning = lightning_packages.lightning_of(data, model)
    fast_loading.enable(lightning)
    subclass = lightning_packages.subclass
    logger = make_logger(lightning, spec, state["overnight"].get("log") if state is not None else None)
    memory = subclass(InMemoryCheckpoints, lightning.plugins.CheckpointIO)(state, model)
    callback = subclass(_callback_of(spec), lightning.callbacks.Checkpoint)(spec, link, memory, data, logger)
    configured = build_callbacks(spec.config, lightning)
    options = trainer_arguments(spec.config["trainer"])
    if fast_steps.possible(data, model, options) and configured.only_at_epoch_ends:
        model.step_over_batches(clip_norm=options.pop("gradient_clip_val", None))
        data.group_batches(BATCHES_PER_STEP if one_batch is None else 1, callback.poll)
    callbacks = [subclass(EpochStart, lightning.Callback)(callback), callback, *configured.by_key.values()]
    if one_batch is not None:
        callbacks.append(lightning.callbacks.LambdaCallback(on_train_epoch_start=one_batch.shorten))
    trainer = make_trainer(lightning, spec, logger, [memory], callbacks, **options)
    attach(logger, trainer, model, data)
    if state is not None:
        link.send(Resumed(spec.number, history_of(state["overnight"]["history"])))
    data_module = lightning_packages.adapt_data(lightning, data)
    data.trainer = trainer
    try:
        trainer.fit(model, datamodule=data_module, ckpt_path="state in memory" if state is not None else None)
    except TrialStopped as stopped:
        # The states stay on disk until the supervisor has recorded the outcome. A trial that is killed before then
        # resumes from them.
        outcome: Literal["stopped", "saved"] = "stopped" if stopped.decision is Decision.STOP else "saved"
        if one_batch is not None:
            return Finished(spec.number, outcome, notes=configured.notes, unsaved=tuple(callback.unsaved()))
        return Finished(spec.number, outcome, notes=(*notes, *_notes_of(callback, logger, state)))
    except Exception as error:
        if callback.restoring:
            return Finished(spec.number, "failed", "checkpoint_unusable", traceback.format_exc(), notes)
        configured.raise_if_monitor_is_missing(error, trainer.callback_metrics)
        raise
    notes = (*notes, *_notes_of(callback, logger, state))
    if not callback.history:
        raise RuntimeError(_NOTHING_TRAINED[unit_of(spec.config["trainer"])])
    if spec.keep_weights and not _save_weights(spec, callback.weights(trainer), link):
        return Finished(spec.number, "saved", notes=notes)
    return Finished(spec.number, "complete", notes=notes)


def _callback_of(spec: TrialSpec) -> type[TrialCallback]:
    return ValidationCallback if counts_validations(spec.config["trainer"]) else TrialCallback


def _show_life(spec: TrialSpec, link: Link, waits_for: str) -> None:
    """Tell the supervisor that the trial waits for prepare_data. Stop if it says so; a state on disk stays there."""
    link.send(Alive(spec.number, waits_for))
    if link.stop_wanted():
        raise TrialStopped(Decision.SAVE_AND_STOP)


def _notes_of(callback: TrialCallback, logger: Any, state: dict[str, Any] | None) -> tuple[str, ...]:
    """Return what a trial that resumed lacks, and what it did not log, as lines for its page."""
    lacks = (f"resumed without {', '.join(callback.lost)}",) if state is not None and callback.lost else ()
    return (*lacks, *logger.log.notes.values())


def start_process(spec: TrialSpec) -> None:
    """Set the threads, the log level and the seeds that a trial asks for."""
    torch.set_num_threads(spec.threads)
    silence_lightning()
    pl.seed_everything(spec.seed, workers=True, verbose=False)


def make_trainer(
    lightning: Any, spec: TrialSpec, logger: Any, plugins: list[Any], callbacks: list[Any], **options: Any
) -> Any:
    """Build a Trainer of a Lightning package for the trial's device, without bar and checkpoints of its own."""
    checkpoints = (c for c in callbacks if isinstance(c, lightning.callbacks.Checkpoint))
    environments = importlib.import_module(f"{lightning.__name__}.plugins.environments")
    return lightning_packages.subclass(TrialTrainer, lightning.Trainer)(
        accelerator="gpu" if spec.device.startswith("cuda") else spec.device,
        devices=[int(spec.device.removeprefix("cuda:"))] if spec.device.startswith("cuda") else 1,
        # Inside a Slurm job Lightning would requeue the job; here the supervisor resumes trials.
        plugins=[*plugins, environments.LightningEnvironment()],
        default_root_dir=spec.checkpoint_folder,
        callbacks=callbacks,
        logger=logger,
        enable_checkpointing=any(not isinstance(c, TrialCallback) for c in checkpoints),
        enable_progress_bar=False,
        enable_model_summary=False,
        **options,
    )


def warm_up_process() -> None:
    """Run once what every trial starts with, before the process gets its trial.

    A forked process copies each page of memory on its first write. These are thousands of pages, for which the slot
    would otherwise wait.
    """
    torch.set_num_threads(1)
    pl.seed_everything(0, workers=True, verbose=False)
    # Not a dict: Hydra compares one with every imported module, which would copy all of them.
    instantiate({"_target_": "types.SimpleNamespace", "_convert_": "all", "nothing": [0]})


def silence_lightning() -> None:
    """Turn off Lightning's general hints, which would be in the log of every trial."""
    warnings.filterwarnings("ignore", message=".*LeafSpec.*", category=FutureWarning)  # Lightning's own use of torch
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")  # useless with one core per trial
    warnings.filterwarnings("ignore", message=".*smaller than the logging interval.*")  # epochs are reported anyway
    for logger in map(logging.getLogger, lightning_packages.NAMES):
        if logger.level != logging.WARNING:  # setting it walks through all loggers
            logger.setLevel(logging.WARNING)


def _save_weights(spec: TrialSpec, weights: dict[str, Any], link: Link) -> bool:
    """Save the trained weights. Wait while the disk is full; return False if the trial is to stop meanwhile."""
    while True:
        try:
            checkpoint.save_weights(spec.checkpoint_folder, weights)
            return True
        except checkpoint.DiskFull:
            if link.stop_wanted():
                return False
            link.send(Alive(spec.number))
            time.sleep(ALIVE_EVERY_S)
