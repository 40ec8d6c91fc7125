"""Excluded trials: the storage keeps them as they ended, and readers see them as failed.

The exclusion is an attribute of the study, not of the trial, because Optuna forbids changes to a trial that has ended.
An exclusion can be withdrawn. Samplers and pruners read trials through the storage, which applies the exclusions.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping

from optuna.trial import FrozenTrial, TrialState

from overnight.config.paths import trial_name
from overnight.search.attributes import DETAIL, NOTES, REASON
from overnight.search.record import TrialRecord

MARKED = "marked bad"  # the reason of an excluded trial


def with_exclusions(trials: Iterable[FrozenTrial], exclusions: Mapping[int, str]) -> list[FrozenTrial]:
    """Return the trials, with the excluded ones as failed. exclusions: number of a trial -> why."""
    return [_failed(t, exclusions[t.number]) if t.number in exclusions else t for t in trials]


def describe_excluded(records: Iterable[TrialRecord]) -> list[str]:
    """Return one line for each reason, with its excluded trials: trial-0002, trial-0005: marked bad: wrong labels."""
    by_note: dict[str, list[str]] = {}
    for r in records:
        if r.reason == MARKED:
            by_note.setdefault(r.notes[-1], []).append(trial_name(r.number))
    return [f"{', '.join(names)}: {note}" for note, names in by_note.items()]


def _failed(t: FrozenTrial, why: str) -> FrozenTrial:
    if t.state not in (TrialState.COMPLETE, TrialState.PRUNED):
        return t
    failed = copy.copy(t)
    failed.state, failed.values = TrialState.FAIL, None
    note = f"{MARKED}: {why}" if why else MARKED
    notes = [*t.user_attrs.get(NOTES, ()), note]
    failed.user_attrs = {**t.user_attrs, REASON: MARKED, DETAIL: "", NOTES: notes}
    return failed
