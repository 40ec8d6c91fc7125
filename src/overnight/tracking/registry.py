"""The winner of a study in MLflow's model registry, and the deletion of everything that MLflow holds of a study."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import urllib.parse
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from overnight.config.paths import StudyLocation
from overnight.protocol import Exported
from overnight.study.snapshot import StudyView
from overnight.tracking import tags
from overnight.tracking.model import write_model
from overnight.tracking.store import exists, find_parent, open_client, study_runs

CHAMPION = "champion"  # the alias of the version to use
_ALL = 3  # MLflow's ViewType.ALL


def champion_tags(location: StudyLocation, name: str) -> dict[str, str]:
    """Return the tags of a registered model's champion; none if there is none or the registry can't be reached."""
    try:
        return dict(open_client(location).get_model_version_by_alias(name, CHAMPION).tags)
    except Exception:  # of MLflow or its store; a later write reports it
        return {}


def register(view: StudyView, exported: Exported, version_tags: Mapping[str, str], description: str) -> None:
    """Register an exported network as the champion of the study's registered model.

    Raises:
        LookupError: MLflow has no run of the study, or the registered model belongs to another study.
        Exception: Any error of MLflow and its store.
    """
    client = open_client(view.plan.settings.location)
    experiment = client.get_experiment_by_name(view.plan.experiment)
    run_id = find_parent(client, experiment.experiment_id, view.uid) if experiment is not None else None
    if experiment is None or run_id is None:
        raise LookupError(f"MLflow has no run of the study {view.name}; `overnight doctor {view.name}` writes it")
    models = client.search_registered_models(f"name = '{view.name}'")
    if models and models[0].tags.get(tags.UID) != view.uid:
        raise LookupError(
            f"the registered model {view.name} belongs to another study and is not changed; use another study.name"
        )
    if not models:
        client.create_registered_model(
            view.name, tags={tags.UID: view.uid}, description=f"The winners of the study {view.name}."
        )
    logged = client.create_logged_model(experiment.experiment_id, "winner", run_id, dict(version_tags))
    with tempfile.TemporaryDirectory() as folder:
        write_model(Path(folder), exported, logged, run_id)
        client.log_model_artifacts(logged.model_id, folder)
    client.finalize_logged_model(logged.model_id, "READY")
    # MLflow would look up a models:/ address in this process's default store, so this is the location of the files.
    version = client.create_model_version(
        view.name,
        logged.artifact_location,
        run_id,
        dict(version_tags),
        description=description,
        model_id=logged.model_id,
    )
    client.set_registered_model_alias(view.name, CHAMPION, version.version)


def count(location: StudyLocation, experiment_name: str, uids: Collection[str]) -> tuple[int, int]:
    """Return how many runs and how many model versions MLflow holds of a study."""
    if not exists(location):
        return 0, 0
    client = open_client(location)
    experiment = client.get_experiment_by_name(experiment_name)
    runs = _runs(client, experiment.experiment_id, uids) if experiment is not None else []
    return len(runs), len(_versions(client, experiment_name, uids))


def delete_study(location: StudyLocation, experiment_name: str, uids: Collection[str]) -> str | None:
    """Delete the runs, models and artifacts of a study from MLflow. May be repeated after an interruption.

    A study of the same name from another Optuna storage stays.

    Returns:
        A sentence for the user if the store keeps deleted runs, as a server does; otherwise None.
    """
    if not exists(location):
        return None
    client = open_client(location)
    store: Any = client._tracking_client.store
    can_purge = hasattr(store, "_hard_delete_run")  # as `mlflow gc` does; a server offers it to no client
    for version in _versions(client, experiment_name, uids):
        client.delete_model_version(experiment_name, version.version)
    models = client.search_registered_models(f"name = '{experiment_name}'")
    if models and models[0].tags.get(tags.UID) in uids:
        client.delete_registered_model(experiment_name)
    experiment = client.get_experiment_by_name(experiment_name)
    if experiment is None:
        return None
    experiment_id = experiment.experiment_id
    if experiment.lifecycle_stage == "deleted":
        client.restore_experiment(experiment_id)
    for model in list(client.search_logged_models([experiment_id])):
        if model.tags.get(tags.UID) in uids:
            _remove_artifacts(model.artifact_location)
            client.delete_logged_model(model.model_id)
            if can_purge:
                store._hard_delete_logged_model(model.model_id)
    for run in _runs(client, experiment_id, uids):
        _remove_artifacts(run.info.artifact_uri)
        client.delete_run(run.info.run_id)
        if can_purge:
            store._hard_delete_run(run.info.run_id)
    if not client.search_runs([experiment_id], run_view_type=_ALL, max_results=1):
        client.delete_experiment(experiment_id)
        if can_purge:
            store._hard_delete_experiment(experiment_id)
    return None if can_purge else f"{location.tracking_uri} keeps deleted runs until you run `mlflow gc` on that server"


def _runs(client: Any, experiment_id: str, uids: Collection[str]) -> list[Any]:
    return [run for uid in uids for run in study_runs(client, experiment_id, uid, deleted=True)]


def _versions(client: Any, name: str, uids: Collection[str]) -> list[Any]:
    versions = client.search_model_versions(f"name = '{name}'", max_results=1000)
    return [v for v in versions if v.tags.get(tags.UID) in uids]


def _remove_artifacts(location: str) -> None:
    """Remove a folder of artifacts from this machine's disk. `mlflow gc` removes artifacts elsewhere."""
    parsed = urllib.parse.urlparse(location)
    if parsed.scheme not in ("", "file"):
        return
    folder = urllib.parse.unquote(parsed.path) if parsed.scheme else location  # a plain path may contain # or ?
    shutil.rmtree(folder, ignore_errors=True)
    with contextlib.suppress(OSError):
        os.removedirs(os.path.dirname(folder))  # the parents that are empty now
