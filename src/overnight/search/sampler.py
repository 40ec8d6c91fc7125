"""Who suggests and who prunes: Optuna's samplers and pruners, seeded so that a restart changes nothing."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.pruners import BasePruner, HyperbandPruner, MedianPruner, NopPruner
from optuna.samplers import BaseSampler, BruteForceSampler, CmaEsSampler, QMCSampler, RandomSampler, TPESampler
from optuna.trial import FrozenTrial, TrialState

from overnight.config.sections import PrunerSettings
from overnight.search.attributes import OUTSIDE
from overnight.search.gp import Fork, Helper, Question
from overnight.search.plan import Plan, derive_seed

# A point that an earlier trial has already is drawn again, at most so many times.
REDRAWS = 10


def sampler(plan: Plan) -> BaseSampler:
    """The sampler that the plan names, its draws fixed by the study's seed and each trial's number."""
    return SeededSampler(plan)


def limits(plan: Plan) -> list[str]:
    """What the sampler can't do with the space, and what becomes of it, one line each."""
    name, space, trials = plan.settings.sampler.name, plan.space, plan.settings.study.trials
    said = []
    together = _together(plan)
    if together:
        apart = [n for n, dist in space.names().items() if n not in together and not dist.single()]
        what = "categories, and " if name == "cma_es" else ""
        if apart:
            said.append(
                f"sampler: {name} draws at random {what}what not every trial has: {', '.join(apart)}; tpe models those"
            )
    size = plan.n_points
    if name == "grid" and size > trials:
        said.append(f"sampler: grid will try {trials} of {size:,.0f} points; study.trials={size:.0f} tries them all")
    elif name != "grid" and space.parameters and size < trials:
        said.append(
            f"search: there are {size:,.0f} points for {trials} trials; once each has been tried, points are trained "
            f"again with another seed"
        )
    return said


def pruner(settings: PrunerSettings, max_epochs: int) -> BasePruner:
    """The pruner that the settings name; its steps are epochs trained. max_epochs: the whole resource of one trial."""
    if settings.name == "median":
        return MedianPruner(n_startup_trials=settings.startup_trials, n_warmup_steps=settings.warmup_epochs)
    if settings.name == "hyperband":
        return HyperbandPruner(
            min_resource=settings.min_epochs, max_resource=max_epochs, reduction_factor=settings.reduction_factor
        )
    return NopPruner()


class SeededSampler(BaseSampler):
    """Draws a trial's whole point at once, with a sampler made anew for each trial and seeded from (study seed, trial
    number), and, for each parameter that is drawn on its own, from (study seed, trial number, parameter name).

    A sampler seeded once replays its first suggestions after a restart. This one suggests what it would have, were
    the study never cut: between two trials, or in the middle of a suggestion.

    A point that an earlier trial has, whatever became of it, is drawn again with another seed, up to REDRAWS times;
    then it stands. It is trained anew, with the seed of its own trial: a second sample of a noisy score, which
    Optuna's samplers take as such. Where every point of the space has been tried nothing is drawn again.
    """

    def __init__(self, plan: Plan) -> None:
        self._plan, self._finite = plan, plan.n_points < math.inf
        self._helper: Helper | None = None

    def help_from(self, fork: Fork) -> None:
        """Have what needs torch run in a process that `fork` makes."""
        self._helper = Helper(fork)

    def close(self) -> None:
        if self._helper is not None:
            self._helper.close()

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:  # noqa: ARG002
        return self._plan.space.names()

    def sample_relative(
        self,
        study: optuna.Study,
        trial: FrozenTrial,
        search_space: dict[str, BaseDistribution],  # noqa: ARG002
    ) -> dict[str, Any]:
        with _quiet():
            point = self._point(study, trial, 0)
            tried = self._tried(study, trial)
            for attempt in range(1, REDRAWS + 1):
                if _identity(point) not in tried:
                    break
                point = self._point(study, trial, attempt)
            if any(point.get(name) != value for name, value in trial.params.items()):
                # It was cut in the middle of a suggestion, and the trials beside it stand differently since.
                point = self._point(study, trial, 0, trial.params)
            return point

    def _tried(self, study: optuna.Study, trial: FrozenTrial) -> set[frozenset[Any]]:
        """The points that are not to be drawn again; none where that can't be helped, or is no danger."""
        if not self._finite or self._plan.settings.sampler.name == "grid":
            return set()
        others = study._storage.get_all_trials(study._study_id, deepcopy=False)
        tried = {_identity(t.params) for t in others if t.number != trial.number}
        return tried if len(tried) < self._plan.n_points else set()

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """Of a name that the plan does not know."""
        seed = derive_seed(self._plan.settings.seed, "sampler", trial.number, param_name)
        return RandomSampler(seed=seed).sample_independent(study, trial, param_name, param_distribution)

    def _point(
        self, study: optuna.Study, trial: FrozenTrial, attempt: int, stands: Mapping[str, Any] = MappingProxyType({})
    ) -> dict[str, Any]:
        """Parameter name -> value of one whole point, which holds what `stands`."""
        name = self._plan.settings.sampler.name
        again = (f"again-{attempt}",) if attempt else ()

        def of(*parts: str) -> BaseSampler:
            seed = derive_seed(self._plan.settings.seed, "sampler", trial.number, *parts, *again)
            if name == "gp" and not attempt:  # another seed would hardly move its best: again means at random
                assert self._helper is not None, "help_from comes first"
                return _Gp(self._plan, seed, self._helper)
            return _MAKERS[name](self._plan, seed, trial.number, attempt)

        joint, together = of(), _together(self._plan)
        if together is None:
            together = joint.infer_relative_search_space(study, trial)
        relative = joint.sample_relative(study, trial, together)
        so_far = copy.copy(trial)
        so_far.params, so_far.distributions = {}, {}

        def draw(name: str, dist: BaseDistribution) -> Any:
            if name in stands:
                value = stands[name]
            elif dist.single():
                value = dist.choices[0] if isinstance(dist, CategoricalDistribution) else dist.low  # type: ignore[attr-defined]
            elif name in relative:
                value = relative[name]
            else:
                value = of(name).sample_independent(study, so_far, name, dist)
            so_far.params, so_far.distributions = {**so_far.params, name: value}, {**so_far.distributions, name: dist}
            return value

        self._plan.space.draw(draw, self._plan.baseline)
        return so_far.params


