"""What a study would take: a few epochs of the configuration as written are measured, outside any study."""

from __future__ import annotations

import random
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from overnight.protocol import EpochEnd, TrialSpec
from overnight.runner import trial_process
from overnight.search.plan import Plan
from overnight.study import warm_start
from overnight.study.snapshot import view
from overnight.system import forkserver
from overnight.system.devices import slot_devices

# Bytes that a trial takes in ledger and MLflow: so much once, and so much an epoch (measured on digits, 3 metrics).
_BYTES_A_TRIAL, _BYTES_AN_EPOCH = 9_000, 1_400


@dataclass(frozen=True)
class Forecast:
    """What a study would take. seconds: wall clock for what is left of the budget, nothing pruned, and for the
    confirmation's trials, at most `confirmations`. bytes: on disk."""

    points: float
    samples: tuple[dict[str, Any], ...]
    done: int
    confirmations: int
    slots: int
    seconds: float
    disk_bytes: int
    seconds_an_epoch: float


class Untrained(RuntimeError):
    """The configuration as written failed; the message is the trial's own."""


def forecast(plan: Plan, samples: int = 3) -> Forecast:
    """Measure three epochs of the configuration as written, outside any study, and reckon from there.

    Raises Untrained, with the trial's own words, where that configuration does not train, and ConfigError where
    the study that it is to start from is not there.
    """
    plan, _ = warm_start.resolved(plan)
    settings = plan.settings
    folder = Path(tempfile.mkdtemp(prefix="overnight-"))
    try:
        start_s, epoch_s, weights = measure(plan, min(3, settings.trainer.max_epochs), folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    seen, _ = view(settings.location, plan.name)
    done = sum(r.done for r in seen.records) if seen is not None else 0
    confirmations = plan.confirmation_trials
    if seen is not None and seen.confirmation is not None:
        confirmations = sum(not r.done for r in seen.confirmation.records)
    left = max(plan.budget - done, 0) + confirmations
    slots = len(slot_devices(settings.slots))
    epochs = settings.trainer.max_epochs
    # A state holds the weights and, for most optimizers, two more tensors of their size; the one before is kept too.
    states = slots * 2 * 3 * weights
    disk = left * (_BYTES_A_TRIAL + epochs * _BYTES_AN_EPOCH) + settings.study.keep_checkpoints * 2 * weights + states
    rng = random.Random(settings.seed)
    return Forecast(
        plan.points,
        tuple(plan.sample(rng) for _ in range(samples)),
        done,
        confirmations,
        slots,
        -(-left // slots) * (start_s + epochs * epoch_s),
        disk,
        epoch_s,
    )


def measure(plan: Plan, epochs: int, folder: Path) -> tuple[float, float, int]:
    """Train the configuration as written for a few epochs, outside any study.

    Returns:
        Seconds from a trial's start to its first epoch's end less that epoch, seconds an epoch (the fastest after
        the first), and bytes of its weights. Raises Untrained with the trial's words where it failed.
    """
    config = plan.config({})
    config["trainer"]["max_epochs"] = epochs
    study = plan.settings.study
    spec = TrialSpec(
        plan.name,
        0,
        plan.trial_seed(0),
        config,
        study.metric,
        study.direction,
        study.objective,
        folder,
        every_s=float("inf"),
        device=slot_devices(1)[0],
        cache=plan.settings.location.paths.cache,
    )
    forkserver.warm_up()
    trial, said = trial_process.run_alone(spec, folder / "log")
    assert trial.finished is not None
    if trial.finished.ending != "complete":
        raise Untrained(trial.finished.detail)
    epochs_done = [m for m in said if isinstance(m, EpochEnd)]
    seconds = [e.seconds for e in epochs_done]
    first = epochs_done[0].at - seconds[0] - trial.started_at
    return first, min(seconds[1:] or seconds), (folder / "weights.ckpt").stat().st_size
