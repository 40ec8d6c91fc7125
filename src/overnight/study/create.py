"""The Optuna study of a plan: created, loaded, or extended to a wider search space."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from overnight.config.problems import ConfigError
from overnight.config.trees import look_up
from overnight.config.values import fingerprint, same
from overnight.search import sampler
from overnight.search.attributes import (
    ENTRY,
    EXCLUDED,
    FIRST_RUNG,
    METRIC_NAMES,
    MLFLOW,
    OUTSIDE,
    PLAN,
    READY,
    TESTED,
    UID,
    VALUES,
)
from overnight.search.plan import FirstTrial, Plan, config_of_params
from overnight.search.record import record_of, values_of
from overnight.search.schedulers.pruners import make_pruner
from overnight.search.schedulers.study import is_spent
from overnight.study.attributes import StudyAttributes
from overnight.study.snapshot import generation, latest_studies, stored_plan
from overnight.study.storage.exclusive import ExclusiveStorage
from overnight.system.files import set_aside


def load_or_create(
    storage: ExclusiveStorage, plan: Plan, *, extend: bool, comparable: bool
) -> tuple[optuna.Study, list[str]]:
    """Return the plan's Optuna study, and messages for the user.

    Args:
        extend: If the space only grew, copy the trials into a new Optuna study with the new distributions.
        comparable: False for a study whose trials bring their own configurations.

    Raises:
        ConfigError: The trials of the stored study and those of the plan are not comparable.
    """
    stored = latest_studies(storage).get(plan.name)
    if stored is None:
        return _create(storage, plan, with_baseline=comparable), []
    old = stored_plan(stored)
    differences = plan.differences(old) if comparable else []
    if not differences:
        study = load(storage, plan, stored.study_name)
        if not same(stored.user_attrs[PLAN], plan.to_json()):
            study.set_user_attr(PLAN, plan.to_json())  # the budget, the slots, the scheduler and the like may change
        _reopen_paused(study, storage, plan)
        return study, _enqueue_first_trials(study, plan) if comparable else []
    obstacles = [d for d in differences if not d.startswith("search.")] + plan.space.not_covered(old.space)
    if not extend or obstacles:
        raise ConfigError(_not_comparable(plan, differences, obstacles, extend))
    study = _extend(storage, plan, old, stored.study_name, f"{plan.name}~{generation(stored) + 1}")
    _reopen_paused(study, storage, plan)
    copied = f"extended: {len(study.get_trials(deepcopy=False))} trials copied into the wider space"
    return study, [copied, *_enqueue_first_trials(study, plan)]


def _reopen_paused(study: optuna.Study, storage: ExclusiveStorage, plan: Plan) -> None:
    """Have the trials wait again that an earlier launch left paused at a rung, if there is budget for some of them."""
    trials = study.get_trials(deepcopy=False)
    records = [record_of(t, plan) for t in trials]
    # A class of the user has to be asked.
    if plan.pauses and (plan.settings.scheduler.target is not None or not is_spent(records, plan)):
        paused = [r.number for r in records if r.state == "pruned" and r.waits_at_rung]
        if paused:
            storage.reopen(study._study_id, paused)


def load(storage: ExclusiveStorage, plan: Plan, name: str) -> optuna.Study:
    """Load the Optuna study of this name, or create it empty."""
    settings = plan.settings
    study = optuna.create_study(
        study_name=name,
        storage=storage,
        direction=settings.study.direction,
        sampler=sampler.SeededSampler(plan),
        pruner=make_pruner(plan),
        load_if_exists=True,
    )
    if METRIC_NAMES not in storage.get_study_system_attrs(study._study_id):  # other tools of Optuna show it
        storage.set_study_system_attr(study._study_id, METRIC_NAMES, [settings.study.metric])
    storage.exclude(study._study_id, StudyAttributes(study).exclusions)
    return study


def _not_comparable(plan: Plan, differences: list[str], obstacles: list[str], extend: bool) -> list[str]:
    remedy = "take a new name: study.name=..."
    if extend:
        return [*(f"--extend: needs a space that only grew, and {o}" for o in obstacles), remedy]
    if not obstacles:
        remedy += ", or, as the space only grew, --extend"
    return [
        f"study.name: {plan.name} exists with other settings, so that its trials are not comparable; {remedy}",
        *(f"  {d}" for d in differences),
    ]


def _create(storage: ExclusiveStorage, plan: Plan, *, with_baseline: bool) -> optuna.Study:
    """Create a study. After a kill the same steps complete it: each of them can be repeated."""
    home = plan.settings.location.paths
    # Checkpoints and logs that exist are of a study that the storage has lost. A trial of this study must not go on
    # with them.
    for folder in (plan.paths.checkpoints, plan.paths.logged):
        if folder.exists() and not set_aside(home.root, folder, home.set_aside):
            raise ConfigError(
                [f"study.name: must have no checkpoints of an earlier study, got {plan.name!r}, whose {folder} leads "
                 "out of the home; move it away, or take another study.name"]
            )  # fmt: skip
    study = load(storage, plan, plan.name)
    study.set_user_attr(PLAN, plan.to_json())
    if UID not in study.user_attrs:
        study.set_user_attr(UID, uuid.uuid4().hex)
    if with_baseline:
        _enqueue_first_trials(study, plan)
    study.set_user_attr(READY, True)
    return study


def _enqueue_first_trials(study: optuna.Study, plan: Plan) -> list[str]:
    """Enqueue the configurations that run before any sampled one, each once; return messages for the user."""
    trials = study.get_trials(deepcopy=False)
    given = {fingerprint(values) for t in trials if (values := values_of(t)) is not None}
    entries = {fingerprint(t.user_attrs[ENTRY]) for t in trials if ENTRY in t.user_attrs}
    sampled = [t.params for t in trials]

    def exists(first: FirstTrial) -> bool:
        is_given = fingerprint(first.entry) in entries or fingerprint(first.values) in given
        return is_given or (not first.outside and first.point in sampled)

    new = [first for first in plan.first_trials() if (first.entry or not trials) and not exists(first)]
    n_free = max(plan.budget.trials - len(trials), 0)
    for first in new[:n_free]:
        entry = {ENTRY: first.entry} if first.entry else {}
        study.enqueue_trial(first.point, user_attrs={**entry, VALUES: first.values, OUTSIDE: list(first.outside)})
    if len(new) > n_free:
        limit = "study.budget" if plan.settings.study.trials is None else "study.trials"
        keys = "study.enqueue, study.warm_start_from" if plan.warm_start else "study.enqueue"
        return [f"{keys}: {len(new) - n_free} of its entries wait until {limit}, which is spent, is raised"]
    return []


def _extend(storage: ExclusiveStorage, plan: Plan, old: Plan, source: str, name: str) -> optuna.Study:
    """Copy the trials of a study, with their numbers, into a new one that has the plan's distributions.

    Optuna refuses added choices, and its TPE rarely leaves the old bounds of a widened range. A key that is searched
    only now had its baseline value in all old trials. They get it where the space contains it. Trials that were running
    wait to be resumed: in a shared storage this process would own running copies, and no process would run them.
    """
    if any(s.study_name == name for s in storage.get_all_studies()):
        optuna.delete_study(study_name=name, storage=storage)  # an interrupted copy
    study = load(storage, plan, name)
    before = optuna.load_study(study_name=source, storage=storage)
    for t in before.get_trials(deepcopy=False):
        study.add_trial(_converted(t, plan, old))
    study.set_user_attr(PLAN, plan.to_json())
    study.set_user_attr(UID, before.user_attrs[UID])
    study.set_user_attr(MLFLOW, before.user_attrs.get(MLFLOW))
    study.set_user_attr(EXCLUDED, before.user_attrs.get(EXCLUDED) or {})
    for key, value in before.user_attrs.items():
        # The study knows for good what was asked of the test set, and its copied trials are paused at the old rungs.
        if key == FIRST_RUNG or key.startswith(TESTED):
            study.set_user_attr(key, value)
    study.set_user_attr(READY, True)
    storage.exclude(study._study_id, StudyAttributes(study).exclusions)
    return study


def restore(
    storage: ExclusiveStorage,
    plan: Plan,
    uid: str,
    trials: Iterable[FrozenTrial],
    complete: Callable[[StudyAttributes], None],
) -> None:
    """Write a study that was read from elsewhere. After a kill it can be repeated: an incomplete study is never read.

    Args:
        complete: Writes the further attributes of the study.
    """
    if any(s.study_name == plan.name for s in storage.get_all_studies()):
        assert plan.name not in latest_studies(storage), "only a lost study is restored"
        optuna.delete_study(study_name=plan.name, storage=storage)  # an interrupted restoration
    study = load(storage, plan, plan.name)
    with storage.together():
        for trial in trials:
            study.add_trial(trial)
    study.set_user_attr(PLAN, plan.to_json())
    study.set_user_attr(UID, uid)
    complete(StudyAttributes(study))
    study.set_user_attr(READY, True)


def _converted(t: FrozenTrial, plan: Plan, old: Plan) -> FrozenTrial:
    """Return a trial of the old plan as a trial of the plan."""
    given = values_of(t)
    params = old.space.decode(t.params)
    config = old.config(given) if given is not None else config_of_params(old, params)
    old_values = given if given is not None else params

    def value_of(key: str, _: Mapping[str, Any]) -> Any:
        return old_values.get(key, old.baseline(key)) if "." not in key else look_up(config, key)

    values, point, outside = plan.space.find(value_of)
    has_params = bool(t.params) or t.state != TrialState.WAITING
    if given is None:  # the values that it would have sampled for the old keys are unknown
        point = {name: value for name, value in point.items() if name not in old.space.names()}
    distributions = plan.space.names()
    stored = {**point, **t.params} if has_params else {}
    attrs = dict(t.user_attrs)
    if given is not None:
        attrs |= {VALUES: values, OUTSIDE: list(outside)}  # the wider space may hold what the old one did not
    elif outside and has_params:
        attrs[OUTSIDE] = list(outside)
    return FrozenTrial(
        number=-1,
        trial_id=-1,
        state=TrialState.WAITING if t.state == TrialState.RUNNING else t.state,
        value=t.value if t.state == TrialState.COMPLETE else None,
        datetime_start=t.datetime_start,
        datetime_complete=t.datetime_complete,
        params={name: stored[name] for name in distributions if name in stored},
        distributions={name: distributions[name] for name in distributions if name in stored},
        user_attrs=attrs,
        # The attributes of a sampler are dropped: its model has the old bounds.
        system_attrs={"fixed_params": point} if given is not None else {},
        intermediate_values=t.intermediate_values,
    )
