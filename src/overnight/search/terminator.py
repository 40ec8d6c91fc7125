"""Optuna's terminators: whether what a search may still find is worth less than an error. Most of its evaluators need
torch, which the supervisor's side never imports, so all of them answer from a process of their own.

optuna.terminator is deprecated and leaves with Optuna 6, below which this project stays.
"""

from __future__ import annotations

import contextlib
import functools
import multiprocessing
import traceback
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any, Literal

import optuna
from optuna.distributions import BaseDistribution
from optuna.trial import create_trial

from overnight.config.sections import TerminatorSettings
from overnight.search.gp import Fork
from overnight.search.plan import Plan
from overnight.search.record import TrialRecord
from overnight.search.space import display_name
from overnight.system import child_process
from overnight.system.kill import discard

# For the word on the trials that there were before the launch; all later ones come while trials run.
FIRST_WORD_S = 60.0


@dataclass(frozen=True)
class Question:
    """All that a word depends on. complete: parameters, all of the space, and value of each trial, by number."""

    settings: TerminatorSettings
    seed: int
    direction: Literal["maximize", "minimize"]
    space: dict[str, BaseDistribution]
    complete: tuple[tuple[dict[str, Any], float], ...]


def judge(question: Question) -> tuple[float, float]:
    """What may still be gained, and the error below which it is not worth it. Imports torch for most evaluators."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(direction=question.direction)
    for params, value in question.complete:
        study.add_trial(create_trial(params=params, distributions=question.space, value=value))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # experimental, and deprecated at the same time
        improvement, error = _evaluators(question.settings, question.seed)
        gain = improvement.evaluate(study.trials, study.direction)
        return float(gain), float(error.evaluate(study.trials, study.direction))


@functools.lru_cache(maxsize=1)  # the median's threshold is found once, from the first trials, and takes a while
def _evaluators(settings: TerminatorSettings, seed: int) -> tuple[Any, Any]:
    from optuna import terminator

    improvement = {
        "regret_bound": lambda: terminator.RegretBoundEvaluator(seed=seed),
        "emmr": lambda: terminator.EMMREvaluator(seed=seed),
        "stagnation": lambda: terminator.BestValueStagnationEvaluator(settings.stagnation),
    }[settings.improvement]()
    if settings.error == "median":
        return improvement, terminator.MedianErrorEvaluator(improvement, threshold_ratio=settings.threshold)
    return improvement, terminator.StaticErrorEvaluator(settings.threshold)


def serve(connection: Connection) -> None:
    """Answer questions until nobody is left to ask."""
    child_process.begin(new_session=False)
    with contextlib.suppress(EOFError, OSError):
        while True:
            question = connection.recv()
            try:
                connection.send(judge(question))
            except Exception:
                connection.send(traceback.format_exc())


class Terminator:
    """The supervisor's end. Asks again after every trial that completes, without waiting for the answer, but where a
    launch finds trials enough: the same line given once more must not train another before it hears that the search is
    over."""

    def __init__(self, plan: Plan, fork: Fork) -> None:
        self._plan, self._fork = plan, fork
        self._space = plan.space.unconditional()
        self._started: tuple[BaseProcess, Connection] | None = None
        self._began = False
        self._asked = 0  # about so many trials, last
        self._pending = False
        self._word: str | None = None
        self.trouble: str | None = None  # why it can't tell; the search goes on without it

    def word(self, records: Iterable[TrialRecord]) -> str | None:
        """Why the search is over, as of the last answer; None where it is not."""
        settings = self._plan.settings.terminator
        if settings.improvement == "none" or self.trouble:
            return None
        first, self._began = not self._began, True
        complete = self._complete(records)
        if self._pending:
            self._hear(0.0)
        if not self._pending and len(complete) >= settings.min_trials and len(complete) != self._asked:
            self._ask(complete)
            self._hear(FIRST_WORD_S if first else 0.0)
        return self._word

    def close(self) -> None:
        if self._started is not None:
            process, connection = self._started
            self._started, self._pending = None, False
            connection.close()
            discard(process)

    def _complete(self, records: Iterable[TrialRecord]) -> tuple[tuple[dict[str, Any], float], ...]:
        done = sorted((r for r in records if r.state == "complete" and r.objective is not None), key=lambda r: r.number)
        points = [({n: r.params.get(display_name(n)) for n in self._space}, float(r.objective or 0.0)) for r in done]
        # The configuration as written may lie beside the space.
        return tuple((p, v) for p, v in points if all(_holds(d, p[n]) for n, d in self._space.items()))

    def _ask(self, complete: tuple[tuple[dict[str, Any], float], ...]) -> None:
        settings = self._plan.settings
        question = Question(settings.terminator, settings.seed, settings.study.direction, self._space, complete)
        if self._started is None:
            ours, theirs = multiprocessing.Pipe()
            self._started = self._fork(serve, theirs), ours
            theirs.close()
        self._asked, self._pending = len(complete), True
        try:
            self._started[1].send(question)
        except OSError as error:
            self._give_up(str(error))

    def _hear(self, within_s: float) -> None:
        assert self._started is not None
        try:
            if not self._started[1].poll(within_s):
                return
            answer = self._started[1].recv()
        except (EOFError, OSError) as gone:
            self._give_up(f"its process died: {gone}")
            return
        self._pending = False
        if isinstance(answer, str):
            self._give_up(answer.strip().splitlines()[-1])
            return
        gain, error = answer
        name = self._plan.settings.terminator.improvement
        said = f"after {self._asked} complete trials {gain:.3g} may still be gained, less than {error:.3g}"
        self._word = f"terminator={name}: {said}" if gain < error else None

    def _give_up(self, why: str) -> None:
        self.trouble = f"terminator: can't tell, and is asked no more: {why}"
        self.close()


def _holds(dist: BaseDistribution, value: Any) -> bool:
    try:
        return value is not None and bool(dist._contains(dist.to_internal_repr(value)))
    except (ValueError, TypeError):
        return False
