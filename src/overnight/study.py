"""The ledger: one study in Optuna's storage, the one truth about it.

Optuna keeps one float a step, so every metric of every epoch, with its time, is kept beside it: packed in one user
attribute a trial. A trial that stops unfinished goes back to WAITING and is handed out again with its number, its
parameters and its history.
"""

from __future__ import annotations

import math
import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import optuna
from filelock import BaseFileLock
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, TrialState

from overnight import marks, sampling
from overnight.gp import Fork
from overnight.holding import HolderStorage, open_for_work
from overnight.messages import EpochEnd, Tested
from overnight.plan import FirstTrial, Plan
from overnight.records import (
    ASKED,
    ATTEMPTS,
    BASELINE,
    CONFIG,
    CONFIRMS,
    DETAIL,
    ENTRY,
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
    pack,
    record_of,
    unpack,
    values_of,
)
from overnight.settings import ConfigError, Place, look_up
from overnight.storage import dispose, hold
from overnight.views import LAUNCH, LINKS, PLAN, READY, STOP, TESTS, UID, WANTED, generations, plan_of, tests_of


@dataclass(frozen=True)
class Ticket:
    """A trial to be run. values: searched key -> value. attempts: how often in a row it crashed without progress."""

    number: int
    seed: int
    values: dict[str, Any]
    config: dict[str, Any]
    attempts: int


@dataclass
class _Live:
    trial: optuna.Trial
    history: dict[int, EpochEnd]
    reported: set[int]  # the steps that Optuna has, which a kill may have kept while the history lost them
    unwritten: bool = False


@dataclass
class Ledger:
    """An open study, held by this process. Made by `open_study`; closed by `close`."""

    plan: Plan
    study: optuna.Study
    lock: BaseFileLock
    holder: Path
    _live: dict[int, _Live] = field(default_factory=dict)

    # Trials out

    def ask(self) -> Ticket | None:
        """The next trial to run, a paused one first; None where the budget is spent or on its way to be."""
        trials = self.trials()
        if not any(t.state == TrialState.WAITING for t in trials) and self._spent(trials):
            return None
        with self.together():
            return self._ticket(self.study.ask())

    def _spent(self, trials: list[FrozenTrial]) -> bool:
        """Whether no new trial is to be made."""
        if self.plan.settings.sampler.name == "grid":
            points = sum(not t.user_attrs.get(OUTSIDE) for t in trials)
            if points >= self.plan.points:
                return True
        return len(trials) >= self.plan.settings.study.trials

    def help_from(self, fork: Fork) -> None:
        """Have a sampler that needs torch run in a process that `fork` makes."""
        assert isinstance(self.study.sampler, sampling.SeededSampler)
        self.study.sampler.help_from(fork)

    def ask_new(self) -> Ticket | None:
        """A new trial, whoever waits; None where the budget is spent."""
        if self._spent(self.trials()):
            return None
        with self.together():
            return self._ticket(optuna.Trial(self.study, self.storage.create_new_trial(self.study._study_id)))

    def ask_for(self, number: int) -> Ticket:
        """One waiting trial, by its number."""
        trial_id = self.trials()[number]._trial_id
        with self.together():
            self.storage.set_trial_state_values(trial_id, TrialState.RUNNING)
            return self._ticket(optuna.Trial(self.study, trial_id))

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

    def _ticket(self, trial: optuna.Trial) -> Ticket:
        attrs = trial.user_attrs
        values = values_of(self.storage.get_trial(trial._trial_id), self.plan) or {}
        if VALUES in attrs or attrs.get(BASELINE):
            for name in self.storage.get_trial_system_attrs(trial._trial_id).get("fixed_params", {}):
                _suggest(trial, name, self.plan.space.names()[name])
        elif CONFIG not in attrs:
            values = self.plan.space.draw(lambda name, dist: _suggest(trial, name, dist), self.plan.written)
        config = attrs[CONFIG] if CONFIG in attrs else self.plan.config(values)
        seed = self.plan.trial_seed(0 if CONFIG in attrs else trial.number)
        if CONFIRMS in attrs:
            seed = Confirms(**attrs[CONFIRMS]).seed
        history = {e.epoch: e for e in unpack(trial.number, attrs.get(HISTORY))}
        reported = set(self.storage.get_trial(trial._trial_id).intermediate_values)
        self._live[trial.number] = _Live(trial, history, reported)
        return Ticket(trial.number, seed, values, config, attrs.get(ATTEMPTS, 0))

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
                live.trial.set_user_attr(HISTORY, pack(live.history.values()))
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

    # When it is written

    def together(self) -> AbstractContextManager[None]:
        """What is said in this block is written at its end, at once."""
        return self.storage.together() if isinstance(self.storage, HolderStorage) else nullcontext()

    def _later(self) -> AbstractContextManager[None]:
        """What is said in this block is written with the next flush."""
        return self.storage.later() if isinstance(self.storage, HolderStorage) else nullcontext()

    # Reading

    @property
    def storage(self) -> BaseStorage:
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
        return bool(self.storage.get_study_user_attrs(self.study._study_id).get(STOP))

    def clear_stop(self) -> None:
        if self.stop_requested():
            self.study.set_user_attr(STOP, False)

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
        assert isinstance(self.study.sampler, sampling.SeededSampler)
        self.study.sampler.close()
        try:
            self.flush()
        finally:
            self.holder.unlink(missing_ok=True)
            self.lock.release()
            dispose(self.storage)


