"""Optuna's terminators: they end a search once the expected improvement is smaller than an error.

Most evaluators need torch, which the supervisor never imports, so all of them run in a helper process.

`optuna.terminator` is deprecated and will be removed in Optuna 6. The project requires an earlier version.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import optuna
from optuna.distributions import BaseDistribution
from optuna.trial import create_trial

from overnight.config.settings import TerminatorSettings
from overnight.search.plan import Plan
from overnight.search.record import TrialRecord
from overnight.system.helper_process import Fork, HelperError, HelperProcess

# How long a launch waits for the answer on the trials of earlier launches. Later answers arrive while trials run.
FIRST_ANSWER_S = 60.0


@dataclass(frozen=True)
class Question:
    """Everything that an answer depends on.

    Attributes:
        complete: The parameters, all of `space`, and the value of each complete trial, by trial number.
    """

    settings: TerminatorSettings
    seed: int
    direction: Literal["maximize", "minimize"]
    space: dict[str, BaseDistribution]
    complete: tuple[tuple[dict[str, Any], float], ...]


def evaluate(question: Question) -> tuple[float, float]:
    """Return the improvement that can still be expected, and the error. Imports torch for most evaluators."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(direction=question.direction)
    for params, value in question.complete:
        study.add_trial(create_trial(params=params, distributions=question.space, value=value))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # they are experimental, and deprecated at the same time
        improvement, error = _evaluators(question.settings, question.seed)
        expected = improvement.evaluate(study.trials, study.direction)
        return float(expected), float(error.evaluate(study.trials, study.direction))


@functools.lru_cache(maxsize=1)  # the median evaluator computes its threshold once, which takes a while
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


class Terminator:
    """Asks the helper process after every complete trial, without waiting for the answer.

    Only the first question of a launch is waited for: a search that is over must not train another trial when the same
    command is run again.

    Attributes:
        error: Why there is no answer. The search then runs without a terminator.
    """

    def __init__(self, plan: Plan, fork: Fork) -> None:
        self._plan = plan
        self._space = plan.space.unconditional()
        self.helper = HelperProcess(fork, evaluate)
        self._is_first = True
        self._asked = 0  # the number of complete trials in the last question
        self._is_pending = False
        self._stop_reason: str | None = None
        self.error: str | None = None

    def stop_reason(self, records: Iterable[TrialRecord]) -> str | None:
        """Why the search is over, by the last answer; None where it is not."""
        settings = self._plan.settings.terminator
        if settings.improvement == "none" or self.error:
            return None
        is_first, self._is_first = self._is_first, False
        complete = self._complete(records)
        if self._is_pending:
            self._receive(0.0)
        if not self._is_pending and len(complete) >= settings.min_trials and len(complete) != self._asked:
            self._ask(complete)
            self._receive(FIRST_ANSWER_S if is_first else 0.0)
        return self._stop_reason

    def close(self) -> None:
        self._is_pending = False
        self.helper.close()

    def _complete(self, records: Iterable[TrialRecord]) -> tuple[tuple[dict[str, Any], float], ...]:
        done = sorted((r for r in records if r.state == "complete" and r.objective is not None), key=lambda r: r.number)
        points = [(self._plan.space.encode(r.params), float(r.objective or 0.0)) for r in done]
        # The baseline may be outside the space.
        return tuple(({n: p[n] for n in self._space}, v) for p, v in points if self._space.keys() <= p.keys())

    def _ask(self, complete: tuple[tuple[dict[str, Any], float], ...]) -> None:
        settings = self._plan.settings
        self._asked, self._is_pending = len(complete), True
        try:
            self.helper.send(
                Question(settings.terminator, settings.seed, settings.study.direction, self._space, complete)
            )
        except (EOFError, OSError) as error:
            self._give_up(f"its process {self.helper.end_of(error)}")

    def _receive(self, timeout_s: float) -> None:
        try:
            if not self.helper.poll(timeout_s):
                return
            improvement, error = self.helper.receive()
        except HelperError as failure:
            self._give_up(str(failure).strip().splitlines()[-1])
        except (EOFError, OSError) as failure:
            self._give_up(f"its process {self.helper.end_of(failure)}")
        else:
            self._is_pending = False
            name = self._plan.settings.terminator.improvement
            expected = f"an improvement of {improvement:.3g} is expected, less than {error:.3g}"
            reason = f"terminator={name}: after {self._asked} complete trials {expected}"
            self._stop_reason = reason if improvement < error else None

    def _give_up(self, reason: str) -> None:
        self.error = f"terminator: failed, and is no longer used: {reason}"
        self.close()
