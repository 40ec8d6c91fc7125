"""The ledger: one study in Optuna's storage, the one truth about it.

Optuna keeps one float a step, so every metric of every epoch, with its time, is kept beside it: packed in one user
attribute a trial. A trial that stops unfinished goes back to WAITING and is handed out again with its number, its
parameters and its history.
"""

from __future__ import annotations

import json
import math
import os
import re
import socket
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import optuna
import psutil
import sqlalchemy
from filelock import FileLock, Timeout
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.storages import BaseStorage, RDBStorage
from optuna.trial import FrozenTrial, TrialState

from overnight import sampling
from overnight.messages import EpochEnd
from overnight.plan import Plan
from overnight.settings import ConfigError, Settings

State = Literal["waiting", "running", "paused", "complete", "pruned", "failed"]
FINISHED = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)
# Names of what we keep in Optuna's user attributes.
_PLAN, _READY, _STOP, _LINKS = "overnight.plan", "overnight.ready", "overnight.stop", "overnight.mlflow"
_HISTORY, _BASELINE, _CONFIG = "overnight.history", "overnight.baseline", "overnight.config"
_REASON, _DETAIL, _ATTEMPTS, _NOTES = "overnight.reason", "overnight.detail", "overnight.attempts", "overnight.notes"


@dataclass(frozen=True)
class TrialRecord:
    """One trial as the ledger has it. Times in seconds since 1970; history in order of epochs; params flat."""

    number: int
    state: State
    params: dict[str, Any]
    history: tuple[EpochEnd, ...]
    objective: float | None
    reason: str | None
    detail: str
    started_at: float | None
    ended_at: float | None
    notes: tuple[str, ...] = ()
    config: dict[str, Any] | None = None  # of a trial that brought its own; a study's come from its plan

    @property
    def done(self) -> bool:
        return self.state in ("complete", "pruned", "failed")


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
    unwritten: bool = False


