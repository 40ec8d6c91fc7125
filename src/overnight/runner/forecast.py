"""Forecast time and disk space of a study from a few measured epochs or validations at both ends of its space."""

from __future__ import annotations

import math
import random
import shutil
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import psutil

from overnight.config.trainer import unit_of
from overnight.protocol import Decision, Progress
from overnight.runner import preflight, trial_process
from overnight.runner.preflight import DryRun
from overnight.runner.trial_spec import trial_spec
from overnight.search import deadline
from overnight.search.plan import Plan, devices_of, random_point
from overnight.search.record import TrialRecord
from overnight.search.schedulers.expected import expected_search
from overnight.search.schedulers.study import first_rung, rungs_of, trained_epochs, trials_of
from overnight.study import warm_start
from overnight.study.snapshot import view
from overnight.system import forkserver
from overnight.system.devices import cores, slot_devices

# What a trial takes in the Optuna storage and in MLflow, measured on digits with three metrics.
_BYTES_PER_TRIAL, _BYTES_PER_EPOCH = 9_000, 1_400
_MEASURED = 3  # epochs or validations
# A checkpoint holds the weights and, for most optimizers, two more tensors of their size.
_WEIGHTS_PER_STATE = 3
# Seconds after which a configuration is measured no further. An epoch may take an hour.
_MEASURE_S = 30.0
# Configurations that are measured: the ends of the space for up to four options of data and model.
_MAX_MEASURED = 8
# Seconds that the report of a study takes at least; at most it takes `deadline.closing_s`.
_MIN_CLOSING_S = 2.0


@dataclass(frozen=True)
class Measurement:
    """A short training of one configuration.

    Attributes:
        name: for messages, e.g. "largest configuration, width=16".
        units: epochs, or validations, of a whole trial of this configuration.
        start_s: from the start of the process to the start of its first unit.
        unit_s: of the fastest unit after the first. At least so long, if `is_cut`.
        is_cut: no unit ended within the time for measuring, or the trial does not tell how many it has.
        weights_bytes: the size of the weights' file; 0 if none was written.
        first_extra_s: by which its first unit took longer. Each process has one.
    """

    name: str
    units: int
    start_s: float
    unit_s: float
    is_cut: bool
    weights_bytes: int
    unit: Literal["epoch", "validation"] = "epoch"
    first_extra_s: float = 0.0

    @property
    def trial_s(self) -> float:
        """Seconds of a whole trial."""
        return self.start_s + self.units * self.unit_s


@dataclass(frozen=True)
class Search:
    """What a search still does, if all of its trials take as long as one that was measured.

    Attributes:
        trials: those that start, and, where trials are paused, those that have started; an estimate then.
        complete: those of them that train to their last epoch, if no trial is ended early.
        seconds: wall clock time.
        epochs: that it trains in all; None where the budget is a number of trials.
    """

    trials: int
    complete: int
    seconds: float
    epochs: int | None = None


@dataclass(frozen=True)
class Forecast:
    """What a study would take.

    Attributes:
        points: of the search space; infinity for a continuous one.
        samples: configurations of the space, as key -> value.
        searches: the search with the fastest and with the slowest measured configuration.
        pauses: whether the scheduler pauses trials.
        epoch_limit: of all trials together; None where only the number of trials is limited.
        trained_epochs: of the search, so far.
        confirmations: the largest number of trials of the confirmation.
        scheduler: the user's class that decides how many trials start; empty where it is known.
        at_once: trials that really run side by side: as many as there are slots, and cores for them.
        seconds: the least and the most wall clock time, from the command to its answer.
        fastest, slowest: the measured configurations whose trials take the least and the most time.
    """

    points: float
    samples: tuple[dict[str, Any], ...]
    searches: tuple[Search, Search]
    pauses: bool
    epoch_limit: int | None
    trained_epochs: int
    confirmations: int
    scheduler: str
    slots: int
    at_once: int
    seconds: tuple[float, float]
    disk_bytes: float
    fastest: Measurement
    slowest: Measurement


