"""A study as somebody sees it who does not hold it: read from the ledger, which is left as it is."""

from __future__ import annotations

import re
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from optuna.storages import BaseStorage

from overnight.config.paths import StudyLocation
from overnight.config.problems import ConfigError
from overnight.protocol import Tested
from overnight.search.attributes import PLAN, READY, REFUSED, STOP
from overnight.search.plan import CONFIRM_SUFFIX, TRAIN_STUDY, Plan
from overnight.search.record import State, TrialRecord, best_of, record_of
from overnight.study.attributes import StoredAttributes
from overnight.study.exclusions import with_exclusions
from overnight.study.storage import optuna_tables
from overnight.study.storage.database import OptunaDatabase, opened, without_collecting
from overnight.study.storage.lock import holder_of


@dataclass(frozen=True)
class StudyView:
    """A study as somebody who does not hold it sees it."""

    name: str
    plan: Plan
    records: tuple[TrialRecord, ...]
    holder: dict[str, Any] | None
    experiment_id: str | None
    parent_run_id: str | None
    uid: str = ""
    tests: Mapping[int, Tested] = field(default_factory=dict)
    confirmation: StudyView | None = None  # of a search, once it has one
    launch: Mapping[str, Any] = field(default_factory=dict)  # the last one, as limits.Launch keeps it
    refused: Mapping[str, Sequence[str]] = field(default_factory=dict)  # a machine's name -> why its worker does not
    wanted: frozenset[tuple[int, int]] = frozenset()  # of a confirmation: (trial, nth seed) of what is asked for

    @property
    def budget(self) -> int:
        """Of trials, in all; what was trained one by one counts as asked for."""
        return max(self.plan.budget, len(self.records) if self.name == TRAIN_STUDY else 0)

    def count(self, *states: State) -> int:
        return sum(r.state in states for r in self.records)

    @property
    def confirmed(self) -> int:
        """How many trials of the confirmation are done."""
        return self.confirmation.count("complete", "pruned", "failed") if self.confirmation is not None else 0

    @property
    def confirmations(self) -> int:
        """How many there are to be; at most, as long as the search goes on."""
        return len(self.confirmation.records) if self.confirmation is not None else self.plan.confirmation_trials

    @property
    def state(self) -> Literal["running", "paused", "stalled", "done"]:
        """running: somebody works on it. stalled: its trials say running, and nobody is. done: the budget is spent, and
        what there is to confirm is confirmed."""
        if self.holder is not None:
            return "running"
        spent = self.count("complete", "pruned", "failed") >= self.budget and not self.count("waiting", "paused")
        if (spent or self.launch.get("ended_by") in ("patience", "terminator")) and not self.count("running"):
            if self.best is None or not self.plan.confirmation_trials:
                return "done"
            return self.confirmation.state if self.confirmation is not None else "paused"
        return "stalled" if self.count("running") else "paused"

    @property
    def best(self) -> TrialRecord | None:
        """None for `train`: what was trained one by one need not share a metric."""
        return best_of(self.records, self.plan.settings) if self.name != TRAIN_STUDY else None


def view(location: StudyLocation, name: str | None = None) -> tuple[StudyView | None, list[str]]:
    """A study as it stands, without touching it, and the names of all studies, the one worked on last first.

    name: which; without one, the one worked on last. The view is None where the ledger has no such study.
    """
    if location.storage_url is None and not location.paths.optuna_db.exists():
        return None, []
    with opened(location) as storage:
        newest, names = _newest(storage)
        name = name if name is not None else names[0] if names else None
        if name is None or name not in newest:
            return None, names
        confirmation = (
            _as_wanted(_read(storage, location, name + CONFIRM_SUFFIX)) if name + CONFIRM_SUFFIX in newest else None
        )
        return replace(_read(storage, location, name), confirmation=confirmation), names


def wanted(location: StudyLocation) -> list[str]:
    """The names of the studies that workers are to work on, the one that was launched first first."""
    with opened(location) as storage:
        ready = {
            f.study_name: StoredAttributes(f.user_attrs) for f in storage.get_all_studies() if f.user_attrs.get(READY)
        }
        open_ = {name for name, a in ready.items() if not a.is_closed and not a.stop_requested}
        newest = {n: f for n, f in _newest(storage)[0].items() if n != TRAIN_STUDY and not n.endswith(CONFIRM_SUFFIX)}
        return [n for n, f in newest.items() if f.study_name in open_]


