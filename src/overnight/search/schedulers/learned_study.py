"""A study as a sampler sees it whose trials are paused after different numbers of epochs. See `learning`."""

from __future__ import annotations

import copy
import random
from collections.abc import Container, Mapping
from typing import Any

import optuna
from optuna.samplers import TPESampler
from optuna.trial import FrozenTrial, TrialState

from overnight.search.plan import Plan
from overnight.search.schedulers.learning import CANDIDATES, RANDOM_SHARE, choose, good_trials, rung_to_learn_from
from overnight.search.schedulers.study import TrialsReader, rungs_of
from overnight.search.seeds import derive_seed


class LearnedStudy:
    """Makes the studies from which a sampler suggests: the trials of one rung, complete with their values there."""

    def __init__(self, plan: Plan) -> None:
        self._plan, self._reader = plan, TrialsReader(plan)

    def of(self, study: optuna.Study, number: int) -> optuna.Study:
        """Return what the sampler gets for the suggestion of trial `number`. It has no trials for a random one."""
        settings = self._plan.settings
        stored = study._storage.get_all_trials(study._study_id, deepcopy=False)
        trials = self._reader.read((t for t in stored if t.number != number), {})
        rungs = rungs_of(trials)
        # CMA-ES needs the whole of each generation, so it learns from the first rung, which all trials reach.
        is_cma = settings.sampler.name == "cma_es"
        rung = rung_to_learn_from(trials, rungs[:1] if is_cma else rungs, settings.sampler.startup_trials)
        rng = random.Random(derive_seed(settings.seed, "learning", number))
        scores: Mapping[int, float] = {}
        if rung is not None and rng.random() >= RANDOM_SHARE:
            draws_sample = settings.sampler.name == "tpe"
            scores = (
                choose(trials, rung, rng)
                if draws_sample
                else {t.number: t.score_at(rung) for t in trials if t.state != "failed" and t.epochs >= rung}
            )
        sign = 1 if settings.study.direction == "maximize" else -1
        learned = [_complete(stored[n], sign * score) for n, score in scores.items()]
        return optuna.Study(study.study_name, _OneRung(study._storage, learned))  # type: ignore[arg-type]


class TpeOfRung(TPESampler):
    """Optuna's TPE for few trials: it takes a third of them for good ones, where Optuna takes a tenth.

    Optuna has deprecated the argument for this, so the attribute is set. A test shows that it has its effect.
    """

    def __init__(self, seed: int) -> None:
        super().__init__(
            n_startup_trials=1,
            n_ei_candidates=CANDIDATES,
            multivariate=True,
            group=True,
            constant_liar=False,
            seed=seed,
        )
        self._gamma = good_trials


class _OneRung:
    """A storage that shows chosen trials of another one as complete, and passes on everything else."""

    def __init__(self, storage: Any, trials: list[FrozenTrial]) -> None:
        self._storage, self._trials = storage, trials

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


def _complete(trial: FrozenTrial, value: float) -> FrozenTrial:
    shown = copy.copy(trial)
    shown.state, shown.values = TrialState.COMPLETE, [value]
    shown.datetime_complete = shown.datetime_complete or shown.datetime_start
    return shown