class MeasurementFailed(RuntimeError):
    """A configuration does not train. The message is that of the trial.

    Attributes:
        name: of the configuration.
    """

    def __init__(self, name: str, detail: str) -> None:
        super().__init__(detail)
        self.name = name


def forecast(plan: Plan, samples: int = 3) -> Forecast:
    """Measure a few epochs at both ends of the search space, outside any study, and extrapolate.

    Raises:
        MeasurementFailed: a configuration does not train.
        ConfigError: the study of a warm start does not exist.
    """
    plan, _ = warm_start.resolve(plan)
    forkserver.warm_up()
    forkserver.is_warm(_MEASURE_S)
    start_s = time.time() - psutil.Process().create_time()  # a launch takes as long until its first trial
    slots = len(devices_of(plan))
    at_once = min(slots, cores())
    measured = measure(plan, ends_of_space(plan), at_once)
    fastest, slowest = (choose(measured, key=lambda m: m.trial_s) for choose in (min, max))
    records, confirmations = _progress(plan)
    fast, slow = (rest_of_search(plan, records, m, slots, at_once) for m in (fastest, slowest))
    least, most = (
        search.seconds + seconds_of(confirmations, at_once, m.trial_s)
        for search, m in ((fast, fastest), (slow, slowest))
    )
    rng, scheduler = random.Random(plan.settings.seed), plan.settings.scheduler
    weights_bytes = max(m.weights_bytes for m in measured)
    return Forecast(
        points=plan.n_points,
        samples=tuple(random_point(plan, rng) for _ in range(samples)),
        searches=(fast, slow),
        pauses=plan.pauses,
        epoch_limit=plan.budget.epoch_limit,
        trained_epochs=trained_epochs(records),
        confirmations=confirmations,
        scheduler=scheduler.label if scheduler.name == "own" else "",
        slots=slots,
        at_once=at_once,
        seconds=(start_s + least + _MIN_CLOSING_S, start_s + most + deadline.closing_s(slow.trials + confirmations)),
        disk_bytes=_disk_bytes(plan, slow, confirmations, slowest.units, slots, weights_bytes),
        fastest=fastest,
        slowest=slowest,
    )


def rest_of_search(
    plan: Plan, records: Sequence[TrialRecord], measured: Measurement, slots: int, at_once: int
) -> Search:
    """Return what a search still does, after these trials, if all of its trials are like the measured one.

    A scheduler of the user is taken for quota halving. Its epochs are the same; it may start more processes, or fewer.
    """
    if not plan.pauses:
        trials = max(plan.budget.trials - sum(r.done for r in records), 0)
        return Search(trials, trials, seconds_of(trials, at_once, measured.trial_s))
    sent_to = rungs_of(trials_of(records, plan.settings))
    rung = min(sent_to) if sent_to else first_rung(plan, measured.unit_s)
    whole = expected_search(
        plan.units,
        rung,
        plan.budget.epochs,
        slots,
        plan.budget.trial_limit,
        plan.finalists,
        plan.settings.seed,
    )
    left = max(whole.epochs - trained_epochs(records), 0)
    starts = whole.processes * left / whole.epochs
    seconds = (left * measured.unit_s + starts * (measured.start_s + measured.first_extra_s)) / at_once
    return Search(max(whole.trials, len(records)), whole.complete, seconds, whole.epochs)


def seconds_of(trials: int, at_once: int, trial_s: float) -> float:
    """Return the wall clock time of so many trials, if each takes `trial_s` seconds."""
    return math.ceil(trials / at_once) * trial_s


def ends_of_space(plan: Plan) -> list[DryRun]:
    """Return configurations that take the least and the most time, for each searched option of data and model.

    The most time takes the largest network with the smallest batches.
    """
    return preflight.dry_runs_for(plan, smallest_batch=True)[:_MAX_MEASURED]