@dataclass
class Ledger:
    """An open study, held by this process. Made by `open_study`; closed by `close`."""

    plan: Plan
    study: optuna.Study
    lock: FileLock
    holder: Path
    _live: dict[int, _Live] = field(default_factory=dict)

    # Trials out

    def ask(self) -> Ticket | None:
        """The next trial to run, a paused one first; None where the budget is spent or on its way to be."""
        trials = self.trials()
        if not any(t.state == TrialState.WAITING for t in trials) and len(trials) >= self.plan.settings.study.trials:
            return None
        return self._ticket(self.study.ask())

    def ask_for(self, number: int) -> Ticket:
        """One waiting trial, by its number."""
        trial_id = self.trials()[number]._trial_id
        self.storage.set_trial_state_values(trial_id, TrialState.RUNNING)
        return self._ticket(optuna.Trial(self.study, trial_id))

    def enqueue(self, config: Mapping[str, Any]) -> int:
        """The number of a waiting trial of exactly this config: a paused one that goes on, or a new one."""
        for t in self.trials():
            if t.state == TrialState.WAITING and t.user_attrs.get(_CONFIG) == config:
                return t.number
        self.study.enqueue_trial({}, user_attrs={_CONFIG: dict(config)})
        return self.trials()[-1].number

    def _ticket(self, trial: optuna.Trial) -> Ticket:
        attrs = trial.user_attrs
        values: dict[str, Any] = {}
        if attrs.get(_BASELINE):
            for name in self.storage.get_trial_system_attrs(trial._trial_id).get("fixed_params", {}):
                _suggest(trial, name, self.plan.space.names()[name])
        elif _CONFIG not in attrs:
            values = self.plan.space.draw(lambda name, dist: _suggest(trial, name, dist), self.plan.written)
        config = attrs[_CONFIG] if _CONFIG in attrs else self.plan.config(values)
        seed = self.plan.trial_seed(0 if _CONFIG in attrs else trial.number)
        self._live[trial.number] = _Live(trial, {e.epoch: e for e in _unpack(trial.number, attrs.get(_HISTORY))})
        return Ticket(trial.number, seed, values, config, attrs.get(_ATTEMPTS, 0))

    # Reports in

    def record(self, done: EpochEnd) -> bool:
        """Keep an epoch's metrics; False where the ledger had that epoch already and so keeps what it has."""
        live = self._live[done.number]
        if done.epoch in live.history:
            return False
        live.history[done.epoch] = done
        live.unwritten = True
        value = done.metrics[self.plan.settings.study.metric]
        if math.isfinite(value):
            live.trial.report(value, done.epoch)
        return True

    def should_prune(self, number: int) -> bool:
        return self._live[number].trial.should_prune()

    def flush(self) -> None:
        """Write what was recorded since the last flush. What a kill takes from memory, a trial's state still holds."""
        for live in self._live.values():
            if live.unwritten:
                live.trial.set_user_attr(_HISTORY, _pack(live.history.values()))
                live.unwritten = False

    def progressed(self, number: int) -> None:
        """A state was saved: what crashes from here on has not crashed before."""
        if self._live[number].trial.user_attrs.get(_ATTEMPTS):
            self._live[number].trial.set_user_attr(_ATTEMPTS, 0)

    # Trials in

    def complete(self, number: int, notes: Iterable[str] = ()) -> TrialRecord:
        value = self.objective(self._live[number].history.values())
        assert value is not None, "a trial that is complete has reported"
        return self._tell(number, TrialState.COMPLETE, value, notes=notes)

    def prune(self, number: int, notes: Iterable[str] = ()) -> TrialRecord:
        return self._tell(number, TrialState.PRUNED, notes=notes)

    def fail(self, number: int, reason: str, detail: str, notes: Iterable[str] = ()) -> TrialRecord:
        trial = self._live[number].trial
        trial.set_user_attr(_REASON, reason)
        trial.set_user_attr(_DETAIL, detail[-20_000:])
        return self._tell(number, TrialState.FAIL, notes=notes)

    def pause(self, number: int, attempts: int = 0) -> TrialRecord:
        """Put a trial back, to be handed out again as it is."""
        self.flush()
        live = self._live.pop(number)
        if attempts or live.trial.user_attrs.get(_ATTEMPTS):
            live.trial.set_user_attr(_ATTEMPTS, attempts)
        self.storage.set_trial_state_values(live.trial._trial_id, TrialState.WAITING)
        return self.read(number)

    def _tell(
        self, number: int, state: TrialState, value: float | None = None, notes: Iterable[str] = ()
    ) -> TrialRecord:
        self.flush()
        live = self._live.pop(number)
        if notes:
            live.trial.set_user_attr(_NOTES, list(notes))
        self.study.tell(number, value, state=state)
        return self.read(number)

    def put_back_orphans(self) -> list[int]:
        """Trials that a dead holder left running, put back to be gone on with; their numbers."""
        orphans = [t for t in self.trials() if t.state == TrialState.RUNNING and t.number not in self._live]
        for t in orphans:
            self.storage.set_trial_state_values(t._trial_id, TrialState.WAITING)
        return [t.number for t in orphans]

    # Reading

    @property
    def storage(self) -> BaseStorage:
        return self.study._storage

    def trials(self) -> list[FrozenTrial]:
        return self.study.get_trials(deepcopy=False)

    def read(self, number: int) -> TrialRecord:
        live = self._live.get(number)
        frozen = self.storage.get_trial(live.trial._trial_id) if live else self.trials()[number]
        record = record_of(frozen, self.plan)
        if live is None:
            return record
        history = tuple(live.history[e] for e in sorted(live.history))
        return TrialRecord(**{**vars(record), "history": history})

    def records(self) -> list[TrialRecord]:
        return [self.read(t.number) for t in self.trials()]

    def objective(self, history: Iterable[EpochEnd]) -> float | None:
        return objective_of(history, self.plan.settings)

    # Words between processes

    def stop_requested(self) -> bool:
        return bool(self.storage.get_study_user_attrs(self.study._study_id).get(_STOP))

    def clear_stop(self) -> None:
        if self.stop_requested():
            self.study.set_user_attr(_STOP, False)

    def link(self, experiment_id: str, parent_run_id: str) -> None:
        """Keep where MLflow shows this study."""
        self.study.set_user_attr(_LINKS, {"experiment_id": experiment_id, "parent_run_id": parent_run_id})

    def close(self) -> None:
        self.flush()
        self.holder.unlink(missing_ok=True)
        self.lock.release()
        _dispose(self.storage)