def open_study(plan: Plan, *, extend: bool = False, comparable: bool = True) -> tuple[Ledger, list[str]]:
    """Open the plan's study for work: create it, or go on with it.

    Args:
        extend: where the space only grew, copy the trials into a new ledger study with the new distributions.
        comparable: False for a study whose trials bring their own configs (`train`).

    Returns:
        The ledger, and what there is to say about it, one line each.

    Raises:
        Held: another process works on it. ConfigError: its trials and this plan's would not compare.
    """
    home = plan.settings.place.where
    try:
        home.root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError([f"home: must be a folder that can be written, got {str(home.root)!r}: {error}"]) from error
    with _held(plan.settings.place, plan.name) as (lock, holder):
        storage = open_for_work(plan.settings.place)
        study, said = _continue_or_create(storage, plan, extend, comparable)
        ledger = Ledger(plan, study, lock, holder)
        ledger.clear_stop()
        orphans = ledger.put_back_orphans()
        if comparable and not ledger._spent(ledger.trials()):
            said += sampling.limits(plan)
        if orphans:
            said.append(f"{len(orphans)} trial(s) were cut off and go on: {', '.join(map(str, orphans))}")
        return ledger, said


def reopen(place: Place, name: str) -> Ledger:
    """Hold a study that there is, as it stands, to mend what is around it. Raises Held."""
    with _held(place, name) as (lock, holder):
        storage = open_for_work(place)
        _, frozen = generations(storage, name)
        assert frozen is not None
        plan = plan_of(name, frozen.user_attrs).at(place)
        return Ledger(plan, _load(storage, plan, frozen.study_name), lock, holder)


@contextmanager
def _held(place: Place, name: str) -> Iterator[tuple[BaseFileLock, Path]]:
    """Hold a study, beyond the block too, unless an error leaves it."""
    lock, holder = hold(place, name)
    try:
        yield lock, holder
    except BaseException:
        holder.unlink(missing_ok=True)
        lock.release()
        raise


def _continue_or_create(
    storage: BaseStorage, plan: Plan, extend: bool, comparable: bool
) -> tuple[optuna.Study, list[str]]:
    generation, before = generations(storage, plan.name)
    if before is None:
        return _create(storage, plan, plan.name, comparable), []
    old = plan_of(plan.name, before.user_attrs)
    differences = plan.differences(old) if comparable else []
    if not differences:
        study = _load(storage, plan, before.study_name)
        if before.user_attrs[PLAN] != plan.to_json():
            study.set_user_attr(PLAN, plan.to_json())  # budget, slots, pruner and the like may change
        return study, _enqueue(study, plan) if comparable else []
    moved = [d for d in differences if not d.startswith("search.")]
    lacking = plan.space.grew_from(old.space)
    if not extend or moved or lacking:
        raise ConfigError(_refusal(plan, differences, [*moved, *lacking], extend))
    study = _extended(storage, plan, old, before.study_name, f"{plan.name}~{generation + 1}")
    copied = f"extended: {len(study.get_trials(deepcopy=False))} trials copied into the wider space"
    return study, [copied, *(_enqueue(study, plan) if comparable else [])]


def _refusal(plan: Plan, differences: list[str], in_the_way: list[str], extend: bool) -> list[str]:
    remedy = "take a new name: study.name=..."
    if extend:
        return [*(f"--extend: takes a space that only grew, and {d}" for d in in_the_way), remedy]
    if not in_the_way:
        remedy += ", or, as the space only grew, --extend"
    return [
        f"study.name: {plan.name} exists and was asked for differently, its trials would not compare; {remedy}",
        *(f"  {d}" for d in differences),
    ]


def _create(storage: BaseStorage, plan: Plan, name: str, with_baseline: bool) -> optuna.Study:
    """Create a study step by step, each of which a cut one repeats; the configuration as written is trial 0."""
    study = _load(storage, plan, name)
    study.set_user_attr(PLAN, plan.to_json())
    if UID not in study.user_attrs:
        study.set_user_attr(UID, uuid.uuid4().hex)
    if with_baseline:
        _enqueue(study, plan)
    study.set_user_attr(READY, True)
    return study


