"""A study as a sampler sees it whose trials are paused after different numbers of epochs. See `learning`."""

from __future__ import annotations

import copy
import math
import random
from collections.abc import Callable, Container, Mapping
from typing import Any

import optuna
from optuna.samplers import TPESampler
from optuna.trial import FrozenTrial, TrialState

from overnight.search.plan import Plan
from overnight.search.schedulers.interface import Trial
from overnight.search.schedulers.learning import CANDIDATES, RANDOM_SHARE, choose, good_trials, rung_to_learn_from
from overnight.search.schedulers.study import TrialsReader, rungs_of
from overnight.search.seeds import derive_seed


class LearnedStudy:
    """Makes the studies from which a sampler suggests: the trials of one rung, complete with their values there."""

    def __init__(self, plan: Plan) -> None:
        self._plan, self._reader = plan, TrialsReader(plan)

    def of(self, study: optuna.Study, number: int) -> optuna.Study:
        """Return what the sampler gets for the suggestion of trial `number`."""
        settings = self._plan.settings
        stored = study._storage.get_all_trials(study._study_id, deepcopy=False)
        trials = self._reader.read((t for t in stored if t.number != number), {})
        if settings.sampler.name in ("tpe", "gp"):
            scores = self._scores_of_one_rung(trials, number)
            return _shown(study, [self._complete(stored[n], score) for n, score in scores.items()])
        # The others know the points of all trials by their numbers, and need the whole of each generation. They learn
        # from the first rung, which every trial reaches.
        rung = min(rungs_of(trials), default=0)
        scores = {t.number: t.score_at(rung) for t in trials if t.state != "failed" and t.score_at(rung) > -math.inf}
        return _shown(
            study,
            [self._complete(t, scores[t.number]) if t.number in scores else _started(t, number) for t in stored],
        )

    def _scores_of_one_rung(self, trials: list[Trial], number: int) -> Mapping[int, float]:
        """Number -> score of the trials to learn from; none for a random suggestion."""
        settings = self._plan.settings
        rung = rung_to_learn_from(trials, rungs_of(trials), settings.sampler.startup_trials)
        rng = random.Random(derive_seed(settings.seed, "learning", number))
        return {} if rung is None or rng.random() < RANDOM_SHARE else choose(trials, rung, rng)

    def _complete(self, trial: FrozenTrial, score: float) -> FrozenTrial:
        shown = copy.copy(trial)
        sign = 1 if self._plan.settings.study.direction == "maximize" else -1
        shown.state, shown.values = TrialState.COMPLETE, [sign * score]
        shown.datetime_complete = shown.datetime_complete or shown.datetime_start
        return shown


class TpeOfRung(TPESampler):
    """Optuna's TPE (Bergstra et al. 2011) for few trials: it takes a third of them for good ones, Optuna a tenth.

    It passes over candidates that an earlier trial has. On a small grid these are most of them, and a redraw is random.

    Optuna has deprecated the argument for the good ones, so the attribute is set. It has no argument for the other, so
    the method that compares candidates is extended. Tests show that both have their effect.

    Args:
        is_tried: Whether an earlier trial has exactly these parameters, name -> value; None to pass over none.
    """

    def __init__(self, seed: int, is_tried: Callable[[Mapping[str, Any]], bool] | None = None) -> None:
        super().__init__(
            n_startup_trials=1,
            n_ei_candidates=CANDIDATES,
            multivariate=True,
            group=True,
            constant_liar=False,
            seed=seed,
        )
        self._gamma, self._is_tried = good_trials, is_tried

    def _compute_acquisition_func(self, samples: dict[str, Any], mpe_below: Any, mpe_above: Any) -> Any:
        values, space = super()._compute_acquisition_func(samples, mpe_below, mpe_above), mpe_below._search_space
        if self._is_tried is not None:
            for index in range(len(values)):
                params = {name: space[name].to_external_repr(drawn[index].item()) for name, drawn in samples.items()}
                if self._is_tried(params):
                    values[index] = -math.inf
        return values


def _shown(study: optuna.Study, trials: list[FrozenTrial]) -> optuna.Study:
    return optuna.Study(study.study_name, _ShownTrials(study._storage, study._study_id, trials))  # type: ignore[arg-type]


class _ShownTrials:
    """A storage that shows chosen trials of another one, and passes on everything else."""

    def __init__(self, storage: Any, study_id: int, trials: list[FrozenTrial]) -> None:
        self._storage, self._study_id, self._trials = storage, study_id, trials

    def get_study_id_from_name(self, study_name: str) -> int:  # noqa: ARG002
        return self._study_id  # known without the database, which may be away

    def get_all_trials(
        self,
        study_id: int,  # noqa: ARG002
        deepcopy: bool = True,
        states: Container[TrialState] | None = None,
    ) -> list[FrozenTrial]:
        trials = [t for t in self._trials if states is None or t.state in states]
        return copy.deepcopy(trials) if deepcopy else trials

    def __getattr__(self, name: str) -> Any:
        return getattr(self._storage, name)


def _started(trial: FrozenTrial, number: int) -> FrozenTrial:
    """A trial that waits at a rung, as one that runs: its point is taken. Not trial `number`, which asks."""
    if trial.number == number or trial.state != TrialState.WAITING or not trial.params:
        return trial
    shown = copy.copy(trial)
    shown.state = TrialState.RUNNING
    return shown