class Held(RuntimeError):
    """Another process works on the study; the message says which."""


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
    home = plan.settings.where
    home.root.mkdir(parents=True, exist_ok=True)
    lock, holder = _hold(plan)
    try:
        storage = _storage(plan.settings)
        study, said = _continue_or_create(storage, plan, extend, comparable)
        ledger = Ledger(plan, study, lock, holder)
        ledger.clear_stop()
        orphans = ledger.put_back_orphans()
        if orphans:
            said.append(f"{len(orphans)} trial(s) were cut off and go on: {', '.join(map(str, orphans))}")
        return ledger, said
    except BaseException:
        holder.unlink(missing_ok=True)
        lock.release()
        raise


def _continue_or_create(
    storage: RDBStorage, plan: Plan, extend: bool, comparable: bool
) -> tuple[optuna.Study, list[str]]:
    generation, before = _generations(storage, plan.name)
    if before is None:
        return _create(storage, plan, plan.name, comparable), []
    old = Plan.from_json(before.user_attrs[_PLAN])
    differences = plan.differences(old) if comparable else []
    if not differences:
        study = _load(storage, plan, before.study_name)
        if before.user_attrs[_PLAN] != plan.to_json():
            study.set_user_attr(_PLAN, plan.to_json())  # budget, slots, pruner and the like may change
        return study, []
    moved = [d for d in differences if not d.startswith("search.")]
    lacking = plan.space.grew_from(old.space)
    if not extend or moved or lacking:
        raise ConfigError(_refusal(plan, differences, [*moved, *lacking], extend))
    study = _extended(storage, plan, old, before.study_name, f"{plan.name}~{generation + 1}")
    return study, [f"extended: {len(study.get_trials(deepcopy=False))} trials copied into the wider space"]


def _refusal(plan: Plan, differences: list[str], in_the_way: list[str], extend: bool) -> list[str]:
    remedy = "take a new name: study.name=..."
    if extend:
        return [*(f"--extend: takes a space that only grew, and {d}" for d in in_the_way), remedy]
    if not in_the_way:
        remedy += ", or, as the space only grew, --extend"
    return [f"study.name: {plan.name} exists and was asked for differently, its trials would not compare; {remedy}",
            *(f"  {d}" for d in differences)]


def _create(storage: RDBStorage, plan: Plan, name: str, with_baseline: bool) -> optuna.Study:
    """Create a study step by step, each of which a cut one repeats; the configuration as written is trial 0."""
    study = _load(storage, plan, name)
    study.set_user_attr(_PLAN, plan.to_json())
    if with_baseline and not study.get_trials(deepcopy=False):
        study.enqueue_trial(plan.baseline(), user_attrs={_BASELINE: True})
    study.set_user_attr(_READY, True)
    return study