# The samplers ---------------------------------------------------------------------------------------------------------


def _tpe(plan: Plan, seed: int, number: int, attempt: int) -> BaseSampler:  # noqa: ARG001
    return TPESampler(
        n_startup_trials=plan.settings.sampler.startup_trials,
        multivariate=True,
        group=True,
        constant_liar=True,
        seed=seed,
    )


def _random(plan: Plan, seed: int, number: int, attempt: int) -> BaseSampler:  # noqa: ARG001
    return RandomSampler(seed=seed)


def _grid(plan: Plan, seed: int, number: int, attempt: int) -> BaseSampler:  # noqa: ARG001
    return _Grid(seed=seed)


def _qmc(plan: Plan, seed: int, number: int, attempt: int) -> BaseSampler:
    if attempt:
        return RandomSampler(seed=seed)  # the sequence has one point for a trial
    # Trial 0 is the configuration as written: the sequence begins with trial 1.
    return _Sobol(max(number - 1, 0), derive_seed(plan.settings.seed, "sampler"), RandomSampler(seed=seed))


def _cma_es(plan: Plan, seed: int, number: int, attempt: int) -> BaseSampler:  # noqa: ARG001
    return CmaEsSampler(
        n_startup_trials=plan.settings.sampler.startup_trials, warn_independent_sampling=False, seed=seed
    )


_MAKERS: dict[str, Callable[[Plan, int, int, int], BaseSampler]] = {
    "tpe": _tpe,
    "random": _random,
    "grid": _grid,
    "qmc": _qmc,
    "cma_es": _cma_es,
    "gp": _random,
}


class _Gp(RandomSampler):
    """A Gaussian process over what every trial has, asked in a helper process; the rest at random."""

    def __init__(self, plan: Plan, seed: int, helper: Helper) -> None:
        super().__init__(seed=seed)
        self._plan, self._own_seed, self._helper = plan, seed, helper

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        settings = self._plan.settings
        # This trial's own half-written parameters, after a cut, are no part of the question.
        whole = [
            (t, {n: t.params[n] for n in search_space})
            for t in study.get_trials(deepcopy=False)
            if t.number != trial.number and search_space.keys() <= t.params.keys()
        ]
        complete = tuple(
            (p, float(t.value)) for t, p in whole if t.state == TrialState.COMPLETE and t.value is not None
        )
        if len(complete) < settings.sampler.startup_trials or not search_space:
            return {}
        running = tuple(p for t, p in whole if t.state == TrialState.RUNNING)
        question = Question(
            self._own_seed, settings.study.direction, settings.sampler.startup_trials, search_space, complete, running
        )
        return self._helper.ask(question)


class _Grid(BruteForceSampler):
    """Optuna's, which takes every trial for a point of the grid, blind to trials whose values lie beside it."""

    @staticmethod
    def _populate_tree(tree: Any, trials: list[FrozenTrial], params: dict[str, Any]) -> None:
        points = [t for t in trials if not t.user_attrs.get(OUTSIDE)]
        BruteForceSampler._populate_tree(tree, points, params)


class _Sobol(QMCSampler):
    """Optuna's, with its place in the sequence given by the trial's number rather than by a count in the storage, in
    which a cut suggestion would leave a gap."""

    def __init__(self, index: int, seed: int, independent: BaseSampler) -> None:
        super().__init__(scramble=True, seed=seed, independent_sampler=independent, warn_independent_sampling=False)
        self._index = index

    def _find_sample_id(self, study: optuna.Study, search_space: dict[str, BaseDistribution]) -> int:  # noqa: ARG002
        return self._index


def _together(plan: Plan) -> dict[str, BaseDistribution] | None:
    """What a sampler that knows no conditions draws as one; None for a sampler that finds that out by itself."""
    always = plan.space.unconditional()
    if plan.settings.sampler.name == "tpe":
        return None
    if plan.settings.sampler.name == "cma_es":
        return {n: d for n, d in always.items() if not isinstance(d, CategoricalDistribution)}
    return always if plan.settings.sampler.name in ("qmc", "gp") else {}


def _identity(params: Mapping[str, Any]) -> frozenset[Any]:
    return frozenset((name, type(value).__name__, value) for name, value in params.items())


@contextmanager
def _quiet() -> Iterator[None]:
    """Half of Optuna's samplers are marked experimental; what they suggest is pinned by our tests."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        yield
