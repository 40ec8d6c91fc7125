"""Rebuilds a lost study from its runs in MLflow: configurations, curves, states and notes of its trials."""

from __future__ import annotations

import contextlib
import json
import math
import re
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from optuna.trial import FrozenTrial, TrialState

from overnight.config.paths import StudyLocation
from overnight.config.problems import ConfigError
from overnight.config.trainer import counts_validations
from overnight.config.trees import look_up, read_yaml
from overnight.config.values import same, unescaped
from overnight.protocol import Progress, Tested
from overnight.search.attributes import (
    CONFIG,
    CONFIRMS,
    DETAIL,
    ENTRY,
    HISTORY,
    NOTES,
    OUTSIDE,
    PARAMS,
    REASON,
    UNTIL,
    VALUES,
)
from overnight.search.history import objective_of, pack_history
from overnight.search.plan import Plan, config_of_params
from overnight.search.record import Confirms
from overnight.search.seeds import derive_seed
from overnight.study.attributes import StudyAttributes
from overnight.study.create import restore
from overnight.study.exclusions import MARKED
from overnight.study.lost import PLAN_FILE, LostStudy
from overnight.study.snapshot import StudyView
from overnight.study.storage.database import dispose
from overnight.study.storage.exclusive import ExclusiveStorage
from overnight.study.storage.home import local_path
from overnight.study.storage.leased import open_for_work
from overnight.study.storage.lock import lock_study
from overnight.tracking import names, tags
from overnight.tracking.store import open_client, study_runs

_Curves = Mapping[str, Sequence[Any]]  # name of a metric -> its values in MLflow
_LONGEST_USUAL_S = 10.0  # a shorter gap between two epochs is never taken for a pause
_STATES = {"complete": TrialState.COMPLETE, "pruned": TrialState.PRUNED, "failed": TrialState.FAIL}


def rebuild(location: StudyLocation, lost: LostStudy) -> int:
    """Write a lost study into the Optuna storage; return the number of its trials.

    A trial that has no run waits to be trained again with its number. `rebuild_confirmation` is the second half.

    Raises:
        ConfigError: MLflow has no plan of the study, as a version before this one wrote none.
        StudyInUse: Another process works on a study of this name.
    """
    client = open_client(location)
    parent = client.get_run(lost.run_id)
    plan = _stored_plan(lost, parent).relocated(location)
    runs = _first_runs(study_runs(client, parent.info.experiment_id, lost.uid), tags.TRIAL)
    logged = {number: _without_tests(run, _logged(client, run)) for number, run in runs.items()}
    trials = [
        _trial(plan, number, runs[number], logged[number][0], *_point(plan, runs[number]))
        if number in runs
        else _frozen(TrialState.WAITING)
        for number in range(max(runs, default=-1) + 1)
    ]
    marked = {n: run.data.tags for n, run in runs.items() if run.data.tags.get(tags.REASON) == MARKED}
    exclusions = {n: run_tags.get(tags.NOTES, "").partition(f"{MARKED}: ")[2] for n, run_tags in marked.items()}

    def complete(study: StudyAttributes) -> None:
        study.set_exclusions(exclusions)
        for number, (_, scores) in logged.items():
            if tags.TESTED in runs[number].data.tags:
                study.keep_test(number, runs[number].info.end_time / 1000, scores)
        study.set_mlflow(parent.info.experiment_id, lost.run_id)

    with _storage(location, lost.name) as storage:
        restore(storage, plan, lost.uid, trials, complete)
    return len(trials)


def rebuild_confirmation(search: StudyView, plan: Plan) -> int:
    """Write the confirmation of a rebuilt search into the Optuna storage; return the number of its trials.

    Args:
        plan: Of the confirmation.
    """
    location = plan.settings.location
    client = open_client(location)
    below = tags.matching({tags.PARENT: str(search.parent_run_id), tags.ROLE: "confirmation"})
    found = client.search_runs(
        [search.experiment_id or ""], below, max_results=1000, order_by=["attributes.start_time ASC"]
    )
    runs = _first_runs(found, tags.CONFIRMATION)
    seeds = {derive_seed(plan.settings.seed, "confirm", n): n for n in range(1, search.plan.confirm_seeds + 1)}
    trials, tests = [], []
    for number in range(len(runs)):
        run_tags = runs[number].data.tags if number in runs else {}
        trial = int(run_tags.get(tags.CONFIRMS, "trial--1").removeprefix("trial-"))
        seed = int(run_tags.get(tags.SEED, -1))
        config = _config(runs[number]) if number in runs else None
        if not 0 <= trial < len(search.records) or seed not in seeds or config is None:
            return 0  # of other seeds, or of a search with other trials: `overnight tune` confirms again
        confirms = Confirms(trial, seeds[seed], seed)
        attrs = {
            CONFIG: config,
            PARAMS: search.records[trial].params,
            CONFIRMS: vars(confirms),
        }
        curves, scores = _without_tests(runs[number], _logged(client, runs[number]))
        trials.append(_trial(plan, number, runs[number], curves, {}, attrs))
        if scores:
            tests.append(Tested(number, scores))

    def complete(study: StudyAttributes) -> None:
        for tested in tests:
            study.add_test(tested)
        study.set_wanted((t.user_attrs[CONFIRMS]["trial"], t.user_attrs[CONFIRMS]["nth_seed"]) for t in trials)

    if trials:
        with _storage(location, plan.name) as storage:
            restore(storage, plan, runs[0].data.tags[tags.UID], trials, complete)
    return len(trials)