def _extended(storage: RDBStorage, plan: Plan, old: Plan, source: str, name: str) -> optuna.Study:
    """Copy a study's trials, numbers kept, into a new one with the plan's distributions.

    Optuna refuses grown choices, and its TPE hardly leaves the old ends of a widened range. A key that is searched
    now and was not before had its written value all along, and gets it where the space holds that.
    """
    if any(s.study_name == name for s in optuna.get_all_study_summaries(storage)):
        optuna.delete_study(study_name=name, storage=storage)  # a copy that was cut off
    study = _load(storage, plan, name)
    names, old_names = plan.space.names(), old.space.names()
    added = {n: v for n, v in plan.space.written_point(old.written).items() if n not in old_names}
    for t in optuna.load_study(study_name=source, storage=storage).get_trials(deepcopy=False):
        asked = bool(t.params) or t.state != TrialState.WAITING
        params = {**t.params, **added} if asked else {}
        study.add_trial(optuna.trial.FrozenTrial(
            number=-1, trial_id=-1, state=t.state, value=t.value if t.state == TrialState.COMPLETE else None,
            datetime_start=t.datetime_start, datetime_complete=t.datetime_complete, params=params,
            distributions={n: names[n] for n in params}, user_attrs=t.user_attrs, system_attrs=t.system_attrs,
            intermediate_values=t.intermediate_values,
        ))
    study.set_user_attr(_PLAN, plan.to_json())
    study.set_user_attr(_LINKS, optuna.load_study(study_name=source, storage=storage).user_attrs.get(_LINKS))
    study.set_user_attr(_READY, True)
    return study


def _load(storage: RDBStorage, plan: Plan, name: str) -> optuna.Study:
    settings = plan.settings
    return optuna.create_study(
        study_name=name,
        storage=storage,
        direction=settings.study.direction,
        sampler=sampling.sampler(settings.sampler, settings.seed),
        pruner=sampling.pruner(settings.pruner, settings.trainer.max_epochs),
        load_if_exists=True,
    )


def _generations(storage: RDBStorage, name: str) -> tuple[int, Any]:
    """The newest whole ledger study under a name, with its generation: NAME is 1, NAME~2 the first extension."""
    found = []
    for frozen in storage.get_all_studies():
        match = re.fullmatch(re.escape(name) + r"(?:~(\d+))?", frozen.study_name)
        if match and frozen.user_attrs.get(_READY):
            found.append((int(match[1] or 1), frozen))
    return max(found, key=lambda pair: pair[0]) if found else (0, None)


# Looking on -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class StudyView:
    """A study as somebody who does not hold it sees it."""

    name: str
    plan: Plan
    records: tuple[TrialRecord, ...]
    holder: dict[str, Any] | None
    experiment_id: str | None
    parent_run_id: str | None

    @property
    def budget(self) -> int:
        return self.plan.settings.study.trials

    def count(self, *states: State) -> int:
        return sum(r.state in states for r in self.records)

    @property
    def state(self) -> Literal["running", "paused", "stalled", "done"]:
        """running: somebody works on it. stalled: its trials say running, and nobody is. done: the budget is spent."""
        if self.holder is not None:
            return "running"
        if self.count("complete", "pruned", "failed") >= self.budget and not self.count("running", "waiting", "paused"):
            return "done"
        return "stalled" if self.count("running") else "paused"

    @property
    def best(self) -> TrialRecord | None:
        return best_of(self.records, self.plan.settings)


def study_names(settings: Settings) -> list[str]:
    """Every study in the ledger, the one that was worked on last first."""
    if settings.storage.url is None and not settings.where.ledger.exists():
        return []
    storage = _storage(settings)
    latest: dict[str, float] = {}
    for frozen in storage.get_all_studies():
        if frozen.user_attrs.get(_READY):
            started = [t.datetime_start.timestamp() for t in storage.get_all_trials(frozen._study_id, deepcopy=False)
                       if t.datetime_start]
            name = frozen.study_name.partition("~")[0]
            latest[name] = max([latest.get(name, 0.0), *started])
    _dispose(storage)
    return sorted(latest, key=lambda name: -latest[name])


def view(settings: Settings, name: str) -> StudyView | None:
    """A study as it stands, without touching it; None where the ledger has none of that name."""
    if settings.storage.url is None and not settings.where.ledger.exists():
        return None
    storage = _storage(settings)
    try:
        _, frozen = _generations(storage, name)
        if frozen is None:
            return None
        plan = Plan.from_json(frozen.user_attrs[_PLAN])
        links = frozen.user_attrs.get(_LINKS) or {}
        records = tuple(record_of(t, plan) for t in storage.get_all_trials(frozen._study_id, deepcopy=False))
        return StudyView(name, plan, records, holder_of(settings, name),
                         links.get("experiment_id"), links.get("parent_run_id"))
    finally:
        _dispose(storage)


