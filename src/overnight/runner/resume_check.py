"""Check that a trial which is interrupted and resumed trains as one that is not.

The trial's configuration is trained twice for a few epochs: in one process, and in one process for each epoch. Metrics
and states must be equal, bit for bit.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from overnight.protocol import Decision, Progress, TrialMessage
from overnight.runner import trial_process
from overnight.runner.trial_spec import trial_spec
from overnight.search.plan import Plan, devices_of
from overnight.search.record import TrialRecord, config_of, unit_of_trial
from overnight.trial.compare_states import state_differences


class TrainingFailed(Exception):
    """The trial could not be trained. The message is the last line of the reason."""


@dataclass(frozen=True)
class ResumeCheck:
    """Result of a check.

    Attributes:
        reports: number of epochs or validations that were compared.
        unit: which of the two.
        differences: what differs, one line each; empty if resuming is exact.
        notes: what the resumed trial reported about itself.
    """

    reports: int
    unit: str
    differences: tuple[str, ...]
    notes: tuple[str, ...]


def check_resume(plan: Plan, record: TrialRecord, reports: int, say: Callable[[str], None]) -> ResumeCheck:
    """Train a trial's configuration with and without interruptions, and compare. Nothing remains on disk but a log.

    Args:
        reports: number of epochs or validations to train.
        say: called with what the check is doing.

    Raises:
        TrainingFailed: if one of the trainings fails.
    """
    unit = unit_of_trial(record, plan)
    folder = plan.paths.checkpoints / f"resume-check-{record.number}"
    shutil.rmtree(folder, ignore_errors=True)
    try:
        say(f"training {reports} {unit}s without an interruption ...")
        whole, _ = _train(plan, record, folder / "whole", reports)
        resumed: list[Progress] = []
        notes: tuple[str, ...] = ()
        while len(resumed) < len(whole):
            say(f"training {unit} {len(resumed) + 1} of {len(whole)} in a process of its own ...")
            more, notes = _train(plan, record, folder / "resumed", len(resumed) + 1)
            if not more:
                break
            resumed += more
        differences = [
            *_metric_differences(whole, resumed, unit),
            *state_differences(folder / "whole", folder / "resumed"),
        ]
        return ResumeCheck(len(whole), unit, tuple(differences), notes)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _train(plan: Plan, record: TrialRecord, folder: Path, until: int) -> tuple[list[Progress], tuple[str, ...]]:
    """Train until the given number of reports, and return those of this process and the notes of the trial."""

    def answer(progress: Progress) -> Decision:
        return Decision.SAVE_AND_STOP if progress.index + 1 >= until else Decision.CONTINUE

    seed = plan.trial_seed(record.number) if record.confirms is None else record.confirms.seed
    spec = trial_spec(plan, record.number, config_of(record, plan), seed, devices_of(plan)[0], folder=folder).of_fold(0)
    log = plan.paths.logs / "resume-check.log"
    trial, messages = trial_process.run_alone(spec, log, plan.settings.trial.stall_s, answer=answer)
    finished = trial.finished
    assert finished is not None
    if finished.outcome == "failed":
        raise TrainingFailed((finished.detail.strip().splitlines() or [str(finished.reason)])[-1])
    return _reports(messages), finished.notes


def _reports(messages: list[TrialMessage]) -> list[Progress]:
    return [message for message in messages if isinstance(message, Progress)]


def _metric_differences(whole: list[Progress], resumed: list[Progress], unit: str) -> list[str]:
    if len(whole) != len(resumed):
        return [f"{len(resumed)} {unit}s instead of {len(whole)}"]
    return [
        f"{name} of {unit} {one.index + 1}: {other.metrics.get(name)} instead of {one.metrics.get(name)}"
        for one, other in zip(whole, resumed, strict=True)
        for name in sorted({*one.metrics, *other.metrics})
        if repr(one.metrics.get(name)) != repr(other.metrics.get(name))
    ]
