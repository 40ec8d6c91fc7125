"""A study as it is stored, read without opening it for work."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from optuna.storages import BaseStorage
from optuna.study._frozen import FrozenStudy

from overnight.config.paths import StudyLocation
from overnight.config.problems import ConfigError
from overnight.protocol import Tested
from overnight.search import patience
from overnight.search.attributes import PLAN, READY
from overnight.search.plan import CONFIRM_SUFFIX, TRAIN_STUDY, Plan
from overnight.search.record import State, TrialRecord, best_of, record_of
from overnight.search.schedulers.study import is_spent, progress_text
from overnight.study.attributes import StoredAttributes
from overnight.study.exclusions import with_exclusions
from overnight.study.storage import optuna_tables
from overnight.study.storage.access import require_readable
from overnight.study.storage.database import OptunaDatabase, opened, without_collecting
from overnight.study.storage.home import settle
from overnight.study.storage.lock import holder_of


@dataclass(frozen=True)
class StudyView:
    """A study as it is stored at one moment.

    Attributes:
        holder: The process that works on it, as `holder_of` describes it; None if none does.
        tests: Number of a confirmation's trial -> its scores on the test set.
        confirmation: Of a search, once it has one.
        launch: The last one, as `limits.Launch` writes it.
        refusals: Host name -> why its worker refuses the study, line by line.
        wanted: (trial, nth seed) of every run that a confirmation asks for.
        tested_by_hand: Number of a trial -> when `overnight test` was asked of it, and its scores.
        finished: What the last launch left in both stores; empty if the study is not finished.
    """

    name: str
    plan: Plan
    records: tuple[TrialRecord, ...]
    holder: dict[str, Any] | None
    experiment_id: str | None
    parent_run_id: str | None
    uid: str = ""
    tests: Mapping[int, Tested] = field(default_factory=dict)
    confirmation: StudyView | None = None
    launch: Mapping[str, Any] = field(default_factory=dict)
    refusals: Mapping[str, Sequence[str]] = field(default_factory=dict)
    wanted: frozenset[tuple[int, int]] = frozenset()
    finished: Mapping[str, Any] = field(default_factory=dict)
    tested_by_hand: Mapping[int, Mapping[str, Any]] = field(default_factory=dict)

    @property
    def budget(self) -> int:
        """The number of trials in all. `train` has no limit: each of its trials was asked for."""
        return max(self.plan.budget.trials, len(self.records) if self.name == TRAIN_STUDY else 0)

    def count(self, *states: State) -> int:
        return sum(r.state in states for r in self.records)

    @property
    def confirmed(self) -> int:
        """The number of runs of the confirmation that have ended."""
        return self.confirmation.count("complete", "pruned", "failed") if self.confirmation is not None else 0

    @property
    def confirmations(self) -> int:
        """The number of runs of the confirmation; before it starts, the largest possible number."""
        return len(self.confirmation.records) if self.confirmation is not None else self.plan.confirmation_trials

    @property
    def progress(self) -> str:
        """How much of the budget is spent, such as "12 of 30 trials" or "345 of 600 epochs"."""
        if self.name == TRAIN_STUDY:
            return f"{self.count('complete', 'pruned', 'failed')} of {self.budget} trials"
        return progress_text(self.records, self.plan)

    @property
    def is_spent(self) -> bool:
        """Whether the search has nothing left to do."""
        if self.plan.pauses:
            return is_spent(self.records, self.plan)
        return self.count("complete", "pruned", "failed") >= self.budget and not self.count("waiting", "paused")

    @property
    def finishes(self) -> bool:
        """Whether the search starts no more trials and completes its best ones, because of study.patience."""
        return self.plan.pauses and patience.finish_reason(self.records, self.plan) is not None

    @property
    def state(self) -> Literal["running", "paused", "stalled", "complete"]:
        """The state of the study.

        running: a process works on it. stalled: trials are marked as running, but no process works on it. complete: the
        budget is spent and the finalists are confirmed.
        """
        if self.holder is not None:
            return "running"
        if (self.is_spent or self.launch.get("ended_by") in ("patience", "terminator")) and not self.count("running"):
            if self.best is None or not self.plan.confirmation_trials:
                return "complete"
            return self.confirmation.state if self.confirmation is not None else "paused"
        return "stalled" if self.count("running") else "paused"

    @property
    def best(self) -> TrialRecord | None:
        """The best complete trial. None for `train`, whose trials need not share a metric."""
        return best_of(self.records, self.plan.settings) if self.name != TRAIN_STUDY else None

    @property
    def latest(self) -> TrialRecord | None:
        """The complete trial that ended last."""
        complete = [r for r in self.records if r.state == "complete" and r.objective is not None]
        return max(complete, key=lambda r: (r.ended_at or 0.0, r.number), default=None)

    def metric_of(self, record: TrialRecord) -> str:
        """The metric of a trial's objective. Each trial of `train` has its own."""
        metric = self.plan.settings.study.metric
        return str(record.params.get("metric", metric)) if self.name == TRAIN_STUDY else metric


