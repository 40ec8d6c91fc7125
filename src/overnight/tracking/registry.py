"""The winner of a study in MLflow's model registry, and the deletion of everything that MLflow holds of a study."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from overnight.config.paths import StudyLocation
from overnight.protocol import Exported
from overnight.study.snapshot import StudyView
from overnight.study.storage.home import local_path
from overnight.system.files import remove_inside
from overnight.tracking import tags
from overnight.tracking.model import write_model
from overnight.tracking.store import exists, find_experiment, find_parent, open_client, study_runs

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
    experiment = find_experiment(client, view.plan.experiment, view.uid)
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
    experiment = find_experiment(client, experiment_name, *uids)
    runs = _runs(client, experiment.experiment_id, uids) if experiment is not None else []
    return len(runs), len(_versions(client, experiment_name, uids))


def delete_study(location: StudyLocation, experiment_name: str, uids: Collection[str]) -> list[str]:
    """Delete the runs, models and artifacts of a study from MLflow. May be repeated after an interruption.

    A study of the same name from another Optuna storage stays, and so do artifacts outside of the home.

    Returns:
        Messages about what remains: a server keeps deleted runs.
    """
    if not exists(location):
        return []
    client = open_client(location)
    store: Any = client._tracking_client.store
    can_purge = hasattr(store, "_hard_delete_run")  # as `mlflow gc` does; a server offers it to no client
    for version in _versions(client, experiment_name, uids):
        client.delete_model_version(experiment_name, version.version)
    models = client.search_registered_models(f"name = '{experiment_name}'")
    if models and models[0].tags.get(tags.UID) in uids:
        client.delete_registered_model(experiment_name)
    remains = (
        [] if can_purge else [f"{location.tracking_uri} keeps deleted runs until you run `mlflow gc` on that server"]
    )
    experiment = find_experiment(client, experiment_name, *uids)
    if experiment is None:
        return []
    experiment_id = experiment.experiment_id
    if experiment.lifecycle_stage == "deleted":
        client.restore_experiment(experiment_id)
    artifacts: list[str] = []
    for model in list(client.search_logged_models([experiment_id])):
        if model.tags.get(tags.UID) in uids:
            artifacts += _kept_artifacts(location, model.artifact_location)
            client.delete_logged_model(model.model_id)
            if can_purge:
                store._hard_delete_logged_model(model.model_id)
    for run in _runs(client, experiment_id, uids):
        artifacts += _kept_artifacts(location, run.info.artifact_uri)
        client.delete_run(run.info.run_id)
        if can_purge:
            store._hard_delete_run(run.info.run_id)
    if not client.search_runs([experiment_id], run_view_type=_ALL, max_results=1):
        client.delete_experiment(experiment_id)
        if can_purge:
            store._hard_delete_experiment(experiment_id)
    if artifacts:
        remains.append(f"{len(artifacts)} folders of artifacts are outside of home and stay, such as {artifacts[0]}")
    return remains


def _runs(client: Any, experiment_id: str, uids: Collection[str]) -> list[Any]:
    return [run for uid in uids for run in study_runs(client, experiment_id, uid, deleted=True)]


def _versions(client: Any, name: str, uids: Collection[str]) -> list[Any]:
    versions = client.search_model_versions(f"name = '{name}'", max_results=1000)
    return [v for v in versions if v.tags.get(tags.UID) in uids]


def _kept_artifacts(location: StudyLocation, artifacts: str) -> list[str]:
    """Remove a folder of artifacts below the home, and its parents that are empty then.

    Returns:
        The folder, if it is on this machine and outside of the home. `mlflow gc` removes artifacts elsewhere.
    """
    found, home = local_path(artifacts), location.paths.root
    if found is None or not found.exists():
        return []
    folder = Path(os.path.realpath(found.parent), found.name)
    with contextlib.suppress(OSError):
        if not remove_inside(home, folder):
            return [str(found)]
        for parent in folder.parents[: len(folder.relative_to(home).parts) - 1]:
            parent.rmdir()
    return []
