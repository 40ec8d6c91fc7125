"""Which trial runs next."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import TrialState

from overnight.config.values import same
from overnight.search import sampler
from overnight.search.attributes import ATTEMPTS, CONFIG, CONFIRMS, HISTORY, OUTSIDE, PARAMS, TRAINING, UNTIL, VALUES
from overnight.search.history import unpack_history
from overnight.search.plan import Plan
from overnight.search.record import Confirms, TrialRecord
from overnight.study.coordinator import Coordinator
from overnight.study.schedule import Schedule
from overnight.study.storage.exclusive import Choice, Claim, ExclusiveStorage
from overnight.study.storage.optuna_tables import make_trial_id
from overnight.study.trial_reader import RunningTrial, TrialReader
from overnight.system.helper_process import Fork


@dataclass(frozen=True)
class TrialAssignment:
    """A trial to run.

    Attributes:
        values: Searched key -> value.
        attempts: How often in a row it crashed without progress.
        until: The epochs after which it pauses; None to train to the end.
        had_other_owner: Whether another process may have written to its MLflow run.
    """

    number: int
    seed: int
    values: dict[str, Any]
    config: dict[str, Any]
    attempts: int
    until: int | None = None
    had_other_owner: bool = False


class TrialQueue:
    """Assigns the trials of an open study to this process, waiting ones before new ones."""

    def __init__(
        self, plan: Plan, study: optuna.Study, storage: ExclusiveStorage, reader: TrialReader, coordinator: Coordinator
    ) -> None:
        self._plan, self._study, self._storage = plan, study, storage
        self._reader, self._coordinator = reader, coordinator

    def use_helper_process(self, fork: Fork) -> None:
        """Run a sampler that needs torch in a process that `fork` starts."""
        assert isinstance(self._study.sampler, sampler.SeededSampler)
        self._study.sampler.set_fork(fork)

    def close(self) -> None:
        """End the sampler's helper process."""
        assert isinstance(self._study.sampler, sampler.SeededSampler)
        self._study.sampler.close()

    def is_spent(self) -> bool:
        """Whether the budget allows no new trial."""
        trials = self._reader.trials()
        if self._plan.settings.sampler.name == "grid":
            points = sum(not t.user_attrs.get(OUTSIDE) for t in trials)
            if points >= self._plan.n_points:
                return True
        return len(trials) >= self._plan.budget.trials

    def ask(self) -> TrialAssignment | None:
        """Return the next trial to run, or None once the budget is spent.

        Raises:
            Unreachable: The database is out of reach.
        """
        return self._claim("any")

    def ask_new(self) -> TrialAssignment | None:
        """Return a new trial even if others wait, or None once the budget is spent. Raises Unreachable."""
        return self._claim("new")

    def ask_for(self, number: int) -> TrialAssignment | None:
        """Return one waiting trial, or None if another process was first. Raises Unreachable."""
        return self._claim(number)

    def ask_scheduled(self, schedule: Schedule) -> TrialAssignment | None:
        """Return the trial that the scheduler chooses, or None if it chooses none now. Raises Unreachable."""
        return self._claim(schedule.choose)

    @contextmanager
    def held(self, choose: Callable[[Sequence[TrialRecord]], Sequence[int]]) -> Iterator[int | None]:
        """Keep a waiting trial from being assigned to any process for a block.

        Args:
            choose: Returns the numbers of some of the trials that wait, which it gets. It is called while no other
                process can claim a trial. The first one that belongs to no other process is taken.

        Yields:
            The number of the trial; None for none.

        Raises:
            Unreachable: The database is out of reach.
        """
        to_release: set[int] = set()

        def choice(unavailable: Collection[int]) -> Choice | None:
            waiting = [self._reader.read(t.number) for t in self._reader.trials() if t.state == TrialState.WAITING]
            number = next((n for n in choose(waiting) if n not in unavailable), None)
            if number is None:
                return None
            if self._coordinator.ownership(number) == "foreign":
                to_release.add(number)
            return Choice(number)

        try:
            yield self._storage.claim(self._study._study_id, choice, lambda: True)
        finally:
            self._coordinator.release(to_release)

    def enqueue(self, config: Mapping[str, Any]) -> int:
        """Return the number of a waiting trial of this configuration: a paused one to resume, or a new one."""
        settings = self._plan.settings
        training = {
            "seed": settings.seed,
            "metric": settings.study.metric,
            "direction": settings.study.direction,
            "objective": settings.study.objective,
        }
        for t in self._reader.trials():
            attrs = t.user_attrs
            if t.state == TrialState.WAITING and same(attrs.get(CONFIG), config) and attrs.get(TRAINING) == training:
                return t.number
        self._study.enqueue_trial({}, user_attrs={CONFIG: dict(config), TRAINING: training})
        return self._reader.trials()[-1].number

    def add_confirmation(self, config: Mapping[str, Any], params: Mapping[str, Any], confirms: Confirms) -> None:
        """Enqueue a run of a confirmation. params: of the trial that it confirms, for display."""
        attrs = {CONFIG: dict(config), PARAMS: dict(params), CONFIRMS: vars(confirms)}
        self._study.enqueue_trial({}, user_attrs=attrs)

    def _claim(self, which: Claim) -> TrialAssignment | None:
        study_id = self._study._study_id
        number = self._storage.claim(study_id, which, self.is_spent)
        if number is None:
            return None
        self._study._thread_local.cached_all_trials = None  # as Study.ask does: samplers read all trials again
        with self._storage.together():
            trial_id = make_trial_id(study_id, number)
            self._storage.set_trial_state_values(trial_id, TrialState.RUNNING)
            if not self._plan.pauses and self._storage.get_trial(trial_id).user_attrs.get(UNTIL) is not None:
                self._storage.set_trial_user_attr(trial_id, UNTIL, None)  # of another scheduler
            return self._assignment(optuna.Trial(self._study, trial_id))

    def _assignment(self, trial: optuna.Trial) -> TrialAssignment:
        attrs = trial.user_attrs
        values = attrs.get(VALUES, {})
        if VALUES in attrs:
            for name in self._storage.get_trial_system_attrs(trial._trial_id).get("fixed_params", {}):
                _suggest(trial, name, self._plan.space.names()[name])
        elif CONFIG not in attrs:
            values = self._plan.space.draw(lambda name, dist: _suggest(trial, name, dist), self._plan.baseline)
        config = attrs[CONFIG] if CONFIG in attrs else self._plan.config(values)
        seed = self._plan.trial_seed(0 if CONFIG in attrs else trial.number)
        if CONFIRMS in attrs:
            seed = Confirms(**attrs[CONFIRMS]).seed
        history = {e.index: e for e in unpack_history(trial.number, attrs.get(HISTORY))}
        reported = set(self._storage.get_trial(trial._trial_id).intermediate_values)
        self._reader.running[trial.number] = RunningTrial(trial, history, reported)
        had_other_owner = self._coordinator.had_other_owner(trial.number)
        return TrialAssignment(
            trial.number, seed, values, config, attrs.get(ATTEMPTS, 0), attrs.get(UNTIL), had_other_owner
        )


def _suggest(trial: optuna.Trial, name: str, dist: BaseDistribution) -> Any:
    if isinstance(dist, FloatDistribution):
        return trial.suggest_float(name, dist.low, dist.high, step=dist.step, log=dist.log)
    if isinstance(dist, IntDistribution):
        return trial.suggest_int(name, dist.low, dist.high, step=dist.step, log=dist.log)
    assert isinstance(dist, CategoricalDistribution)
    return trial.suggest_categorical(name, dist.choices)
