"""A Gaussian process's suggestions, from a process of their own: its sampler needs torch, which the supervisor's side
never imports."""

from __future__ import annotations

import contextlib
import multiprocessing
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any, Literal

import optuna
from optuna.distributions import BaseDistribution
from optuna.trial import TrialState, create_trial

from overnight.system import child_process
from overnight.system.kill import discard

# Forks a process that calls a function with these arguments from the warm forkserver, which has torch.
Fork = Callable[..., BaseProcess]


@dataclass(frozen=True)
class Question:
    """All that a suggestion depends on. complete: parameters and value of each trial; running: parameters."""

    seed: int
    direction: Literal["maximize", "minimize"]
    startup_trials: int
    space: dict[str, BaseDistribution]
    complete: tuple[tuple[dict[str, Any], float], ...]
    running: tuple[dict[str, Any], ...]


def suggest(question: Question) -> dict[str, Any]:
    """Name -> value of every parameter of the space; empty before there are trials enough. Imports torch."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    space = question.space
    study = optuna.create_study(direction=question.direction)
    for params, value in question.complete:
        study.add_trial(create_trial(params=params, distributions=space, value=value))
    for params in question.running:
        study.add_trial(create_trial(state=TrialState.RUNNING, params=params, distributions=space))
    asking = study.ask()
    sampler = optuna.samplers.GPSampler(
        seed=question.seed, n_startup_trials=question.startup_trials, warn_independent_sampling=False
    )
    return sampler.sample_relative(study, study.trials[asking.number], space)


def serve(connection: Connection) -> None:
    """Answer questions until nobody is left to ask."""
    import torch

    child_process.begin(new_session=False)
    torch.set_num_threads(1)
    with contextlib.suppress(EOFError, OSError):
        while True:
            question = connection.recv()
            try:
                connection.send(suggest(question))
            except Exception:
                connection.send(traceback.format_exc())


class Helper:
    """The supervisor's end: starts the process at the first question, and again where it died."""

    def __init__(self, fork: Fork) -> None:
        self._fork = fork
        self._started: tuple[BaseProcess, Connection] | None = None

    def ask(self, question: Question) -> dict[str, Any]:
        """Raises RuntimeError, with the helper's own words, where it can't answer."""
        for _ in range(2):
            if self._started is None:
                ours, theirs = multiprocessing.Pipe()
                self._started = self._fork(serve, theirs), ours
                theirs.close()
            try:
                self._started[1].send(question)
                answer = self._started[1].recv()
            except (EOFError, OSError):
                self.close()
                continue
            if isinstance(answer, str):
                raise RuntimeError(
                    f"sampler: gp could not suggest a point; sampler=tpe goes on with the study\n{answer}"
                )
            return dict(answer)
        raise RuntimeError("sampler: the process that gp suggests in keeps dying; sampler=tpe goes on with the study")

    def close(self) -> None:
        if self._started is not None:
            process, connection = self._started
            self._started = None
            connection.close()
            discard(process)
