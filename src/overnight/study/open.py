"""Opening a study: it is created, gone on with, extended, or joined; whoever opens it may write it."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from overnight.config.paths import StudyLocation
from overnight.config.problems import ConfigError
from overnight.config.sections import Settings
from overnight.config.trees import look_up
from overnight.search import sampler
from overnight.search.attributes import (
    ENTRY,
    EXCLUDED,
    MLFLOW,
    OUTSIDE,
    PLAN,
    READY,
    STOP,
    UID,
    VALUES,
)
from overnight.search.plan import CONFIRM_SUFFIX, FirstTrial, Plan
from overnight.search.record import values_of
from overnight.study import plan_trust
from overnight.study.attributes import StudyAttributes
from overnight.study.session import StudySession
from overnight.study.snapshot import generations, plan_of
from overnight.study.storage import leases
from overnight.study.storage.database import dispose
from overnight.study.storage.exclusive import ExclusiveStorage
from overnight.study.storage.leased import LeasedStorage, open_for_work
from overnight.study.storage.lock import lock_study
from overnight.study.storage.outage import raising_unreachable

_WAIT_FOR_THE_STOPPED_S, _LOOK_EVERY_S = 15.0, 0.5  # they have trials save, and MLflow told of it


def open_study(
    plan: Plan, *, extend: bool = False, comparable: bool = True, say: Callable[[str], None] = lambda _: None
) -> tuple[StudySession, list[str]]:
    """Open the plan's study for work: create it, or go on with it.

    Args:
        extend: where the space only grew, copy the trials into a new ledger study with the new distributions.
        comparable: False for a study whose trials bring their own configs (`train`).
        say: told what is waited for.

    Returns:
        The ledger, and what there is to say about it, one line each.

    Raises:
        StudyInUse: another process works on it. ConfigError: its trials and this plan's would not compare. Unreachable.
    """
    home = plan.settings.location.paths
    try:
        home.root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError([f"home: must be a folder that can be written, got {str(home.root)!r}: {error}"]) from error
    if plan.settings.location.shared:
        return _open_shared(plan, extend, comparable, say)
    with _held(plan.settings.location, plan.name) as let_go:
        storage = open_for_work(plan.settings.location)
        study, said = _continue_or_create(storage, plan, extend, comparable)
        session = StudySession(plan, study, let_go)
        session.attributes.clear_stop()
        orphans = session.writer.requeue_orphans()
        said += _limits(session, comparable)
        if orphans:
            said.append(f"{len(orphans)} trial(s) were cut off and go on: {', '.join(map(str, orphans))}")
        return session, said


def _open_shared(
    plan: Plan, extend: bool, comparable: bool, say: Callable[[str], None]
) -> tuple[StudySession, list[str]]:
    if not plan.name.endswith(CONFIRM_SUFFIX):  # a confirmation is part of its search
        leases.start_as_new_owner()
    with _shared(plan.settings.location) as storage, storage.lock(f"study {plan.name}"):
        study, said = _continue_or_create(storage, plan, extend, comparable)
        if not plan.name.endswith(CONFIRM_SUFFIX):
            _await_the_stopped(storage, study, say)
            _forget_stop(storage, plan.name)
        session = _seated(storage, plan, study)
        with storage.lock(f"answer of {study._study_id}"):  # else whoever is telling it would say that it is over
            session.attributes.set_closed(False)
            session.attributes.set_published({})
            session.attributes.set_launched_at(None)
        session.attributes.clear_refusals()
        return session, said + _limits(session, comparable)


def _await_the_stopped(storage: LeasedStorage, study: optuna.Study, say: Callable[[str], None]) -> None:
    """Let those go who were asked to stop, before that is forgotten: it must be, or nobody would take up what is
    launched here. Who is still there then tells the answer, and stops for nothing; or is at it again."""
    until, told = time.monotonic() + _WAIT_FOR_THE_STOPPED_S, False
    while study.user_attrs.get(STOP) and (n := storage.count_peers(study._study_id)):
        if not told:
            say(f"{n} supervisor(s) were asked to stop; waiting up to {_WAIT_FOR_THE_STOPPED_S:.0f} s for them to save")
            told = True
        if time.monotonic() > until:
            return
        time.sleep(_LOOK_EVERY_S)


def _forget_stop(storage: LeasedStorage, name: str) -> None:
    """Of a study and its confirmation, as it was asked for: whoever is launched here stops for neither."""
    for asked in (name, name + CONFIRM_SUFFIX):
        _, frozen = generations(storage, asked)
        if frozen is not None and frozen.user_attrs.get(STOP):
            storage.set_study_user_attr(frozen._study_id, STOP, False)


def _limits(session: StudySession, comparable: bool) -> list[str]:
    return sampler.sampler_notes(session.plan) if comparable and not session.queue.is_spent() else []


def _seated(storage: LeasedStorage, plan: Plan, study: optuna.Study, alone: bool = False) -> StudySession:
    study_id = study._study_id
    storage.join(study_id, alone)
    return StudySession(plan, study, lambda: storage.leave(study_id))


def join(name: str, own: Settings, lacking: Callable[[Plan], list[str]] = lambda _: []) -> StudySession:
    """Work on a study that there is, as one of many; what belongs to a machine is as its own settings have it.

    lacking: what this machine lacks for it. Raises ConfigError where that is anything, or where the study asks for what
    its operator does not trust; Unreachable.
    """
    leases.start_as_new_owner()
    with _shared(own.location) as storage:
        plan, study = _as_it_stands(storage, own.location, name)
        adopted = plan_trust.adopted(plan, own)
        if problems := plan_trust.problems(plan) or lacking(
            adopted
        ):  # before it has a seat, or a launcher counts on it
            raise ConfigError(problems)
        return _seated(storage, adopted, study)


def reopen(location: StudyLocation, name: str) -> StudySession:
    """Hold a study that there is, as it stands and alone, to mend what is around it. Raises StudyInUse, Unreachable."""
    if location.shared:
        leases.start_as_new_owner()
        with _shared(location) as storage:
            return _seated(storage, *_as_it_stands(storage, location, name), alone=True)
    with _held(location, name) as let_go:
        return StudySession(*_as_it_stands(open_for_work(location), location, name), let_go)


def _as_it_stands(storage: ExclusiveStorage, location: StudyLocation, name: str) -> tuple[Plan, optuna.Study]:
    _, frozen = generations(storage, name)
    assert frozen is not None, "the caller has seen it"
    plan = plan_of(name, frozen.user_attrs).relocated(location)
    return plan, _load(storage, plan, frozen.study_name)


@contextmanager
def _shared(location: StudyLocation) -> Iterator[LeasedStorage]:
    """A shared ledger's storage, open beyond the block too unless an error leaves it. Raises Unreachable."""
    storage = open_for_work(location)
    assert isinstance(storage, LeasedStorage), "so the place says"
    try:
        with raising_unreachable():
            yield storage
    except BaseException:
        dispose(storage)
        raise


