"""Forecast the time and the disk space of a study from a few measured epochs of the baseline."""

from __future__ import annotations

import random
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from overnight.protocol import EpochEnd
from overnight.runner import trial_process
from overnight.runner.trial_spec import trial_spec
from overnight.search.plan import Plan
from overnight.study import warm_start
from overnight.study.snapshot import view
from overnight.system import forkserver
from overnight.system.devices import slot_devices

# What a trial takes in the Optuna storage and in MLflow, measured on digits with three metrics.
_BYTES_PER_TRIAL, _BYTES_PER_EPOCH = 9_000, 1_400
_MEASURED_EPOCHS = 3


@dataclass(frozen=True)
class Forecast:
    """What a study would take.

    Attributes:
        points: of the search space; infinity for a continuous one.
        samples: configurations of the space, as key -> value.
        done: trials that have ended already.
        confirmations: the largest number of trials of the confirmation.
        seconds: wall clock time for the remaining trials and the confirmation, if nothing is pruned.
    """

    points: float
    samples: tuple[dict[str, Any], ...]
    done: int
    confirmations: int
    slots: int
    seconds: float
    disk_bytes: int
    seconds_per_epoch: float


@dataclass(frozen=True)
class Measurement:
    """A short training of the baseline.

    Attributes:
        start_s: from the start of the process to the start of its first epoch.
        epoch_s: of the fastest epoch after the first.
        weights_bytes: the size of the weights' file.
    """

    start_s: float
    epoch_s: float
    weights_bytes: int


class BaselineFailed(RuntimeError):
    """The baseline configuration does not train. The message is that of the trial."""


def forecast(plan: Plan, samples: int = 3) -> Forecast:
    """Measure a few epochs of the baseline, outside any study, and extrapolate.

    Raises:
        BaselineFailed: the baseline does not train.
        ConfigError: the study of a warm start does not exist.
    """
    plan, _ = warm_start.resolve(plan)
    settings = plan.settings
    epochs = settings.trainer.max_epochs
    folder = Path(tempfile.mkdtemp(prefix="overnight-"))
    try:
        measured = measure(plan, min(_MEASURED_EPOCHS, epochs), folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    done, confirmations = _progress(plan)
    remaining = max(plan.budget - done, 0) + confirmations
    slots = len(slot_devices(settings.slots))
    rng = random.Random(settings.seed)
    return Forecast(
        points=plan.n_points,
        samples=tuple(plan.sample(rng) for _ in range(samples)),
        done=done,
        confirmations=confirmations,
        slots=slots,
        seconds=-(-remaining // slots) * (measured.start_s + epochs * measured.epoch_s),
        disk_bytes=_disk_bytes(plan, remaining, slots, measured.weights_bytes),
        seconds_per_epoch=measured.epoch_s,
    )


def measure(plan: Plan, epochs: int, folder: Path) -> Measurement:
    """Train the baseline for a few epochs, outside any study. Raises BaselineFailed."""
    config = plan.config({})
    config["trainer"]["max_epochs"] = epochs
    spec = trial_spec(plan, 0, config, plan.trial_seed(0), slot_devices(1)[0], folder=folder)
    forkserver.warm_up()
    trial, messages = trial_process.run_alone(spec, folder / "log")
    assert trial.finished is not None
    if trial.finished.outcome != "complete":
        raise BaselineFailed(trial.finished.detail)
    ends = [m for m in messages if isinstance(m, EpochEnd)]
    seconds = [e.seconds for e in ends]
    start_s = ends[0].at - seconds[0] - trial.started_at
    return Measurement(start_s, min(seconds[1:] or seconds), (folder / "weights.ckpt").stat().st_size)


def _progress(plan: Plan) -> tuple[int, int]:
    """Return how many trials have ended, and how many the confirmation still needs."""
    seen, _ = view(plan.settings.location, plan.name)
    if seen is None:
        return 0, plan.confirmation_trials
    done = sum(r.done for r in seen.records)
    if seen.confirmation is None:
        return done, plan.confirmation_trials
    return done, sum(not r.done for r in seen.confirmation.records)


def _disk_bytes(plan: Plan, trials: int, slots: int, weights_bytes: int) -> int:
    stored = trials * (_BYTES_PER_TRIAL + plan.settings.trainer.max_epochs * _BYTES_PER_EPOCH)
    kept = plan.settings.study.keep_checkpoints * 2 * weights_bytes
    # A checkpoint holds the weights and, for most optimizers, two more tensors of their size. Each trial keeps two.
    checkpoints = slots * 2 * 3 * weights_bytes
    return stored + kept + checkpoints
