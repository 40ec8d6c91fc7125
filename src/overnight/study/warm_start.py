"""A study that starts where another one ended: that one's best trials, tried again before anything is drawn."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from overnight.config.paths import trial_name
from overnight.config.problems import ConfigError
from overnight.config.rules import nearest
from overnight.config.trees import look_up
from overnight.search.plan import Plan
from overnight.search.record import TrialRecord, config_of, ranked
from overnight.search.space import values_equal
from overnight.study.snapshot import StudyView, view


def resolved(plan: Plan) -> tuple[Plan, list[str]]:
    """The plan with what study.warm_start_from brings, and what there is to say of it, one line each.

    A study that has started keeps what it took then, whatever has become of the other one since. Raises ConfigError
    where there is no such study.
    """
    asked, location = plan.settings.study.warm_start_from, plan.settings.location
    if asked is None:
        return plan, []
    started, _ = view(location, plan.name)
    if started is not None and started.plan.settings.study.warm_start_from == asked:
        return replace(plan, warm_start=started.plan.warm_start), []
    source, names = view(location, asked.study)
    if source is None:
        there = f"one of {', '.join(names)}" if names else "a study, and there is none"
        hint = nearest(asked.study, names) if names else "; run that one first, or leave this out"
        raise ConfigError(
            [f"study.warm_start_from: must be {there} in {location.storage_description}, got {asked.study}{hint}"]
        )
    taken = best_in(plan, source, asked.top)
    return replace(plan, warm_start=tuple(taken.values())), [_told(source, list(taken))]


def best_in(plan: Plan, source: StudyView, top: int) -> dict[int, dict[str, Any]]:
    """The best `top` trials of another study that this one could have drawn, each once: number -> key -> value."""
    found: dict[int, dict[str, Any]] = {}
    for record in ranked(source.records, source.plan.settings):
        values = entry_of(plan, source.plan, record)
        if values and values not in found.values():
            found[record.number] = values
        if len(found) == top:
            break
    return found


def entry_of(plan: Plan, old: Plan, record: TrialRecord) -> dict[str, Any] | None:
    """Searched key -> value of an old plan's trial in this plan; None where the trial does not lie in its space.

    It lies there where what is searched now holds the trial's values, and what was searched then and is not now has
    the trial's values as written.
    """
    config, searched = config_of(record, old), set(plan.space.keys())

    def had(key: str) -> Any:
        return look_up(config, key) if "." in key else record.params.get(key, old.baseline(key))

    def value_of(key: str, values: Mapping[str, Any]) -> Any:
        try:
            return had(key) if key in searched else plan.baseline(key, values)
        except KeyError:  # the old study had no such key
            return plan.baseline(key, values)

    values, _, outside = plan.space.find(value_of)
    old_keys = old.space.keys()
    settled = [key for key in old_keys if key not in searched]
    return None if outside or not all(_agrees(plan, values, key, had) for key in settled) else values


def _agrees(plan: Plan, values: Mapping[str, Any], key: str, had: Any) -> bool:
    """Whether a key that is no longer searched is written as the trial had it, if it had it."""
    try:
        value = had(key)
    except KeyError:
        return True
    try:
        return values_equal(plan.baseline(key, values), value)
    except KeyError:
        return False


def _told(source: StudyView, numbers: list[int]) -> str:
    names = ", ".join(map(trial_name, numbers))
    if numbers:
        return f"study.warm_start_from: of {source.name}'s best trials these lie in this space and come first: {names}"
    complete = source.count("complete")
    return f"study.warm_start_from: none of {source.name}'s {complete} complete trials lies in this space"
