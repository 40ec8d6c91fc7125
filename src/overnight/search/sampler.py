"""Optuna's samplers, seeded so that an interruption changes nothing."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Set
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.samplers import BaseSampler, BruteForceSampler, CmaEsSampler, QMCSampler, RandomSampler, TPESampler
from optuna.trial import FrozenTrial, TrialState

from overnight.search.attributes import OUTSIDE, SAMPLER
from overnight.search.custom_sampler import CustomSampler, make_question
from overnight.search.distributions import single_value
from overnight.search.gp import GpHelper, Question
from overnight.search.plan import Plan
from overnight.search.schedulers.expected import trials_of_epochs
from overnight.search.schedulers.learned_study import LearnedStudy, TpeOfRung
from overnight.search.seeds import derive_seed
from overnight.system.helper_process import Fork

# A point that an earlier trial has is drawn again, at most this many times.
MAX_REDRAWS = 10


def sampler_notes(plan: Plan) -> list[str]:
    """What the sampler can't do with the space, and what it does instead, one line each."""
    name, space = plan.settings.sampler.name, plan.space
    notes = []
    joint = _joint_space(plan)
    if joint:
        apart = [n for n, dist in space.names().items() if n not in joint and not dist.single()]
        what = "categories, and " if name == "cma_es" else ""
        if apart:
            notes.append(
                f"sampler: {name} draws at random {what}what not every trial has: {', '.join(apart)}; tpe models those"
            )
    size, (trials, about) = plan.n_points, _trials(plan)
    if name == "grid" and size > trials:
        alone = " without study.budget" if plan.pauses and plan.settings.study.budget is not None else ""
        notes.append(
            f"sampler: grid will try {about}{trials} of {size:,.0f} points; study.trials={size:.0f}{alone} tries them "
            f"all"
        )
    elif name != "grid" and space.parameters and size < trials:
        notes.append(
            f"search: there are {size:,.0f} points for {about}{trials} trials; once each has been tried, points are "
            f"trained again with another seed"
        )
    return notes


def _trials(plan: Plan) -> tuple[int, str]:
    """The number of trials, and "about " where only their epochs are known: then it is the number for early pauses."""
    most, epochs = plan.budget.trials, plan.budget.epoch_limit
    if epochs is None or plan.settings.scheduler.target is not None:
        return most, ""
    expected = trials_of_epochs(epochs, plan.units, plan.settings.scheduler.min_epochs or 1)
    return (expected, "about ") if expected < most else (most, "")