@contextmanager
def _held(location: StudyLocation, name: str) -> Iterator[Callable[[], None]]:
    """Hold a study, beyond the block too, unless an error leaves it; what ends that."""
    let_go = lock_study(location, name)
    try:
        yield let_go
    except BaseException:
        let_go()
        raise


def _continue_or_create(
    storage: ExclusiveStorage, plan: Plan, extend: bool, comparable: bool
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
    lacking = plan.space.not_covered(old.space)
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


def _create(storage: ExclusiveStorage, plan: Plan, name: str, with_baseline: bool) -> optuna.Study:
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
    given = [v for t in trials if (v := values_of(t)) is not None]
    asked = [t.user_attrs[ENTRY] for t in trials if ENTRY in t.user_attrs]
    drawn = [t.params for t in trials]

    def tried(first: FirstTrial) -> bool:
        return first.entry in asked or first.values in given or (not first.outside and first.point in drawn)

    new = [first for first in plan.first_trials() if (first.entry or not trials) and not tried(first)]
    room = max(plan.settings.study.trials - len(trials), 0)
    for first in new[:room]:
        entry = {ENTRY: first.entry} if first.entry else {}
        study.enqueue_trial(first.point, user_attrs={**entry, VALUES: first.values, OUTSIDE: list(first.outside)})
    if len(new) > room:
        keys = "study.enqueue, study.warm_start_from" if plan.warm_start else "study.enqueue"
        return [f"{keys}: {len(new) - room} of its entries wait for room in study.trials, which is spent"]
    return []


def _extended(storage: ExclusiveStorage, plan: Plan, old: Plan, source: str, name: str) -> optuna.Study:
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
    study.set_user_attr(MLFLOW, before.user_attrs.get(MLFLOW))
    study.set_user_attr(EXCLUDED, before.user_attrs.get(EXCLUDED) or {})
    study.set_user_attr(READY, True)
    return _with_exclusions(storage, study)


def _moved(t: FrozenTrial, plan: Plan, old: Plan) -> FrozenTrial:
    """An old plan's trial as one of the plan's."""
    given = values_of(t)
    config = old.config(given) if given is not None else old.config_of_params(t.params)
    had = given if given is not None else t.params

    def value_of(key: str, _: Mapping[str, Any]) -> Any:
        return had.get(key, old.baseline(key)) if "." not in key else look_up(config, key)

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


def _load(storage: ExclusiveStorage, plan: Plan, name: str) -> optuna.Study:
    settings = plan.settings
    study = optuna.create_study(
        study_name=name,
        storage=storage,
        direction=settings.study.direction,
        sampler=sampler.SeededSampler(plan),
        pruner=sampler.make_pruner(settings.pruner, settings.trainer.max_epochs),
        load_if_exists=True,
    )
    return _with_exclusions(storage, study)


def _with_exclusions(storage: ExclusiveStorage, study: optuna.Study) -> optuna.Study:
    storage.exclude(study._study_id, StudyAttributes(study).exclusions)
    return study
