"""What a study has come to, on its runs in MLflow."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from overnight.config.paths import StudyLocation, trial_name
from overnight.tracking.pages import with_sentence
from overnight.tracking.reconcile import study_runs
from overnight.tracking.store import client, describe_error, find_parent

if TYPE_CHECKING:
    from mlflow import MlflowClient


@dataclass(frozen=True)
class Answer:
    """What a study has come to, for its parent run.

    winner: number of the confirmed trial; mean and half_width: of its interval. confirmation: uid of the ledger study
    that confirmed it; tests: number of a confirmation -> metrics on the test set. files: for the parent run.
    """

    sentence: str
    winner: int | None = None
    mean: float | None = None
    half_width: float | None = None
    confirmation: str | None = None
    tests: Mapping[int, Mapping[str, float]] = field(default_factory=dict)
    files: tuple[str, ...] = ()


def publish(location: StudyLocation, experiment_name: str, uid: str, answer: Answer) -> str | None:
    """Have MLflow show an answer, as often as this is called; what kept it from that, or None."""
    try:
        mlflow = client(location)
        experiment = mlflow.get_experiment_by_name(experiment_name)
        parent = find_parent(mlflow, experiment.experiment_id, uid) if experiment is not None else None
        if experiment is not None and parent is not None:
            _show_tests(mlflow, experiment.experiment_id, answer)
            _show_answer(mlflow, parent, answer)
    except Exception as error:  # MLflow's, SQLAlchemy's, the network's: the next start says it again
        return describe_error(error)
    return None


def _show_tests(client: MlflowClient, experiment_id: str, answer: Answer) -> None:
    """Log test metrics on the runs that they are of, each once."""
    for run in study_runs(client, experiment_id, answer.confirmation) if answer.confirmation is not None else ():
        metrics = answer.tests.get(int(run.data.tags.get("overnight.confirmation", -1)), {})
        for name, value in metrics.items():
            if math.isfinite(value) and name not in run.data.metrics:
                client.log_metric(run.info.run_id, name, value)


def _show_answer(client: MlflowClient, parent: str, answer: Answer) -> None:
    run = client.get_run(parent)
    for name, value in (("confirmed/mean", answer.mean), ("confirmed/half_width", answer.half_width)):
        if value is not None and run.data.metrics.get(name) != value:
            client.log_metric(parent, name, value)
    client.set_tag(parent, "overnight.report", answer.sentence)
    if answer.winner is not None:
        client.set_tag(parent, "overnight.winner", trial_name(answer.winner))
    note = with_sentence(answer.sentence, run.data.tags.get("mlflow.note.content", ""))
    client.set_tag(parent, "mlflow.note.content", note)
    for file in answer.files:
        client.log_artifact(parent, file)


def runs_of(location: StudyLocation, trials: Iterable[tuple[str, int | None]]) -> list[str]:
    """MLflow's ids of these trials' runs, each given as its ledger's uid and its number; fewer where it lacks some."""
    if location.given_tracking_uri is None and not location.paths.mlflow_db.exists():
        return []
    mlflow, found = client(location), []
    experiments = [e.experiment_id for e in mlflow.search_experiments()]
    for uid, number in trials:
        wanted = f"tags.`overnight.uid` = '{uid}' and tags.`overnight.trial` = '{number}'"
        found += [str(run.info.run_id) for run in mlflow.search_runs(experiments, wanted, max_results=1)]
    return found