class SeededSampler(BaseSampler):
    """Draws the whole point of a trial at once, with the sampler that the plan names.

    That sampler is created for each trial, with a seed from (study seed, trial number). Parameters that are drawn
    independently have a seed from (study seed, trial number, parameter name). A sampler that is seeded once repeats its
    first suggestions after a restart. This one suggests what it would have suggested without the interruption, be it
    between two trials or during a suggestion.

    A point that an earlier trial has, in whatever state, is drawn again with another seed, up to MAX_REDRAWS times.
    After that it is kept and trained with its trial's own seed: a second sample of a noisy score, which Optuna's
    samplers treat as such. Once every point of the space has been tried, points are not drawn again.
    """

    def __init__(self, plan: Plan) -> None:
        self._plan, self._is_finite = plan, plan.n_points < math.inf
        self._learned = LearnedStudy(plan)
        self._helper: GpHelper | None = None
        self._custom: CustomSampler | None = None

    def set_fork(self, fork: Fork) -> None:
        """Run what needs torch, and samplers of the user, in a process that `fork` makes."""
        self._helper, self._custom = GpHelper(fork), CustomSampler(fork)

    def close(self) -> None:
        if self._helper is not None and self._custom is not None:
            self._helper.close()
            self._custom.close()

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:  # noqa: ARG002
        return self._plan.space.names()

    def sample_relative(
        self,
        study: optuna.Study,
        trial: FrozenTrial,
        search_space: dict[str, BaseDistribution],  # noqa: ARG002
    ) -> dict[str, Any]:
        with _without_experimental_warnings():
            tried = self._tried_points(study, trial)
            if self._plan.pauses:
                study = self._learned.of(study, trial.number)
            point = self._draw_point(study, trial, 0, tried=tried)
            for attempt in range(1, MAX_REDRAWS + 1):
                if _identity(point) not in tried:
                    break
                point = self._draw_point(study, trial, attempt)
            if any(point.get(name) != value for name, value in trial.params.items()):
                # The suggestion was interrupted, and the other trials have changed since. Keep what was stored.
                point = self._draw_point(study, trial, 0, trial.params, tried)
            return point

    def _make_sampler(self, seed: int, number: int, attempt: int, tried: Set[frozenset[Any]]) -> BaseSampler:
        """Make the sampler of the plan for trial `number`. attempt: 0, or the number of the redraw."""
        settings = self._plan.settings.sampler
        if settings.name == "tpe" and self._plan.pauses:
            # It passes over points that were tried. Where all its candidates were, a redraw is random.
            return RandomSampler(seed=seed) if attempt else TpeOfRung(seed, self._is_tried(tried))
        if settings.name == "tpe":  # Bergstra et al. 2011; multivariate: Falkner et al. 2018
            return TPESampler(
                n_startup_trials=settings.startup_trials, multivariate=True, group=True, constant_liar=True, seed=seed
            )
        if settings.name == "cma_es":  # Hansen 2016
            return CmaEsSampler(n_startup_trials=settings.startup_trials, warn_independent_sampling=False, seed=seed)
        if settings.name == "grid":
            return _Grid(seed=seed)
        if settings.name == "gp" and not attempt:  # another seed would hardly move its optimum: a redraw is random
            assert self._helper is not None, "set_fork comes first"
            return _Gp(self._plan, seed, self._helper)
        if settings.name == "qmc" and not attempt:  # the sequence has one point for a trial: a redraw is random
            index = max(number - 1, 0)  # trial 0 is the baseline
            return _Sobol(index, derive_seed(self._plan.settings.seed, "sampler"), RandomSampler(seed=seed))
        return RandomSampler(seed=seed)

    def _tried_points(self, study: optuna.Study, trial: FrozenTrial) -> set[frozenset[Any]]:
        """The points that are drawn again; none where the space is infinite or every point has been tried."""
        if not self._is_finite or self._plan.settings.sampler.name == "grid":
            return set()
        others = study._storage.get_all_trials(study._study_id, deepcopy=False)
        tried = {_identity(t.params) for t in others if t.number != trial.number}
        return tried if len(tried) < self._plan.n_points else set()

    def _is_tried(self, tried: Set[frozenset[Any]]) -> Callable[[Mapping[str, Any]], bool] | None:
        """Whether parameters, of which TPE leaves out those with one value, are among the points that were tried."""
        if not tried:
            return None
        single = {name: single_value(dist) for name, dist in self._plan.space.names().items() if dist.single()}
        return lambda params: _identity({**single, **params}) in tried

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """Sample a parameter that the plan does not have."""
        seed = derive_seed(self._plan.settings.seed, "sampler", trial.number, param_name)
        return RandomSampler(seed=seed).sample_independent(study, trial, param_name, param_distribution)

    def _draw_point(
        self,
        study: optuna.Study,
        trial: FrozenTrial,
        attempt: int,
        fixed: Mapping[str, Any] = MappingProxyType({}),
        tried: Set[frozenset[Any]] = frozenset(),
    ) -> dict[str, Any]:
        """Draw a whole point, parameter name -> value. Parameters in `fixed` keep their value."""
        if self._plan.settings.sampler.name == "custom" and not attempt:  # a redraw is random
            return self._ask_custom(study, trial, fixed)
        again = (f"again-{attempt}",) if attempt else ()

        def seeded_sampler(*parts: str) -> BaseSampler:
            seed = derive_seed(self._plan.settings.seed, "sampler", trial.number, *parts, *again)
            return self._make_sampler(seed, trial.number, attempt, tried)

        joint_sampler, joint_space = seeded_sampler(), _joint_space(self._plan)
        if joint_space is None:
            joint_space = joint_sampler.infer_relative_search_space(study, trial)
        joint = joint_sampler.sample_relative(study, trial, joint_space)
        partial = copy.copy(trial)
        partial.params, partial.distributions = {}, {}

        def draw(name: str, dist: BaseDistribution) -> Any:
            if name in fixed:
                value = fixed[name]
            elif dist.single():
                value = single_value(dist)
            elif name in joint:
                value = joint[name]
            else:
                value = seeded_sampler(name).sample_independent(study, partial, name, dist)
            partial.params = {**partial.params, name: value}
            partial.distributions = {**partial.distributions, name: dist}
            return value

        self._plan.space.draw(draw, self._plan.baseline)
        return partial.params

    def _ask_custom(self, study: optuna.Study, trial: FrozenTrial, fixed: Mapping[str, Any]) -> dict[str, Any]:
        """Ask the sampler that the configuration names, and keep what it stored with the trial."""
        assert self._custom is not None, "set_fork comes first"
        if SAMPLER in trial.system_attrs and self._has_whole_point(trial):
            return dict(trial.params)  # it is resumed: what is stored belongs to its first suggestion
        trials = study._storage.get_all_trials(study._study_id, deepcopy=False)
        suggestion = self._custom.ask(make_question(self._plan, study.study_name, trials, trial.number, fixed))
        for key, value in {**suggestion.trial_attrs, SAMPLER: suggestion.study_attrs}.items():
            study._storage.set_trial_system_attr(trial._trial_id, key, value)
        return suggestion.params

    def _has_whole_point(self, trial: FrozenTrial) -> bool:
        try:
            self._plan.space.draw(lambda name, _: trial.params[name], self._plan.baseline)
        except KeyError:
            return False
        return True


