"""Suggestions of Optuna's Gaussian process sampler, which needs torch and therefore runs in a helper process."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import optuna
from optuna.distributions import BaseDistribution
from optuna.trial import TrialState, create_trial

from overnight.system.helper_process import Fork, HelperError, HelperProcess


@dataclass(frozen=True)
class Question:
    """Everything that a suggestion depends on.

    Attributes:
        complete: The parameters and the value of each complete trial.
        running: The parameters of each running trial.
    """

    seed: int
    direction: Literal["maximize", "minimize"]
    startup_trials: int
    space: dict[str, BaseDistribution]
    complete: tuple[tuple[dict[str, Any], float], ...]
    running: tuple[dict[str, Any], ...]


def suggest(question: Question) -> dict[str, Any]:
    """Suggest a value for every parameter of the space; for none before there are `startup_trials`. Imports torch."""
    import torch

    torch.set_num_threads(1)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    space = question.space
    study = optuna.create_study(direction=question.direction)
    for params, value in question.complete:
        study.add_trial(create_trial(params=params, distributions=space, value=value))
    for params in question.running:
        study.add_trial(create_trial(state=TrialState.RUNNING, params=params, distributions=space))
    trial = study.ask()
    sampler = optuna.samplers.GPSampler(
        seed=question.seed, n_startup_trials=question.startup_trials, warn_independent_sampling=False
    )
    return sampler.sample_relative(study, study.trials[trial.number], space)


class GpHelper:
    """Asks the helper process for suggestions."""

    def __init__(self, fork: Fork) -> None:
        self._helper = HelperProcess(fork, suggest)

    def ask(self, question: Question) -> dict[str, Any]:
        """Suggest a point. A process that dies is started again once.

        Raises:
            RuntimeError: There is no suggestion. The message has the reason and a remedy.
        """
        failure = ""
        for _ in range(2):
            try:
                self._helper.send(question)
                return dict(self._helper.receive())
            except HelperError as error:
                raise RuntimeError(
                    f"sampler: gp could not suggest a point; resume the study with sampler=tpe\n{error}"
                ) from None
            except (EOFError, OSError) as error:
                failure = self._helper.end_of(error)
        raise RuntimeError(f"sampler: the process of gp {failure} (tried twice); resume the study with sampler=tpe")

    def close(self) -> None:
        self._helper.close()
