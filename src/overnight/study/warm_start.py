"""A study that begins with the best trials of another study."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from overnight.config.fields import nearest
from overnight.config.paths import trial_name
from overnight.config.problems import ConfigError
from overnight.config.trees import look_up
from overnight.config.values import fingerprint
from overnight.search.distributions import values_equal
from overnight.search.plan import Plan
from overnight.search.record import TrialRecord, config_of, ranked
from overnight.study.snapshot import StudyView, view


def resolve(plan: Plan) -> tuple[Plan, list[str]]:
    """Return the plan with the trials that study.warm_start_from brings, and messages for the user.

    A study that has started keeps its trials, whatever has become of the other study since.

    Raises:
        ConfigError: The other study does not exist.
    """
    wanted, location = plan.settings.study.warm_start_from, plan.settings.location
    if wanted is None:
        return plan, []
    started, _ = view(location, plan.name)
    if started is not None and started.plan.settings.study.warm_start_from == wanted:
        return replace(plan, warm_start=started.plan.warm_start), []
    source, names = view(location, wanted.study)
    if source is None:
        rule = f"one of {', '.join(names)}" if names else "a study, and there is none"
        remedy = nearest(wanted.study, names) if names else "; run that one first, or leave this out"
        raise ConfigError(
            [f"study.warm_start_from: must be {rule} in {location.storage_description}, got {wanted.study}{remedy}"]
        )
    entries = _best_entries(plan, source, wanted.top)
    return replace(plan, warm_start=tuple(entries.values())), [_message(source, list(entries))]


def _best_entries(plan: Plan, source: StudyView, top: int) -> dict[int, dict[str, Any]]:
    """Return the best `top` trials of the other study that are in the plan's space, each once: number -> values."""
    entries: dict[int, dict[str, Any]] = {}
    for record in ranked(source.records, source.plan.settings):
        values = _values_in(plan, source.plan, record)
        if values and fingerprint(values) not in map(fingerprint, entries.values()):
            entries[record.number] = values
        if len(entries) == top:
            break
    return entries


def _values_in(plan: Plan, old: Plan, record: TrialRecord) -> dict[str, Any] | None:
    """Return searched key -> value of an old plan's trial, or None if the trial is outside the plan's space.

    It is inside if the space contains its values, and each key that only the old plan searches has the trial's value in
    the plan's baseline.
    """
    config, searched = config_of(record, old), set(plan.space.keys())

    def old_value(key: str) -> Any:
        return look_up(config, key) if "." in key else record.params.get(key, old.baseline(key))

    def value_of(key: str, values: Mapping[str, Any]) -> Any:
        try:
            return old_value(key) if key in searched else plan.baseline(key, values)
        except KeyError:  # the old study had no such key
            return plan.baseline(key, values)

    values, _, outside = plan.space.find(value_of)
    old_keys = old.space.keys()
    fixed = [key for key in old_keys if key not in searched]
    return None if outside or not all(_agrees(plan, values, key, old_value) for key in fixed) else values


def _agrees(plan: Plan, values: Mapping[str, Any], key: str, old_value: Callable[[str], Any]) -> bool:
    """Whether the plan's baseline has the trial's value of a key, if the trial has one."""
    try:
        value = old_value(key)
    except KeyError:
        return True
    try:
        return values_equal(plan.baseline(key, values), value)
    except KeyError:
        return False


def _message(source: StudyView, numbers: list[int]) -> str:
    names = ", ".join(map(trial_name, numbers))
    if numbers:
        return f"study.warm_start_from: these of {source.name}'s best trials are in this space and run first: {names}"
    complete = source.count("complete")
    return f"study.warm_start_from: none of {source.name}'s {complete} complete trials is in this space"