def _enqueue(study: optuna.Study, plan: Plan) -> list[str]:
    """Have the configurations that come before anything drawn wait in the ledger, each once and no matter how often
    this is asked; what there is to say of it."""
    trials = study.get_trials(deepcopy=False)
    given = [v for t in trials if (v := values_of(t, plan)) is not None]
    asked = [t.user_attrs[ENTRY] for t in trials if ENTRY in t.user_attrs]
    drawn = [t.params for t in trials]

    def tried(first: FirstTrial) -> bool:
        return first.entry in asked or first.values in given or (not first.outside and first.point in drawn)

    new = [first for first in plan.first_trials() if (first.entry or not trials) and not tried(first)]
    room = max(plan.settings.study.trials - len(trials), 0)
    for first in new[:room]:
        kept = {ENTRY: first.entry} if first.entry else {BASELINE: True}
        study.enqueue_trial(first.point, user_attrs={**kept, VALUES: first.values, OUTSIDE: list(first.outside)})
    if len(new) > room:
        keys = "study.enqueue, study.warm_start_from" if plan.taken else "study.enqueue"
        return [f"{keys}: {len(new) - room} of its entries wait for room in study.trials, which is spent"]
    return []


def _extended(storage: BaseStorage, plan: Plan, old: Plan, source: str, name: str) -> optuna.Study:
    """Copy a study's trials, numbers kept, into a new one with the plan's distributions.

    Optuna refuses grown choices, and its TPE hardly leaves the old ends of a widened range. A key that is searched
    now and was not before had its written value all along, and gets it where the space holds that.
    """
    if any(s.study_name == name for s in storage.get_all_studies()):
        optuna.delete_study(study_name=name, storage=storage)  # a copy that was cut off
    study = _load(storage, plan, name)
    before = optuna.load_study(study_name=source, storage=storage)
    for t in before.get_trials(deepcopy=False):
        study.add_trial(_moved(t, plan, old))
    study.set_user_attr(PLAN, plan.to_json())
    study.set_user_attr(UID, before.user_attrs[UID])
    study.set_user_attr(LINKS, before.user_attrs.get(LINKS))
    study.set_user_attr(marks.BAD, marks.of(before.user_attrs))
    study.set_user_attr(READY, True)
    return marks.heeded(study)


def _moved(t: FrozenTrial, plan: Plan, old: Plan) -> FrozenTrial:
    """An old plan's trial as one of the plan's."""
    given = values_of(t, old)
    config = old.config(given) if given is not None else old.config_of(t.params)
    had = given if given is not None else t.params

    def value_of(key: str, _: Mapping[str, Any]) -> Any:
        return had.get(key, old.written(key)) if "." not in key else look_up(config, key)

    values, point, outside = plan.space.find(value_of)
    asked = bool(t.params) or t.state != TrialState.WAITING
    if given is None:  # what it would have drawn for the old keys is not known
        point = {n: v for n, v in point.items() if n not in old.space.names()}
    names = plan.space.names()
    params = {**point, **t.params} if asked else {}
    attrs = dict(t.user_attrs)
    if given is not None:
        attrs[VALUES] = values
    if outside and (asked or given is not None):
        attrs[OUTSIDE] = list(outside)
    return optuna.trial.FrozenTrial(
        number=-1,
        trial_id=-1,
        state=t.state,
        value=t.value if t.state == TrialState.COMPLETE else None,
        datetime_start=t.datetime_start,
        datetime_complete=t.datetime_complete,
        params={n: params[n] for n in names if n in params},
        distributions={n: names[n] for n in names if n in params},
        user_attrs=attrs,
        # Not what a sampler kept there: its model is of the old ends.
        system_attrs={"fixed_params": point} if given is not None else {},
        intermediate_values=t.intermediate_values,
    )


def _load(storage: BaseStorage, plan: Plan, name: str) -> optuna.Study:
    settings = plan.settings
    study = optuna.create_study(
        study_name=name,
        storage=storage,
        direction=settings.study.direction,
        sampler=sampling.sampler(plan),
        pruner=sampling.pruner(settings.pruner, settings.trainer.max_epochs),
        load_if_exists=True,
    )
    return marks.heeded(study)


# Small parts ----------------------------------------------------------------------------------------------------------


def _suggest(trial: optuna.Trial, name: str, dist: BaseDistribution) -> Any:
    if isinstance(dist, FloatDistribution):
        return trial.suggest_float(name, dist.low, dist.high, step=dist.step, log=dist.log)
    if isinstance(dist, IntDistribution):
        return trial.suggest_int(name, dist.low, dist.high, step=dist.step, log=dist.log)
    assert isinstance(dist, CategoricalDistribution)
    return trial.suggest_categorical(name, dist.choices)
