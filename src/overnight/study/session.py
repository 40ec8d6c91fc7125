"""The ledger: one study in Optuna's storage, the one truth about it.

Optuna keeps one float a step, so every metric of every epoch, with its time, is kept beside it: packed in one user
attribute a trial. A trial that stops unfinished goes back to WAITING and is handed out again with its number, its
parameters and its history.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass, field
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial, TrialState

from overnight.protocol import EpochEnd, Tested
from overnight.search import sampler
from overnight.search.gp import Fork
from overnight.search.plan import Plan
from overnight.search.record import (
    ASKED,
    ATTEMPTS,
    BASELINE,
    CONFIG,
    CONFIRMS,
    DETAIL,
    HISTORY,
    NOTES,
    OUTSIDE,
    PARAMS,
    PEAK,
    REASON,
    VALUES,
    Confirms,
    TrialRecord,
    objective_of,
    pack_history,
    record_of,
    unpack_history,
    values_of,
)
from overnight.study.snapshot import LAUNCH, LAUNCHED, LINKS, OVER, STOP, TESTS, TOLD, UID, WANTED, tests_of
from overnight.study.storage.database import dispose
from overnight.study.storage.exclusive import ExclusiveStorage
from overnight.study.storage.leased import LeasedStorage, Peers, Which
from overnight.study.storage.outage import Unreachable

_LAST_WORDS_S = 10.0  # for a ledger that is out of reach to be back, before what it lacks is left to those who go on


@dataclass(frozen=True)
class TrialAssignment:
    """A trial to be run. values: searched key -> value. attempts: how often in a row it crashed without progress.
    had_other_owner: whether another process may have told MLflow of it."""

    number: int
    seed: int
    values: dict[str, Any]
    config: dict[str, Any]
    attempts: int
    had_other_owner: bool = False


@dataclass
class _RunningTrial:
    trial: optuna.Trial
    history: dict[int, EpochEnd]
    reported: set[int]  # the steps that Optuna has, which a kill may have kept while the history lost them
    unwritten: bool = False


@dataclass
class StudySession:
    """An open study, held by this process alone or with others. Made by `open_study`; closed by `close`."""

    plan: Plan
    study: optuna.Study
    let_go: Callable[[], None]
    part_of: StudySession | None = None  # of a confirmation: its search, whose word to stop holds for both
    _live: dict[int, _RunningTrial] = field(default_factory=dict)
    _launched_s: float | None = None  # of the launch that this process works on

    # Trials out

    def ask(self) -> TrialAssignment | None:
        """The next trial to run, a paused one first; None where the budget is spent or on its way to be. Raises
        Unreachable."""
        if self.shared is not None:
            return self._claimed(self.shared, "any")
        trials = self.trials()
        if not any(t.state == TrialState.WAITING for t in trials) and self._spent(trials):
            return None
        with self.together():
            return self._assignment(self.study.ask())

    def _spent(self, trials: list[FrozenTrial]) -> bool:
        """Whether no new trial is to be made."""
        if self.plan.settings.sampler.name == "grid":
            points = sum(not t.user_attrs.get(OUTSIDE) for t in trials)
            if points >= self.plan.n_points:
                return True
        return len(trials) >= self.plan.settings.study.trials

    def help_from(self, fork: Fork) -> None:
        """Have a sampler that needs torch run in a process that `fork` makes."""
        assert isinstance(self.study.sampler, sampler.SeededSampler)
        self.study.sampler.help_from(fork)

    def ask_new(self) -> TrialAssignment | None:
        """A new trial, whoever waits; None where the budget is spent. Raises Unreachable."""
        if self.shared is not None:
            return self._claimed(self.shared, "new")
        if self._spent(self.trials()):
            return None
        with self.together():
            return self._assignment(optuna.Trial(self.study, self.storage.create_new_trial(self.study._study_id)))

    def ask_for(self, number: int) -> TrialAssignment | None:
        """One waiting trial, by its number; None where somebody else was first. Raises Unreachable."""
        if self.shared is not None:
            return self._claimed(self.shared, number)
        trial_id = self.trials()[number]._trial_id
        with self.together():
            self.storage.set_trial_state_values(trial_id, TrialState.RUNNING)
            return self._assignment(optuna.Trial(self.study, trial_id))

    def _claimed(self, storage: LeasedStorage, which: Which) -> TrialAssignment | None:
        number = storage.claim(self.study._study_id, which, lambda: self._spent(self.trials()))
        if number is None:
            return None
        trial_id = self.trials()[number]._trial_id
        with self.together():
            self.storage.set_trial_state_values(trial_id, TrialState.RUNNING)
            return self._assignment(optuna.Trial(self.study, trial_id))

    def enqueue(self, config: Mapping[str, Any]) -> int:
        """The number of a waiting trial of exactly this config: a paused one that goes on, or a new one."""
        s = self.plan.settings
        asked = {
            "seed": s.seed,
            "metric": s.study.metric,
            "direction": s.study.direction,
            "objective": s.study.objective,
        }
        for t in self.trials():
            if t.state == TrialState.WAITING and (t.user_attrs.get(CONFIG), t.user_attrs.get(ASKED)) == (config, asked):
                return t.number
        self.study.enqueue_trial({}, user_attrs={CONFIG: dict(config), ASKED: asked})
        return self.trials()[-1].number

    def add(self, config: Mapping[str, Any], params: Mapping[str, Any], confirms: Confirms) -> None:
        """Have a confirmation wait. params: what its trial of the search drew, to be shown."""
        attrs = {CONFIG: dict(config), PARAMS: dict(params), CONFIRMS: vars(confirms)}
        self.study.enqueue_trial({}, user_attrs=attrs)

    def _assignment(self, trial: optuna.Trial) -> TrialAssignment:
        attrs = trial.user_attrs
        values = values_of(self.storage.get_trial(trial._trial_id), self.plan) or {}
        if VALUES in attrs or attrs.get(BASELINE):
            for name in self.storage.get_trial_system_attrs(trial._trial_id).get("fixed_params", {}):
                _suggest(trial, name, self.plan.space.names()[name])
        elif CONFIG not in attrs:
            values = self.plan.space.draw(lambda name, dist: _suggest(trial, name, dist), self.plan.baseline)
        config = attrs[CONFIG] if CONFIG in attrs else self.plan.config(values)
        seed = self.plan.trial_seed(0 if CONFIG in attrs else trial.number)
        if CONFIRMS in attrs:
            seed = Confirms(**attrs[CONFIRMS]).seed
        history = {e.epoch: e for e in unpack_history(trial.number, attrs.get(HISTORY))}
        reported = set(self.storage.get_trial(trial._trial_id).intermediate_values)
        self._live[trial.number] = _RunningTrial(trial, history, reported)
        elsewhere = self.peers is not None and self.peers.had_other_owner(trial.number)
        return TrialAssignment(trial.number, seed, values, config, attrs.get(ATTEMPTS, 0), elsewhere)

    # Reports in

    def record(self, done: EpochEnd) -> bool:
        """Keep an epoch's metrics; False where the ledger had that epoch already and so keeps what it has."""
        live = self._live[done.number]
        if done.epoch in live.history:
            return False
        live.history[done.epoch] = done
        live.unwritten = True
        value = done.metrics.get(self.plan.settings.study.metric)
        if value is not None and math.isfinite(value) and done.epoch + 1 not in live.reported:
            with self._later():
                live.trial.report(value, done.epoch + 1)  # what pruners call a step is a whole epoch trained
        return True

    def should_prune(self, number: int) -> bool:
        return self._live[number].trial.should_prune()

    def flush(self) -> list[int]:
        """Write what was recorded since the last flush; the numbers of the trials that it was of.

        What a kill takes from memory, a trial's state still holds.
        """
        unwritten = [number for number, live in self._live.items() if live.unwritten]
        with self.together():
            for number in unwritten:
                live = self._live[number]
                live.trial.set_user_attr(HISTORY, pack_history(live.history.values()))
                live.unwritten = False
        return unwritten

    def progressed(self, number: int) -> None:
        """A state was saved: what crashes from here on has not crashed before."""
        if self._live[number].trial.user_attrs.get(ATTEMPTS):
            self._live[number].trial.set_user_attr(ATTEMPTS, 0)

    def weighed(self, number: int, peak_bytes: int) -> None:
        """Keep the most memory that a trial was seen to hold, over all its starts."""
        trial = self._live[number].trial
        if peak_bytes > trial.user_attrs.get(PEAK, 0):
            trial.set_user_attr(PEAK, peak_bytes)

    # Trials in

    def complete(self, number: int, notes: Iterable[str] = ()) -> TrialRecord:
        value = self.objective(self._live[number].history.values())
        assert value is not None, "a trial that is complete has reported"
        return self._tell(number, TrialState.COMPLETE, value, notes=notes)

    def prune(self, number: int, notes: Iterable[str] = ()) -> TrialRecord:
        return self._tell(number, TrialState.PRUNED, notes=notes)

    def fail(self, number: int, reason: str, detail: str, notes: Iterable[str] = ()) -> TrialRecord:
        trial = self._live[number].trial
        with self.together():
            trial.set_user_attr(REASON, reason)
            trial.set_user_attr(DETAIL, detail[-20_000:])
            return self._tell(number, TrialState.FAIL, notes=notes)

    def pause(self, number: int, attempts: int = 0, notes: Iterable[str] = ()) -> TrialRecord:
        """Put a trial back, to be handed out again as it is."""
        with self.together():
            self.flush()
            self._note(number, notes)
            live = self._live.pop(number)
            if attempts or live.trial.user_attrs.get(ATTEMPTS):
                live.trial.set_user_attr(ATTEMPTS, attempts)
            self.storage.set_trial_state_values(live.trial._trial_id, TrialState.WAITING)
            return self.read(number)

    def pause_all(self) -> list[int]:
        """Put back every trial that is still out; their numbers."""
        numbers = sorted(self._live)
        for number in numbers:
            self.pause(number, self._live[number].trial.user_attrs.get(ATTEMPTS, 0))
        return numbers

    def _tell(
        self, number: int, state: TrialState, value: float | None = None, notes: Iterable[str] = ()
    ) -> TrialRecord:
        with self.together():
            self.flush()
            self._note(number, notes)
            del self._live[number]
            self.study.tell(number, value, state=state)
            return self.read(number)

    def _note(self, number: int, notes: Iterable[str]) -> None:
        """Add to what a trial's pages should say."""
        trial = self._live[number].trial
        before = list(trial.user_attrs.get(NOTES, ()))
        if fresh := [n for n in notes if n not in before]:
            trial.set_user_attr(NOTES, before + fresh)

    def put_back_orphans(self) -> list[int]:
        """Trials that a dead holder left running, put back to be gone on with; their numbers."""
        orphans = [t for t in self.trials() if t.state == TrialState.RUNNING and t.number not in self._live]
        with self.together():
            for t in orphans:
                self.storage.set_trial_state_values(t._trial_id, TrialState.WAITING)
        return [t.number for t in orphans]

    # Where others are at it too

    @property
    def shared(self) -> LeasedStorage | None:
        return self.storage if isinstance(self.storage, LeasedStorage) else None

    @property
    def peers(self) -> Peers | None:
        return Peers(self.shared, self.study._study_id) if self.shared is not None else None

    @property
    def out_of_reach(self) -> str | None:
        """Why what is said is not written for the time being."""
        return self.shared.outage if self.shared is not None else None

    def is_written(self, number: int) -> bool:
        """Whether a kill would take nothing of what this process knows of a trial."""
        return self.storage.is_written(self.study._study_id, number)

    def heard(self) -> list[TrialRecord]:
        """The trials that others have got further with."""
        return [self.read(n) for n in self.shared.poll(self.study._study_id)] if self.shared is not None else []

    def lost(self) -> list[int]:
        """The numbers of trials that this process ran and others have taken over, each told once."""
        numbers = self.shared.take_lost(self.study._study_id) if self.shared is not None else []
        for number in numbers:
            self._live.pop(number, None)
        return numbers

    def adopt(self) -> list[TrialRecord]:
        """Trials that a supervisor that is gone left running, put back; and those that have ended, or wait, of which it
        told MLflow only half: this one's now."""
        if self.shared is None:
            return []
        try:
            numbers = self.shared.adopt(self.study._study_id)
        except Unreachable:
            return []
        with self.together():
            for t in (self.trials()[n] for n in numbers):
                if t.state == TrialState.RUNNING:
                    self.storage.set_trial_state_values(t._trial_id, TrialState.WAITING)
        return [self.read(n) for n in numbers]

    def release(self, numbers: Iterable[int]) -> None:
        """MLflow knows all of these trials: whoever wants one may have it."""
        if self.shared is not None:
            self.shared.release(self.study._study_id, numbers)

    def stand_up(self) -> None:
        """Be at this study no more; what is this process's stays so until it is settled."""
        if self.shared is not None:
            self.shared.leave(self.study._study_id)

    def stay(self) -> None:
        """Be heard of, so that nothing of this process's is taken over."""
        if self.shared is not None:
            self.shared.write()

    def alone(self, what: str) -> AbstractContextManager[None]:
        """Be the only one to do something about this study; stays heard of until then. Raises Unreachable."""
        return self.peers.lock(what, self.stay) if self.peers is not None else nullcontext()

    # When it is written

    def together(self) -> AbstractContextManager[None]:
        """What is said in this block is written at its end, at once."""
        return self.storage.together()

    def _later(self) -> AbstractContextManager[None]:
        """What is said in this block is written with the next flush."""
        return self.storage.later()

    # Reading

    @property
    def storage(self) -> ExclusiveStorage:
        assert isinstance(self.study._storage, ExclusiveStorage), "so it was opened"
        return self.study._storage

    def trials(self) -> list[FrozenTrial]:
        return self.study.get_trials(deepcopy=False)

    def read(self, number: int) -> TrialRecord:
        live = self._live.get(number)
        if live is None:
            return record_of(self.trials()[number], self.plan)
        history = tuple(live.history[e] for e in sorted(live.history))
        return record_of(self.storage.get_trial(live.trial._trial_id), self.plan, history)

    def records(self) -> list[TrialRecord]:
        return [self.read(t.number) for t in self.trials()]

    def objective(self, history: Iterable[EpochEnd]) -> float | None:
        return objective_of(history, self.plan.settings)

    @property
    def uid(self) -> str:
        """Of this study in this ledger, for ever."""
        return str(self.study.user_attrs[UID])

    # Words between processes

    def stop_requested(self) -> bool:
        """Whether somebody has asked for this study to stop, or the one that it is a part of."""
        of_the_whole = self.part_of is not None and self.part_of.stop_requested()
        return of_the_whole or bool(self.storage.get_study_user_attrs(self.study._study_id).get(STOP))

    def clear_stop(self) -> None:
        """Forget what was asked of those who were at this study before."""
        assert self.part_of is None, "that is its search's"
        if self.stop_requested():
            self.study.set_user_attr(STOP, False)

    def begin(self) -> float | None:
        """Work on the last launch of a study that many share; when the first who does began, in seconds since 1970. A
        launch's time is that of its work: a study may wait for a worker. Raises Unreachable."""
        if self.shared is not None:
            with self.alone("answer"):
                self._launched_s = self._last_launched_s()
                if self._launched_s is None:
                    self._launched_s = time.time()
                    self.study.set_user_attr(LAUNCHED, self._launched_s)
        return self._launched_s

    @property
    def is_launched_anew(self) -> bool:
        """Whether somebody has launched this study since this process began to work on it."""
        return self.shared is not None and self._last_launched_s() != self._launched_s

    def _last_launched_s(self) -> float | None:
        found = self.storage.get_study_user_attrs(self.study._study_id).get(LAUNCHED)
        return float(found) if found is not None else None

    @property
    def told(self) -> dict[str, int]:
        """Of how many trials, confirmations and tests a study's answer was told since it was launched; where many share
        it."""
        return dict(self.storage.get_study_user_attrs(self.study._study_id).get(TOLD) or {})

    def keep_told(self, told: Mapping[str, int]) -> None:
        if self.shared is not None:
            self.study.set_user_attr(TOLD, dict(told))

    def end(self) -> None:
        """No worker need look at this study any more, until somebody launches it again."""
        if self.shared is not None:
            self.study.set_user_attr(OVER, True)

    def give_up(self) -> None:
        """Leave a study that comes to nothing here; it is over unless others are at it, who may do better."""
        if self.peers is None:
            return
        with suppress(Unreachable), self.alone("answer"):
            self.stand_up()
            if not self.peers.count_peers():
                self.end()

    def link(self, experiment_id: str, parent_run_id: str | None) -> None:
        """Keep where MLflow shows this study."""
        self.study.set_user_attr(LINKS, {"experiment_id": experiment_id, "parent_run_id": parent_run_id})

    def keep_launch(self, launch: Mapping[str, Any]) -> None:
        """Keep what others should see of the launch that is at work."""
        self.study.set_user_attr(LAUNCH, dict(launch))

    def keep_wanted(self, wanted: Iterable[tuple[int, int]]) -> None:
        """Of a confirmation: keep which (trial, nth seed) are asked for; what else waits is of finalists that were."""
        self.study.set_user_attr(WANTED, [list(pair) for pair in wanted])

    def tests(self) -> dict[int, Tested]:
        return tests_of(self.study.user_attrs)

    def keep_test(self, tested: Tested) -> None:
        """Keep what a trial's network was worth on the test set, for ever: it is asked once."""
        kept = {**self.tests(), tested.number: tested}
        self.study.set_user_attr(TESTS, [vars(t) for t in kept.values()])

    def close(self) -> None:
        assert isinstance(self.study.sampler, sampler.SeededSampler)
        self.study.sampler.close()
        try:
            self.flush()
            until = time.monotonic() + _LAST_WORDS_S
            while self.shared is not None and self.shared.unwritten and time.monotonic() < until:
                time.sleep(0.2)
                self.shared.write()
            if self.shared is not None:
                self.shared.write()
        finally:
            self.let_go()
            dispose(self.storage)


# Small parts ----------------------------------------------------------------------------------------------------------


def _suggest(trial: optuna.Trial, name: str, dist: BaseDistribution) -> Any:
    if isinstance(dist, FloatDistribution):
        return trial.suggest_float(name, dist.low, dist.high, step=dist.step, log=dist.log)
    if isinstance(dist, IntDistribution):
        return trial.suggest_int(name, dist.low, dist.high, step=dist.step, log=dist.log)
    assert isinstance(dist, CategoricalDistribution)
    return trial.suggest_categorical(name, dist.choices)