def view(location: StudyLocation, name: str | None = None) -> tuple[StudyView | None, list[str]]:
    """Read a study without changing anything.

    Args:
        name: Of the study; None for the most recent one.

    Returns:
        The study, or None if it does not exist, and the names of all studies, the most recent first.
    """
    if _has_no_studies(location):
        return None, []
    with opened(location) as storage:
        latest = latest_studies(storage)
        names = _by_recency(storage, latest)
        name = name if name is not None else names[0] if names else None
        if name is None or name not in latest:
            return None, names
        confirmation = latest.get(name + CONFIRM_SUFFIX)
        confirmed = _read(storage, location, confirmation) if confirmation is not None else None
        seen = _read(storage, location, latest[name])
        return replace(seen, confirmation=_without_former_finalists(confirmed) if confirmed else None), names


def study_names(location: StudyLocation) -> list[str]:
    """Return the names of all studies, the most recent first. Includes studies whose plan can't be read."""
    if _has_no_studies(location):
        return []
    with opened(location) as storage:
        return _by_recency(storage, latest_studies(storage))


def latest_studies(storage: BaseStorage) -> dict[str, FrozenStudy]:
    """Return name -> the Optuna study of each study that was created in full, confirmations included.

    An extended study is a new Optuna study: NAME~2 is the first extension of NAME. The latest one counts.
    """
    latest: dict[str, FrozenStudy] = {}
    for stored in storage.get_all_studies():
        name = study_name(stored)
        if stored.user_attrs.get(READY) and (name not in latest or generation(stored) > generation(latest[name])):
            latest[name] = stored
    return latest


def study_name(stored: FrozenStudy) -> str:
    return stored.study_name.partition("~")[0]


def generation(stored: FrozenStudy) -> int:
    """Return 1, or n + 1 after n extensions."""
    return int(stored.study_name.partition("~")[2] or 1)


def stored_plan(stored: FrozenStudy) -> Plan:
    """Return the plan of a stored study. Raises ConfigError if this version can't read it."""
    try:
        return Plan.from_json(stored.user_attrs[PLAN])
    except ConfigError as error:
        name = study_name(stored)
        first = (
            f"study: {name} was made by another version of overnight, whose plan this one can't read; resume it with "
            f"that version, take a new study.name, or `overnight delete {name}`"
        )
        raise ConfigError([first, *(f"  {problem}" for problem in error.problems)]) from error


def reject_old_home(location: StudyLocation) -> None:
    """Raise ConfigError for a home that an unreleased version of overnight wrote."""
    root = location.paths.root
    if location.storage_url is None and not location.paths.optuna_db.exists() and (root / "ledger.db").exists():
        found = f"got {str(root)!r}, which an unreleased older version wrote"
        raise ConfigError([f"home: must be new or of this version, {found}; take a new home=..."])


def _has_no_studies(location: StudyLocation) -> bool:
    require_readable(location)
    reject_old_home(location)
    settle(location)
    return location.storage_url is None and not location.paths.optuna_db.exists()


def _by_recency(storage: OptunaDatabase, latest: Mapping[str, FrozenStudy]) -> list[str]:
    names = sorted(name for name in latest if not name.endswith(CONFIRM_SUFFIX))
    if len(names) < 2:
        return names
    with storage.engine.connect() as database:
        starts = {name: optuna_tables.last_start(database, latest[name]._study_id) for name in names}
    return sorted(names, key=lambda name: -starts[name])


def _read(storage: OptunaDatabase, location: StudyLocation, stored: FrozenStudy) -> StudyView:
    name, attributes = study_name(stored), StoredAttributes(stored.user_attrs)
    plan = stored_plan(stored).relocated(location)
    with without_collecting():
        trials = storage.trials_without_reports(stored._study_id)
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
        refusals=attributes.refusals,
        wanted=attributes.wanted,
        finished=attributes.finished,
        tested_by_hand=attributes.tested_by_hand,
    )


def _without_former_finalists(confirmation: StudyView) -> StudyView:
    """Return the confirmation without queued runs of former finalists."""
    if not confirmation.wanted:
        return confirmation
    records = tuple(
        r
        for r in confirmation.records
        if r.done or r.confirms is None or (r.confirms.trial, r.confirms.nth_seed) in confirmation.wanted
    )
    return replace(confirmation, records=records)
