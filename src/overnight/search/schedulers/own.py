"""Schedulers that the configuration names by `_target_`: Optuna's pruners, and classes that pause and resume trials."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import optuna
from optuna.pruners import BasePruner

from overnight.config.problems import ConfigError, Problems
from overnight.config.settings import SchedulerSettings
from overnight.search import optuna_objects
from overnight.search.schedulers.interface import Answer, Resume, Scheduler, Start, Trial


def build(settings: SchedulerSettings, problems: Problems) -> BasePruner | Scheduler | None:
    """Build the scheduler that the configuration names by `_target_`; None where `problems` has grown.

    It runs in the supervisor, and decides from the study's trials alone.
    """
    assert settings.target is not None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        found: BasePruner | Scheduler | None = optuna_objects.build(
            settings.target, "scheduler", (BasePruner, Scheduler), problems
        )
    return found


class CheckedScheduler:
    """A scheduler of the user whose answers are checked.

    Args:
        name: Of its class, for messages.
        whole: Epochs, or validations, of a complete trial.
        unit: What they are.
    """

    def __init__(self, scheduler: Scheduler, name: str, whole: int, unit: str = "epoch") -> None:
        self._scheduler, self._name, self._whole, self._unit = scheduler, name, whole, unit

    def next(self, trials: Sequence[Trial], left: float) -> Start | Resume | None:
        """Return the answer of the scheduler. One that would cost more than what is left counts as None.

        Raises:
            ConfigError: The answer makes no sense, or the scheduler raised an error.
        """
        try:
            answer = self._scheduler.next(trials, left)
        except Exception as error:
            raise self._error(f"next raised {type(error).__name__}: {error}") from error
        if answer is None:
            return None
        if not isinstance(answer, Start | Resume):
            raise self._error(f"next must return Start, Resume or None, got {answer!r}")
        if not isinstance(answer.until, int) or not 1 <= answer.until <= self._whole:
            rule = f"until must be from 1 to {self._whole}, the {self._unit}s of a whole trial"
            raise self._error(f"{rule}, got {answer}")
        if isinstance(answer, Start):
            return answer if answer.until <= left else None
        trial = next((t for t in trials if t.number == answer.number), None)
        if trial is None or trial.state != "paused":
            state = "absent" if trial is None else trial.state
            raise self._error(f"next may resume paused trials only, got {answer} for one that is {state}")
        if answer.until <= trial.epochs:
            has = f"the {trial.epochs} {self._unit}s of trial {trial.number}"
            raise self._error(f"until must be above {has}, got {answer}")
        return answer if answer.until - trial.epochs <= left else None

    def report(self, number: int, epoch: int, score: float) -> Answer:
        """Return the answer of the scheduler. Raises ConfigError, as `next` does."""
        try:
            answer = self._scheduler.report(number, epoch, score)
        except Exception as error:
            raise self._error(f"report raised {type(error).__name__}: {error}") from error
        if not isinstance(answer, Answer):
            raise self._error(f"report must return Answer.GO_ON, Answer.PAUSE or Answer.STOP, got {answer!r}")
        return answer

    def _error(self, what: str) -> ConfigError:
        return ConfigError([f"scheduler: {self._name}.{what}; the study is stopped, its trials are saved"])