def refuse(location: StudyLocation, name: str, why: Sequence[str]) -> None:
    """Have whoever looks at a study see why this machine's worker does not work on it."""
    with opened(location) as storage:
        _, frozen = generations(storage, name)
        if frozen is not None:
            storage.set_study_user_attr(frozen._study_id, REFUSED + socket.gethostname(), list(why))


def refused(location: StudyLocation, name: str) -> list[str]:
    """Why this machine's worker does not work on a study, as the ledger keeps it; empty once it is launched anew."""
    with opened(location) as storage:
        _, frozen = generations(storage, name)
        return list(frozen.user_attrs.get(REFUSED + socket.gethostname()) or ()) if frozen is not None else []


def names_in(location: StudyLocation) -> list[str]:
    """The names of all studies, the one worked on last first; of those too whose plans this version can't read."""
    if location.storage_url is None and not location.paths.optuna_db.exists():
        return []
    with opened(location) as storage:
        return _newest(storage)[1]


def _newest(storage: OptunaDatabase) -> tuple[dict[str, Any], list[str]]:
    """Name -> newest whole ledger study, confirmations among them; and the names of the others, the last one first."""
    newest = {f.study_name.partition("~")[0]: f for f in storage.get_all_studies() if f.user_attrs.get(READY)}
    names = sorted(n for n in newest if not n.endswith(CONFIRM_SUFFIX))
    if len(names) > 1:
        latest = {n: _last_start(storage, newest[n]._study_id) for n in names}
        names.sort(key=lambda n: -latest[n])
    return newest, names


def _read(storage: OptunaDatabase, location: StudyLocation, name: str) -> StudyView:
    frozen = generations(storage, name)[1]
    attributes = StoredAttributes(frozen.user_attrs)
    plan = plan_of(name, frozen.user_attrs).relocated(location)
    with without_collecting():
        trials = storage.trials_without_reports(frozen._study_id)
        records = tuple(record_of(t, plan) for t in with_exclusions(trials, attributes.exclusions))
    return StudyView(
        name,
        plan,
        records,
        holder_of(location, name),
        attributes.experiment_id,
        attributes.parent_run_id,
        attributes.uid,
        attributes.tests,
        launch=attributes.launch,
        refused=attributes.refusals,
        wanted=attributes.wanted,
    )


def _as_wanted(view: StudyView) -> StudyView:
    """A confirmation less what still waits for finalists that are none any more."""

    def counts(r: TrialRecord) -> bool:
        return r.done or r.confirms is None or (r.confirms.trial, r.confirms.nth_seed) in view.wanted

    return replace(view, records=tuple(r for r in view.records if counts(r))) if view.wanted else view


def _last_start(storage: OptunaDatabase, study_id: int) -> float:
    with storage.engine.connect() as database:
        return optuna_tables.last_start(database, study_id)


def request_stop(location: StudyLocation, name: str) -> None:
    """Ask whoever works on the study to save and stop."""
    with opened(location) as storage:
        for asked in (name, name + CONFIRM_SUFFIX):
            _, frozen = generations(storage, asked)
            if frozen is not None:
                storage.set_study_user_attr(frozen._study_id, STOP, True)


def plan_of(name: str, attrs: Mapping[str, Any]) -> Plan:
    """The plan that a study keeps. Raises ConfigError with what to do where this version can't read it."""
    try:
        return Plan.from_json(attrs[PLAN])
    except ConfigError as error:
        first = (
            f"study: {name} was made by another version of overnight, whose plan this one can't read; go on with that "
            f"version, take a new study.name, or `overnight delete {name}`"
        )
        raise ConfigError([first, *(f"  {problem}" for problem in error.problems)]) from error


def generations(storage: BaseStorage, name: str) -> tuple[int, Any]:
    """The newest whole ledger study under a name, with its generation: NAME is 1, NAME~2 the first extension."""
    found = []
    for frozen in storage.get_all_studies():
        match = re.fullmatch(re.escape(name) + r"(?:~(\d+))?", frozen.study_name)
        if match and frozen.user_attrs.get(READY):
            found.append((int(match[1] or 1), frozen))
    return max(found, key=lambda pair: pair[0]) if found else (0, None)