def _first_runs(runs: Iterable[Any], number_tag: str) -> dict[int, Any]:
    """Return trial number -> its first run, which is the one that the synchronisation keeps. runs: the oldest first."""
    found: dict[int, Any] = {}
    for run in runs:
        if number_tag in run.data.tags:
            found.setdefault(int(run.data.tags[number_tag]), run)
    return found


@contextlib.contextmanager
def _storage(location: StudyLocation, name: str) -> Iterator[ExclusiveStorage]:
    """Open the study storage for the one process that may write a study. Raises StudyInUse."""
    unlock = lock_study(location, name)
    try:
        storage = open_for_work(location)
        try:
            yield storage
        finally:
            dispose(storage)
    finally:
        unlock()


def _stored_plan(lost: LostStudy, parent: Any) -> Plan:
    path = _artifacts(parent) / PLAN_FILE
    try:
        return Plan.from_json(json.loads(path.read_text()))
    except (OSError, ValueError) as error:  # ConfigError, JSONDecodeError and UnicodeDecodeError are ValueErrors
        raise ConfigError(
            [f"{PLAN_FILE}: must be readable on the study's run in MLflow to rebuild {lost.name}: {error}"]
        ) from error


def _config(run: Any) -> dict[str, Any] | None:
    path = _artifacts(run) / "config.yaml"
    return dict(unescaped(read_yaml(path))) if path.exists() else None


def _artifacts(run: Any) -> Path:
    path = local_path(run.info.artifact_uri)
    assert path is not None, "the home's own store keeps artifacts on this machine, and only such a store is read"
    return path


def _trial(
    plan: Plan, number: int, run: Any, curves: _Curves, params: dict[str, Any], attrs: dict[str, Any]
) -> FrozenTrial:
    """Return the trial of a run, with its curves. params, attrs: those that the run's configuration gives."""
    run_tags, started_at = run.data.tags, run.info.start_time / 1000
    history = _history(number, curves, started_at, counts_validations(_trainer(plan, run)), plan.settings.study.folds)
    state = _STATES.get(run_tags.get(tags.STATE, ""), TrialState.WAITING)
    reason = run_tags.get(tags.REASON)
    if reason == MARKED:  # the state before it was marked
        reason, whole = None, len(history) >= _fewest_of_a_whole_trial(plan, run)
        state = TrialState.COMPLETE if whole else TrialState.PRUNED
    value = objective_of(history, plan.settings)
    if state == TrialState.COMPLETE and value is None:  # its curve is lost, so it is trained again
        return _frozen(TrialState.WAITING)
    attrs = dict(attrs)
    if history:
        attrs[HISTORY] = pack_history(history)
    if reason is not None:
        attrs[REASON] = reason
    if (until := run_tags.get(tags.UNTIL, "")).isdecimal():
        attrs[UNTIL] = int(until)
    if state == TrialState.FAIL and (detail := _text(_artifacts(run) / "error.txt")):
        attrs[DETAIL] = detail
    if notes := re.sub(rf"(; )?{MARKED}(: .*)?$", "", run_tags.get(tags.NOTES, "")):
        attrs[NOTES] = notes.split("; ")
    metric = plan.settings.study.metric
    reported = {e.index + 1: v for e in history if not e.fold and math.isfinite(v := e.metrics.get(metric, math.nan))}
    # The end of a run leaves out the pauses of its trial, and so may lie before its last epochs.
    ended_at = max([(run.info.end_time or 0) / 1000, started_at, *(e.at for e in history)])
    return _frozen(
        state,
        value=value if state == TrialState.COMPLETE else None,
        datetime_start=datetime.fromtimestamp(started_at),
        datetime_complete=datetime.fromtimestamp(ended_at) if state.is_finished() else None,
        params=params,
        distributions={name: dist for name, dist in plan.space.names().items() if name in params},
        user_attrs=attrs,
        system_attrs={"fixed_params": params} if VALUES in attrs else {},
        intermediate_values=reported,
    )


