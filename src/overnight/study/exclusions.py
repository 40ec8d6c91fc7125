"""Trials that somebody marked bad: the ledger keeps them as they ended, and everybody sees them as failed.

The mark is the study's, not the trial's: Optuna changes nothing about a trial that has ended, and a mark can be taken
back. Samplers and pruners ask the storage, and so do we; it answers with the marks put in.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from overnight.search.record import DETAIL, NOTES, REASON

BAD = "overnight.bad"  # in a study's user attributes: a trial's number, as text -> why
MARKED = "marked bad"


def of(study_attrs: Mapping[str, Any]) -> dict[str, str]:
    return dict(study_attrs.get(BAD) or {})


def seen(trials: Iterable[FrozenTrial], bad: Mapping[str, str]) -> list[FrozenTrial]:
    """The trials with those that are marked as failed ones."""
    return [_failed(t, bad[str(t.number)]) if str(t.number) in bad else t for t in trials]


def apply_exclusions(study: optuna.Study) -> optuna.Study:
    """The study, whose samplers and pruners see its marks from here on."""
    bad, storage = of(study.user_attrs), study._storage
    if not bad:
        return study
    as_they_are, mine = storage.get_all_trials, study._study_id

    def get_all_trials(study_id: int, deepcopy: bool = True, states: Any = None) -> list[FrozenTrial]:
        trials = as_they_are(study_id, deepcopy=deepcopy)
        trials = seen(trials, bad) if study_id == mine else trials
        return trials if states is None else [t for t in trials if t.state in states]

    storage.get_all_trials = get_all_trials  # type: ignore[method-assign]
    return study


def _failed(t: FrozenTrial, why: str) -> FrozenTrial:
    if t.state not in (TrialState.COMPLETE, TrialState.PRUNED):
        return t
    failed = copy.copy(t)
    failed.state, failed.values = TrialState.FAIL, None
    note = f"{MARKED}: {why}" if why else MARKED
    notes = [*t.user_attrs.get(NOTES, ()), note]
    failed.user_attrs = {**t.user_attrs, REASON: MARKED, DETAIL: "", NOTES: notes}
    return failed