# Variants of Optuna's samplers ---------------------------------------------------------------------------------------


class _Gp(RandomSampler):
    """A Gaussian process over the unconditional parameters, in a helper process. The others are random."""

    def __init__(self, plan: Plan, seed: int, helper: GpHelper) -> None:
        super().__init__(seed=seed)
        self._plan, self._own_seed, self._helper = plan, seed, helper

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        settings = self._plan.settings
        # After an interruption this trial has some of its parameters. They are not part of the question.
        trials = [
            (t, {n: t.params[n] for n in search_space})
            for t in study.get_trials(deepcopy=False)
            if t.number != trial.number and search_space.keys() <= t.params.keys()
        ]
        complete = tuple(
            (p, float(t.value)) for t, p in trials if t.state == TrialState.COMPLETE and t.value is not None
        )
        if len(complete) < settings.sampler.startup_trials or not search_space:
            return {}
        running = tuple(p for t, p in trials if t.state == TrialState.RUNNING)
        question = Question(
            self._own_seed, settings.study.direction, settings.sampler.startup_trials, search_space, complete, running
        )
        return self._helper.ask(question)


class _Grid(BruteForceSampler):
    """Optuna's brute-force sampler without the trials outside the space, which it would take for points of the grid."""

    @staticmethod
    def _populate_tree(tree: Any, trials: list[FrozenTrial], params: dict[str, Any]) -> None:
        points = [t for t in trials if not t.user_attrs.get(OUTSIDE)]
        BruteForceSampler._populate_tree(tree, points, params)


class _Sobol(QMCSampler):
    """Optuna's scrambled Sobol' sequence, whose index is the trial number.

    Optuna counts in the storage instead, where an interrupted suggestion would leave a gap.
    """

    def __init__(self, index: int, seed: int, independent: BaseSampler) -> None:
        super().__init__(scramble=True, seed=seed, independent_sampler=independent, warn_independent_sampling=False)
        self._index = index

    def _find_sample_id(self, study: optuna.Study, search_space: dict[str, BaseDistribution]) -> int:  # noqa: ARG002
        return self._index


def _joint_space(plan: Plan) -> dict[str, BaseDistribution] | None:
    """The parameters that a sampler without conditions draws jointly; None for a sampler that infers them itself."""
    unconditional = plan.space.unconditional()
    if plan.settings.sampler.name == "tpe":
        return None
    if plan.settings.sampler.name == "cma_es":
        return {n: d for n, d in unconditional.items() if not isinstance(d, CategoricalDistribution)}
    return unconditional if plan.settings.sampler.name in ("qmc", "gp") else {}


def _identity(params: Mapping[str, Any]) -> frozenset[Any]:
    return frozenset((name, type(value).__name__, value) for name, value in params.items())


@contextmanager
def _without_experimental_warnings() -> Iterator[None]:
    """Some of Optuna's samplers are marked experimental. Our tests pin what they suggest."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        yield
