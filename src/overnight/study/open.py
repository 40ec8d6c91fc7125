"""Open a study for work: create, resume, extend or join it. Who opens a study may write its trials."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import optuna

from overnight.config.paths import StudyLocation
from overnight.config.problems import ConfigError
from overnight.config.settings import Settings
from overnight.search import sampler
from overnight.search.attributes import STOP
from overnight.search.plan import CONFIRM_SUFFIX, Plan
from overnight.search.schedulers.pruners import scheduler_notes
from overnight.study import plan_trust
from overnight.study.create import load, load_or_create
from overnight.study.session import StudySession
from overnight.study.snapshot import latest_studies, reject_old_home, stored_plan
from overnight.study.storage import leases
from overnight.study.storage.access import require_writable
from overnight.study.storage.database import dispose
from overnight.study.storage.exclusive import ExclusiveStorage
from overnight.study.storage.home import settle
from overnight.study.storage.leased import LeasedStorage, open_for_work
from overnight.study.storage.lock import lock_study
from overnight.study.storage.outage import raising_unreachable
from overnight.study.storage.peers import count_peers, locked

_STOP_TIMEOUT_S = 15.0  # for stopping supervisors to save their trials and to synchronise MLflow
_POLL_INTERVAL_S = 0.5


def open_study(
    plan: Plan, *, extend: bool = False, comparable: bool = True, say: Callable[[str], None] = lambda _: None
) -> tuple[StudySession, list[str]]:
    """Open the plan's study for work: create it, or resume it.

    Args:
        extend: If the space only grew, copy the trials into a new Optuna study with the new distributions.
        comparable: False for a study whose trials bring their own configurations, such as `train`.
        say: Called with a message if the call has to wait.

    Returns:
        The session, and messages for the user.

    Raises:
        StudyInUse: Another process works on the study.
        ConfigError: The trials of the stored study and those of the plan are not comparable, or home is unusable.
        Unreachable: The database is out of reach.
    """
    location = plan.settings.location
    settle(location)
    reject_old_home(location)
    require_writable(location)
    if location.shared:
        return _open_shared(plan, extend, comparable, say)
    with _locked(location, plan.name) as unlock:
        study, messages = load_or_create(open_for_work(location), plan, extend=extend, comparable=comparable)
        session = StudySession(plan, study, unlock)
        session.attributes.clear_stop()
        orphans = session.writer.requeue_orphans()
        messages += _notes(session, comparable)
        if orphans:
            messages.append(f"{len(orphans)} interrupted trial(s) are resumed: {', '.join(map(str, orphans))}")
        return session, messages


def join(name: str, own: Settings, missing: Callable[[Plan], list[str]] = lambda _: []) -> StudySession:
    """Join a shared study as one of its workers.

    Args:
        own: The settings of this machine. They replace what a plan says about the machine.
        missing: Returns what this machine lacks to run a plan.

    Raises:
        ConfigError: This machine lacks something, or the plan asks for what its operator does not trust.
        Unreachable: The database is out of reach.
    """
    leases.start_as_new_owner()
    with _shared_storage(own.location) as storage:
        plan, study = _load_stored(storage, own.location, name)
        plan_here = plan_trust.for_machine(plan, own)
        # Checked before this process counts as a member: a launcher relies on those.
        problems = plan_trust.find_problems(plan) or missing(plan_here)
        if problems:
            raise ConfigError(problems)
        return _joined(storage, plan_here, study)


def reopen(location: StudyLocation, name: str) -> StudySession:
    """Open a stored study exclusively and unchanged, for repairs. Raises StudyInUse, Unreachable."""
    if location.shared:
        leases.start_as_new_owner()
        with _shared_storage(location) as storage:
            return _joined(storage, *_load_stored(storage, location, name), alone=True)
    with _locked(location, name) as unlock:
        return StudySession(*_load_stored(open_for_work(location), location, name), unlock)


def _open_shared(
    plan: Plan, extend: bool, comparable: bool, say: Callable[[str], None]
) -> tuple[StudySession, list[str]]:
    is_search = not plan.name.endswith(CONFIRM_SUFFIX)  # a confirmation is part of its search
    if is_search:
        leases.start_as_new_owner()
    with _shared_storage(plan.settings.location) as storage, locked(storage.backend.engine, f"study {plan.name}"):
        study, messages = load_or_create(storage, plan, extend=extend, comparable=comparable)
        if is_search:
            _wait_for_stopping_peers(storage, study, say)
            _clear_stop(storage, plan.name)
        session = _joined(storage, plan, study)
        # A peer that is publishing an answer would close the study afterwards.
        with session.coordinator.lock("answer", keep_alive=False):
            session.attributes.set_closed(False)
            session.attributes.set_published({})
            session.attributes.set_launched_at(None)
        session.attributes.clear_refusals()
        return session, messages + _notes(session, comparable)


def _wait_for_stopping_peers(storage: LeasedStorage, study: optuna.Study, say: Callable[[str], None]) -> None:
    """Wait for peers that were asked to stop, before the request is cleared so that workers join this launch.

    A peer that is still there after the timeout publishes an answer, or has joined again.
    """
    until, announced = time.monotonic() + _STOP_TIMEOUT_S, False
    engine, study_id, owner = storage.backend.engine, study._study_id, storage.owner
    while study.user_attrs.get(STOP) and (n_peers := count_peers(engine, study_id, owner)):
        if not announced:
            say(f"{n_peers} supervisor(s) were asked to stop; waiting up to {_STOP_TIMEOUT_S:.0f} s for them to save")
            announced = True
        if time.monotonic() > until:
            return
        time.sleep(_POLL_INTERVAL_S)


def _clear_stop(storage: LeasedStorage, name: str) -> None:
    """Clear the stop request of a study and of its confirmation."""
    latest = latest_studies(storage)
    for stored in (latest.get(name), latest.get(name + CONFIRM_SUFFIX)):
        if stored is not None and stored.user_attrs.get(STOP):
            storage.set_study_user_attr(stored._study_id, STOP, False)


def _notes(session: StudySession, comparable: bool) -> list[str]:
    if not comparable or session.queue.is_spent():
        return []
    return scheduler_notes(session.plan) + sampler.sampler_notes(session.plan)


def _joined(storage: LeasedStorage, plan: Plan, study: optuna.Study, alone: bool = False) -> StudySession:
    study_id = study._study_id
    storage.join(study_id, alone)
    return StudySession(plan, study, lambda: storage.leave(study_id))


def _load_stored(storage: ExclusiveStorage, location: StudyLocation, name: str) -> tuple[Plan, optuna.Study]:
    stored = latest_studies(storage)[name]
    plan = stored_plan(stored).relocated(location)
    return plan, load(storage, plan, stored.study_name)


@contextmanager
def _shared_storage(location: StudyLocation) -> Iterator[LeasedStorage]:
    """Open a shared storage. It stays open after the block, unless the block raises. Raises Unreachable."""
    storage = open_for_work(location)
    assert isinstance(storage, LeasedStorage)
    try:
        with raising_unreachable():
            yield storage
    except BaseException:
        dispose(storage)
        raise


@contextmanager
def _locked(location: StudyLocation, name: str) -> Iterator[Callable[[], None]]:
    """Lock a study. It stays locked after the block, unless the block raises. Yields the function that unlocks it."""
    unlock = lock_study(location, name)
    try:
        yield unlock
    except BaseException:
        unlock()
        raise