def request_stop(settings: Settings, name: str) -> None:
    """Ask whoever works on the study to save and stop."""
    storage = _storage(settings)
    _, frozen = _generations(storage, name)
    assert frozen is not None
    storage.set_study_user_attr(frozen._study_id, _STOP, True)
    _dispose(storage)


def holder_of(settings: Settings, name: str) -> dict[str, Any] | None:
    """Who works on the study on this machine: {"pid", "host", "since"}; None where nobody living does."""
    try:
        holder: dict[str, Any] = json.loads(_holder_file(settings, name).read_text())
        alive = psutil.Process(holder["pid"]).create_time() == holder["created"]
    except (OSError, ValueError, KeyError, psutil.Error):
        return None
    return holder if alive else None


def record_of(t: FrozenTrial, plan: Plan) -> TrialRecord:
    attrs, settings = t.user_attrs, plan.settings
    history = _unpack(t.number, attrs.get(_HISTORY))
    states: dict[TrialState, State] = {TrialState.COMPLETE: "complete", TrialState.PRUNED: "pruned",
                                       TrialState.FAIL: "failed", TrialState.RUNNING: "running"}
    waiting: State = "paused" if t.params or attrs.get(_HISTORY) or t.datetime_start else "waiting"
    params = dict(t.params)
    if attrs.get(_BASELINE):  # what lies outside the space is shown all the same
        params = {**_by_name(plan, plan.written_values()), **params}
    if _CONFIG in attrs:
        params = flat_config(attrs[_CONFIG])
    return TrialRecord(
        number=t.number,
        state=states.get(t.state, waiting),
        params=params,
        history=history,
        objective=t.value if t.state == TrialState.COMPLETE else objective_of(history, settings),
        reason=attrs.get(_REASON),
        detail=attrs.get(_DETAIL, ""),
        started_at=t.datetime_start.timestamp() if t.datetime_start else None,
        ended_at=t.datetime_complete.timestamp() if t.datetime_complete else None,
        notes=tuple(attrs.get(_NOTES, ())),
        config=attrs.get(_CONFIG),
    )


def objective_of(history: Iterable[EpochEnd], settings: Settings) -> float | None:
    """The metric at the last epoch, or at the best one; None before the first finite value."""
    study = settings.study
    values = [v for e in history if math.isfinite(v := e.metrics.get(study.metric, math.nan))]
    if not values:
        return None
    if study.objective == "last":
        return values[-1]
    return max(values) if study.direction == "maximize" else min(values)


def best_of(records: Iterable[TrialRecord], settings: Settings) -> TrialRecord | None:
    """The complete trial with the best objective, the earliest of equals."""
    sign = 1 if settings.study.direction == "maximize" else -1
    complete = [r for r in records if r.state == "complete" and r.objective is not None]
    return max(complete, key=lambda r: (sign * (r.objective or 0.0), -r.number), default=None)