def measure(plan: Plan, configurations: Sequence[DryRun], at_once: int) -> list[Measurement]:
    """Train configurations for a few epochs, outside any study, as many at once as a study would.

    Raises:
        MeasurementFailed: one of them does not train.
    """
    folder = Path(tempfile.mkdtemp(prefix="overnight-"))
    # A single configuration is measured beside copies of itself: trials side by side take longer than one alone.
    jobs = [*enumerate(configurations), *((i, configurations[0]) for i in range(len(configurations), at_once))]
    devices = slot_devices(at_once, plan.settings.trainer.accelerator)
    try:
        with ThreadPoolExecutor(at_once) as pool:
            measured = pool.map(
                lambda job: _measure(plan, job[1], devices[job[0] % at_once], folder / str(job[0])), jobs
            )
            return [*measured][: len(configurations)]
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _measure(plan: Plan, configuration: DryRun, device: str, folder: Path) -> Measurement:
    config = plan.config(configuration.values)
    trainer = config["trainer"]
    unit, units = unit_of(trainer), trainer["max_epochs"]
    if unit == "epoch":
        trainer["max_epochs"] = min(_MEASURED, units)

    def answer(done: Progress) -> Decision:  # the state tells how large the weights are
        enough = unit == "validation" and done.index + 1 >= _MEASURED
        return Decision.SAVE_AND_STOP if enough else Decision.CONTINUE

    spec = trial_spec(plan, 0, config, plan.trial_seed(0), device, folder=folder).of_fold(0)
    folder.mkdir()
    trial, messages = trial_process.run_alone(spec, folder / "log", until=time.time() + _MEASURE_S, answer=answer)
    assert trial.finished is not None
    if trial.finished.outcome == "failed" and trial.finished.reason != "timed_out":
        raise MeasurementFailed(configuration.name, trial.finished.detail)
    sizes = [(folder / "weights.ckpt", 1), (folder / "state.ckpt", _WEIGHTS_PER_STATE)]
    weights_bytes = next((file.stat().st_size // share for file, share in sizes if file.exists()), 0)
    ends = [m for m in messages if isinstance(m, Progress)]
    if unit == "validation":
        units = next((e.total for e in reversed(ends) if e.total is not None), -1)
    units *= 1 if units == -1 else plan.settings.study.folds or 1
    return measurement_of(configuration.name, units, trial.started_at, ends, weights_bytes, unit)


def measurement_of(
    name: str,
    units: int,
    started_at: float,
    ends: Sequence[Progress],
    weights_bytes: int,
    unit: Literal["epoch", "validation"] = "epoch",
) -> Measurement:
    """Return what the first progress of a trial tells of the whole trial. units: -1 if it does not tell how many."""
    if not ends:
        return Measurement(name, max(units, 1), 0.0, _MEASURE_S, True, weights_bytes, unit)
    seconds = [e.seconds for e in ends]
    start_s = ends[0].at - seconds[0] - started_at
    known = units if units != -1 else len(ends)
    unit_s = min(seconds[1:] or seconds)
    extra_s = max(seconds[0] - unit_s, 0.0)
    return Measurement(name, known, start_s, unit_s, units == -1, weights_bytes, unit, extra_s)


def _progress(plan: Plan) -> tuple[Sequence[TrialRecord], int]:
    """Return the trials of the search so far, and how many the confirmation still needs."""
    seen, _ = view(plan.settings.location, plan.name)
    if seen is None:
        return (), plan.confirmation_trials
    if seen.confirmation is None:
        return seen.records, plan.confirmation_trials
    return seen.records, sum(not r.done for r in seen.confirmation.records)


def _disk_bytes(plan: Plan, search: Search, confirmations: int, units: int, slots: int, weights_bytes: int) -> float:
    trials = search.trials + confirmations
    stored_units = trials * units if search.epochs is None else search.epochs + confirmations * units
    stored = trials * _BYTES_PER_TRIAL + stored_units * _BYTES_PER_EPOCH
    kept = plan.settings.study.keep_checkpoints * 2 * weights_bytes
    checkpoints = slots * 2 * _WEIGHTS_PER_STATE * weights_bytes  # each trial keeps two
    # Most configurations are smaller than the largest one, whose weights these are.
    paused = (search.trials - search.complete) * _WEIGHTS_PER_STATE * weights_bytes / 2
    keep_gib = plan.settings.scheduler.keep_gib
    return stored + kept + checkpoints + (paused if keep_gib is None else min(paused, keep_gib * 2**30))
