"""Ask the test set of any trial whose weights are kept, on a user's request."""

from __future__ import annotations

import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from overnight.config.problems import ConfigError
from overnight.protocol import Tested
from overnight.report import advice, winner
from overnight.runner import trial_process
from overnight.runner.trial_spec import trial_spec
from overnight.search.record import config_of
from overnight.study import requests
from overnight.study.snapshot import StudyView
from overnight.study.storage.access import require_writable
from overnight.system import forkserver
from overnight.system.devices import slot_devices
from overnight.tracking import summary

WARNING = (
    "The test set is no longer unseen. Do not choose a trial or a setting by these scores: the score of what you choose"
    " would be too good."
)


@dataclass(frozen=True)
class Scores:
    """Those of one trial on the test set.

    Attributes:
        is_answer: Whether the study had measured them for its answer, so that nothing was asked again.
        mlflow_error: Why MLflow does not show them; None if it does.
    """

    number: int
    metrics: dict[str, float]
    is_answer: bool = False
    mlflow_error: str | None = None


def ask(view: StudyView, number: int | None) -> Scores:
    """Evaluate the weights of a trial, or of the winner, on the test set, and keep that this was done.

    Raises:
        ConfigError: There are no weights, or the network can't be tested. The message says what to do.
    """
    location = view.plan.settings.location
    require_writable(location)
    _check_weights(view, number)
    checkpoint = winner.find_checkpoint(view, number)
    if checkpoint.study != view.name:  # the winner's, which a confirmation trained
        assert view.confirmation is not None
        known = view.confirmation.tests.get(checkpoint.number)
        if known is not None and known.metrics:
            return Scores(checkpoint.trial.number, known.metrics, is_answer=True)
    holder = view if checkpoint.study == view.name else view.confirmation
    assert holder is not None
    record, trial = holder.records[checkpoint.number], checkpoint.trial.number
    seed = record.confirms.seed if record.confirms is not None else view.plan.trial_seed(checkpoint.number)
    device = slot_devices(view.plan.settings.slots)[0]
    spec = trial_spec(
        holder.plan, record.number, config_of(record, holder.plan), seed, device,
        folder=checkpoint.path.parent, test=True,
    )  # fmt: skip
    forkserver.warm_up()
    with tempfile.TemporaryDirectory() as folder:
        process, messages = trial_process.run_alone(spec, Path(folder, "test.log"), view.plan.settings.trial.stall_s)
    tested = next((m for m in messages if isinstance(m, Tested)), None)
    if tested is None or tested.error:
        assert process.finished is not None
        lines = [tested.error] if tested else process.finished.detail.strip().splitlines() or ["it did not say why"]
        raise ConfigError([f"test: {view.name}/{trial} must have a test that logs a metric, got: {lines[-1]}"])
    at = time.time()
    requests.keep_test(location, view.name, trial, at, tested.metrics)
    mlflow_error = summary.log_test(location, view.uid, view.records[trial], at, tested.metrics)
    return Scores(trial, tested.metrics, mlflow_error=mlflow_error)


def _check_weights(view: StudyView, number: int | None) -> None:
    """Raise ConfigError, with the command that trains it again, for a trial whose weights are not kept."""
    if number is None or not 0 <= number < len(view.records):
        return
    record = view.records[number]
    if (view.plan.paths.checkpoint(number) / "weights.ckpt").exists():
        return
    keep = view.plan.settings.study.keep_checkpoints
    remedy = (
        f"`{advice.train_command(view.plan, record)} --test` trains it again" if record.done else "wait for its end"
    )
    raise ConfigError(
        [
            f"{view.name}/{number}: must have weights, and study.keep_checkpoints={keep} keeps those of the best "
            f"complete trials, got a trial without ({record.state}); {remedy}"
        ]
    )
