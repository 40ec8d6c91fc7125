"""Publishes the result of a study on its runs in MLflow."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from overnight.config.paths import StudyLocation, trial_name
from overnight.tracking import names, tags
from overnight.tracking.pages import note_with_result
from overnight.tracking.run_update import rounded
from overnight.tracking.run_writer import log_plots
from overnight.tracking.store import (
    describe_error,
    find_experiment,
    find_parent,
    find_trial_runs,
    milliseconds,
    open_client,
    study_runs,
)

if TYPE_CHECKING:
    from mlflow import MlflowClient

    from overnight.search.record import TrialRecord


@dataclass(frozen=True)
class Summary:
    """The result of a study, for its run.

    Attributes:
        winner: The number of the confirmed trial.
        mean: The centre of its interval.
        half_width: Half the width of its interval.
        confirmation_uid: The uid of the study with the confirmation runs.
        tests: The number of a confirmation run -> its metrics on the test set.
        files: Paths of files to log to the study's run.
        plots: The folder with the plots of the winner; None if there are none.
    """

    sentence: str
    winner: int | None = None
    mean: float | None = None
    half_width: float | None = None
    confirmation_uid: str | None = None
    tests: Mapping[int, Mapping[str, float]] = field(default_factory=dict)
    files: tuple[str, ...] = ()
    plots: Path | None = None


def publish(location: StudyLocation, experiment_name: str, uid: str, summary: Summary) -> str | None:
    """Write a summary to MLflow. May be repeated. Returns the error, or None."""
    try:
        client = open_client(location)
        experiment = find_experiment(client, experiment_name, uid)
        parent = find_parent(client, experiment.experiment_id, uid) if experiment is not None else None
        if experiment is not None and parent is not None:
            _log_tests(client, experiment.experiment_id, summary)
            _log_result(client, parent, summary)
            if summary.plots is not None:
                for run_id in (parent, *find_trial_runs(location, [(uid, summary.winner)])):
                    log_plots(client, run_id, summary.plots)
    except Exception as error:  # of MLflow, SQLAlchemy or the network; the next start repeats it
        return describe_error(error)
    return None


def beside_training(scores: Mapping[str, float], record: TrialRecord) -> dict[str, float]:
    """Name the scores of a trial on the test set: below test/ where training has a metric, which keeps its curve."""
    in_training = {name for e in record.history for name in e.metrics}
    return {f"test/{name}" if name in in_training else name: value for name, value in scores.items()}


def log_test(
    location: StudyLocation, uid: str, record: TrialRecord, at: float, metrics: Mapping[str, float]
) -> str | None:
    """Write the scores of a trial on the test set to its run. Returns why MLflow does not show them, or None.

    Args:
        record: The trial.
        at: When `overnight test` was asked, in seconds since 1970.
    """
    try:
        found = find_trial_runs(location, [(uid, record.number)])
        if not found:
            return f"{trial_name(record.number)} has no run yet"
        client = open_client(location)
        for name, value in beside_training(metrics, record).items():
            if math.isfinite(value):
                client.log_metric(found[0], names.metric_name(name), value, timestamp=milliseconds(at))
        client.set_tag(found[0], tags.TESTED, time.strftime("%Y-%m-%d %H:%M", time.localtime(at)))
    except Exception as error:  # of MLflow, SQLAlchemy or the network
        return describe_error(error)
    return None


def _log_tests(client: MlflowClient, experiment_id: str, summary: Summary) -> None:
    if summary.confirmation_uid is None:
        return
    for run in study_runs(client, experiment_id, summary.confirmation_uid):
        metrics = summary.tests.get(int(run.data.tags.get(tags.CONFIRMATION, -1)), {})
        for name, value in metrics.items():
            shown = names.metric_name(name)
            if math.isfinite(value) and shown not in run.data.metrics:
                client.log_metric(run.info.run_id, shown, value)


def _log_result(client: MlflowClient, parent_run_id: str, summary: Summary) -> None:
    run = client.get_run(parent_run_id)
    for name, value in ((names.MEAN, summary.mean), (names.HALF_WIDTH, summary.half_width)):
        if value is not None and run.data.metrics.get(name) != rounded(value):
            client.log_metric(parent_run_id, name, rounded(value))
    client.set_tag(parent_run_id, tags.REPORT, summary.sentence)
    if summary.winner is not None:
        client.set_tag(parent_run_id, tags.WINNER, trial_name(summary.winner))
    elif tags.WINNER in run.data.tags:  # of an earlier result, all of whose finalists are marked bad
        client.delete_tag(parent_run_id, tags.WINNER)
    client.set_tag(parent_run_id, tags.NOTE, note_with_result(summary.sentence, run.data.tags.get(tags.NOTE, "")))
    for file in summary.files:
        client.log_artifact(parent_run_id, file)