def flat_config(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Dotted key -> value of a trial's config, less the names of classes and null."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            flat.update(flat_config(value, f"{prefix}{key}."))
        elif not key.startswith("_") and value is not None:
            flat[f"{prefix}{key}"] = value
    return flat


def _by_name(plan: Plan, values: Mapping[str, Any]) -> dict[str, Any]:
    """Searched key -> value, spelt as parameter names: a list's length and entries apart."""
    params: dict[str, Any] = {}
    for p in plan.space.parameters:
        if p.key in values and p.length is not None and isinstance(values[p.key], list):
            params[f"{p.key}.length"] = len(values[p.key])
            params.update({f"{p.key}.{i}": v for i, v in enumerate(values[p.key])})
        elif p.key in values:
            params[p.key] = values[p.key]
    return params


# Small parts ----------------------------------------------------------------------------------------------------------


def _suggest(trial: optuna.Trial, name: str, dist: BaseDistribution) -> Any:
    if isinstance(dist, FloatDistribution):
        return trial.suggest_float(name, dist.low, dist.high, step=dist.step, log=dist.log)
    if isinstance(dist, IntDistribution):
        return trial.suggest_int(name, dist.low, dist.high, step=dist.step, log=dist.log)
    assert isinstance(dist, CategoricalDistribution)
    return trial.suggest_categorical(name, dist.choices)


def _pack(history: Iterable[EpochEnd]) -> dict[str, Any]:
    epochs = sorted(history, key=lambda e: e.epoch)
    names = dict.fromkeys(name for e in epochs for name in e.metrics)
    return {
        "epoch": [e.epoch for e in epochs],
        "at": [round(e.at, 3) for e in epochs],
        "seconds": [round(e.seconds, 4) for e in epochs],
        "metrics": {name: [_to_text(e.metrics.get(name)) for e in epochs] for name in names},
    }


def _unpack(number: int, packed: Mapping[str, Any] | None) -> tuple[EpochEnd, ...]:
    if not packed:
        return ()
    columns = packed["metrics"]
    return tuple(
        EpochEnd(number, epoch, {n: float(c[i]) for n, c in columns.items() if c[i] is not None},
                 packed["at"][i], packed["seconds"][i])
        for i, epoch in enumerate(packed["epoch"])
    )


def _to_text(value: float | None) -> float | str | None:
    """JSON has no inf and no nan."""
    return value if value is None or math.isfinite(value) else str(value)


def _holder_file(settings: Settings, name: str) -> Path:
    return settings.where.lock(name).with_suffix(".holder.json")


def _hold(plan: Plan) -> tuple[FileLock, Path]:
    path = plan.settings.where.lock(plan.name)
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path)  # the system lets go of it when its holder dies, however it dies
    try:
        lock.acquire(timeout=0)
    except Timeout:
        holder = holder_of(plan.settings, plan.name) or {}
        since = time.strftime("%H:%M", time.localtime(holder.get("since", time.time())))
        raise Held(f"{plan.name}: process {holder.get('pid', '?')} on {holder.get('host', 'this machine')} has been at "
                   f"it since {since}; `overnight stop {plan.name}` ends it, `overnight status` looks on") from None
    holder = _holder_file(plan.settings, plan.name)
    me = {"pid": os.getpid(), "created": psutil.Process().create_time(), "host": socket.gethostname(),
          "since": time.time()}
    fresh = holder.with_suffix(".writing")
    fresh.write_text(json.dumps(me))
    os.replace(fresh, holder)
    return lock, holder


def _storage(settings: Settings) -> RDBStorage:
    """The ledger's storage; a SQLite file is created under another name first, so that no kill leaves half a one."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    if settings.storage.url is not None:
        return RDBStorage(settings.storage.url)
    path = settings.where.ledger
    if not path.exists():
        create_whole(path, lambda fresh: _dispose(RDBStorage(f"sqlite:///{fresh}")))
    storage = RDBStorage(f"sqlite:///{path}", engine_kwargs={"connect_args": {"timeout": 60}})

    @sqlalchemy.event.listens_for(storage.engine, "connect")
    def _durable_at_a_kill(connection: Any, _: Any) -> None:
        # A write-ahead log lets others read while one writes, and does not wait for the disk at every report: a kill
        # loses nothing, and what a power cut may take of the last second, the trials' states bring back.
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=NORMAL")

    storage.engine.dispose()  # the connection that the storage opened before it could be told
    return storage


def create_whole(path: Path, create: Callable[[Path], None]) -> None:
    """Have `create` make a file under another name, then put it in place unless somebody else was first."""
    fresh = path.with_name(f"{path.name}.creating-{os.getpid()}")
    fresh.unlink(missing_ok=True)
    create(fresh)
    try:
        os.link(fresh, path)
    except FileExistsError:
        pass
    finally:
        fresh.unlink()


def _dispose(storage: BaseStorage) -> None:
    backend = getattr(storage, "_backend", storage)
    if isinstance(backend, RDBStorage):
        backend.scoped_session.remove()
        backend.engine.dispose()