def _trainer(plan: Plan, run: Any) -> dict[str, Any]:
    """Return the Trainer's arguments of a run, which may be searched."""
    return (_config(run) or {}).get("trainer") or vars(plan.settings.trainer)


def _fewest_of_a_whole_trial(plan: Plan, run: Any) -> int:
    """Return with how much progress a trial is complete. No run tells how many validations a trial has."""
    trainer = _trainer(plan, run)
    if counts_validations(trainer):
        return plan.units if plan.pauses else 1
    return int(trainer["max_epochs"]) * (plan.settings.study.folds or 1)


def _frozen(state: TrialState, **given: Any) -> FrozenTrial:
    empty: dict[str, Any] = {
        "value": None,
        "datetime_start": None,
        "datetime_complete": None,
        "params": {},
        "distributions": {},
        "user_attrs": {},
        "system_attrs": {},
        "intermediate_values": {},
    }
    return FrozenTrial(number=-1, trial_id=-1, state=state, **{**empty, **given})


def _point(plan: Plan, run: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the parameters of a run's trial, and the attributes of a trial that was given rather than sampled."""
    params = {name: text for name, text in run.data.params.items() if not name.startswith(names.HPARAMS)}
    texts = {names.from_mlflow(name, _long_names(run)): text for name, text in params.items()}
    read = plan.space.read(texts)
    config = _config(run) or config_of_params(plan, read)

    def value_of(key: str, values: Mapping[str, Any]) -> Any:
        return look_up(config, key) if "." in key else read.get(key, plan.baseline(key, values))

    values, point, outside = plan.space.find(value_of)
    first = next((f for f in plan.first_trials() if same(f.values, values)), None)
    if first is None and not outside:
        return point, {}
    entry = {ENTRY: first.entry} if first is not None and first.entry else {}
    return point, {**entry, VALUES: values, OUTSIDE: list(outside)}


def _history(
    number: int, curves: _Curves, started_at: float, in_validations: bool, folds: int | None
) -> tuple[Progress, ...]:
    """Return the epochs, or the validations, of a run.

    MLflow has no durations of epochs: each lasts since the end of the one before. Where that is much longer than
    usual, the trial was paused in between.
    """
    metrics: dict[tuple[int, int], dict[str, float]] = {}  # (fold, step) -> them
    ends: dict[tuple[int, int], float] = {}
    for logged_name, logged in curves.items():
        fold, name = names.without_fold(logged_name) if folds is not None else (0, logged_name)
        for value in logged:
            metrics.setdefault((fold, value.step), {})[name] = value.value
            ends[fold, value.step] = value.timestamp / 1000
    epochs = sorted(metrics)
    before = dict(zip(epochs, [started_at, *(ends[epoch] for epoch in epochs)], strict=False))
    lasted = {epoch: max(ends[epoch] - before[epoch], 0.0) for epoch in epochs}
    usual = statistics.median_low(lasted.values()) if lasted else 0.0  # of two gaps, the one without the pause
    return tuple(
        Progress(
            number,
            index if in_validations or folds is not None else step,
            metrics[fold, step],
            ends[fold, step],
            usual if lasted[fold, step] > max(_LONGEST_USUAL_S, 3 * usual) else lasted[fold, step],
            step if in_validations else None,
            fold=fold if folds is not None else None,
        )
        for index, (fold, step) in enumerate(epochs)
    )


def _logged(client: Any, run: Any) -> _Curves:
    """Return each metric of a run that its user's code logged, and its values."""
    return {
        names.from_mlflow(shown, _long_names(run)): client.get_metric_history(run.info.run_id, shown)
        for shown in run.data.metrics
        if not names.is_of_overnight(shown)
    }


def _without_tests(run: Any, logged: _Curves) -> tuple[_Curves, dict[str, float]]:
    """Return the metrics of a run from training, and its scores on the test set.

    A score is logged at step 0, after the run has ended, and below test/ where training has a metric of its name. Where
    the test set was asked again, the last answer counts.
    """

    def is_test(values: Sequence[Any]) -> bool:
        ended_at = run.info.end_time
        return ended_at is not None and all(v.step == 0 and v.timestamp > ended_at for v in values)

    curves = {name: values for name, values in logged.items() if not is_test(values)}
    scores = {name: max(values, key=lambda v: v.timestamp).value for name, values in logged.items() if is_test(values)}
    return curves, {
        inner if (inner := name.removeprefix("test/")) in curves else name: value for name, value in scores.items()
    }


def _long_names(run: Any) -> Iterable[str]:
    return [name for tag, name in run.data.tags.items() if tag.startswith(f"{tags.NAME}.")]


def _text(path: Path) -> str:
    return path.read_text(errors="replace") if path.exists() else ""
