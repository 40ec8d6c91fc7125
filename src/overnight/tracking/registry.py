"""What MLflow holds of a study beside its runs, the champion in the model registry; and forgetting all of it."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import urllib.parse
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from overnight.config.paths import StudyLocation
from overnight.protocol import Exported
from overnight.study.snapshot import StudyView
from overnight.tracking import client, exists, find_parent, write_model

CHAMPION = "champion"
WEIGHTS_TAG = "overnight.weights"  # of a version: the sha256 of the checkpoint that it was made from
_EVEN_DELETED = 3  # MLflow's ViewType.ALL


def champion_tags(location: StudyLocation, name: str) -> dict[str, str]:
    """The tags of a registered model's champion; none where there is none, or no registry that could be asked."""
    try:
        return dict(client(location).get_model_version_by_alias(name, CHAMPION).tags)
    except Exception:  # MLflow's own, or its store's; whoever writes next hears of it
        return {}


def register(view: StudyView, made: Exported, tags: Mapping[str, str], description: str) -> None:
    """Log an exported network as a model of the study's experiment, and make it the champion of its registered model.

    Raises whatever MLflow and its store raise.
    """
    store = client(view.plan.settings.location)
    experiment = store.get_experiment_by_name(view.plan.experiment)
    run_id = find_parent(store, experiment.experiment_id, view.uid) if experiment is not None else None
    if experiment is None or run_id is None:
        raise LookupError(f"MLflow has no run of the study {view.name}; `overnight doctor {view.name}` writes it")
    named = store.search_registered_models(f"name = '{view.name}'")
    if named and named[0].tags.get("overnight.uid") != view.uid:
        raise LookupError(
            f"the registry's {view.name} is not this study's, and stays as it is; take another study.name"
        )
    if not named:
        describe_params, mine = f"What the study {view.name} won with.", {"overnight.uid": view.uid}
        store.create_registered_model(view.name, tags=mine, description=describe_params)
    logged = store.create_logged_model(experiment.experiment_id, "winner", run_id, dict(tags))
    with tempfile.TemporaryDirectory() as folder:
        write_model(Path(folder), made, logged, run_id)
        store.log_model_artifacts(logged.model_id, folder)
    store.finalize_logged_model(logged.model_id, "READY")
    # By its place: a models:/ address would be looked up in whatever store MLflow takes for this process's own.
    version = store.create_model_version(
        view.name, logged.artifact_location, run_id, dict(tags), description=description, model_id=logged.model_id
    )
    store.set_registered_model_alias(view.name, CHAMPION, version.version)


def held(location: StudyLocation, experiment_name: str, uids: Collection[str]) -> tuple[int, int]:
    """How many runs and how many versions of its registered model MLflow holds of a study."""
    if not exists(location):
        return 0, 0
    store = client(location)
    experiment = store.get_experiment_by_name(experiment_name)
    runs = sum(1 for _ in _runs(store, experiment.experiment_id, uids)) if experiment is not None else 0
    return runs, len(_versions(store, experiment_name, uids))


def forget(location: StudyLocation, experiment_name: str, uids: Collection[str]) -> str | None:
    """Have MLflow forget a study's runs, models and artifacts; what another ledger's study of the name left, stays.

    Returns what there is to say where the store keeps what is deleted, as a server does. May be said again after a cut.
    """
    if not exists(location):
        return None
    mlflow = client(location)
    store: Any = mlflow._tracking_client.store
    for_good = hasattr(store, "_hard_delete_run")  # what `mlflow gc` does; a server does it for nobody
    for version in _versions(mlflow, experiment_name, uids):
        mlflow.delete_model_version(experiment_name, version.version)
    named = mlflow.search_registered_models(f"name = '{experiment_name}'")
    if named and named[0].tags.get("overnight.uid") in uids:
        mlflow.delete_registered_model(experiment_name)
    experiment = mlflow.get_experiment_by_name(experiment_name)
    if experiment is None:
        return None
    if experiment.lifecycle_stage == "deleted":
        mlflow.restore_experiment(experiment.experiment_id)
    for model in list(mlflow.search_logged_models([experiment.experiment_id])):
        if model.tags.get("overnight.uid") in uids:
            _remove(model.artifact_location)
            mlflow.delete_logged_model(model.model_id)
            if for_good:
                store._hard_delete_logged_model(model.model_id)
    for run in list(_runs(mlflow, experiment.experiment_id, uids)):
        _remove(run.info.artifact_uri)
        mlflow.delete_run(run.info.run_id)
        if for_good:
            store._hard_delete_run(run.info.run_id)
    if not list(mlflow.search_runs([experiment.experiment_id], run_view_type=_EVEN_DELETED, max_results=1)):
        mlflow.delete_experiment(experiment.experiment_id)
        if for_good:
            store._hard_delete_experiment(experiment.experiment_id)
    return (
        None if for_good else f"{location.tracking_uri} keeps what was deleted until `mlflow gc` is run where it lies"
    )


def _runs(client: Any, experiment_id: str, uids: Collection[str]) -> Iterator[Any]:
    for uid in uids:
        token = None
        while True:
            page = client.search_runs(
                [experiment_id], f"tags.`overnight.uid` = '{uid}'", _EVEN_DELETED, max_results=1000, page_token=token
            )
            yield from page
            token = page.token
            if not token:
                break


def _versions(client: Any, name: str, uids: Collection[str]) -> list[Any]:
    versions = client.search_model_versions(f"name = '{name}'", max_results=1000)
    return [v for v in versions if v.tags.get("overnight.uid") in uids]


def _remove(location: str) -> None:
    """Remove a folder of artifacts; one that lies elsewhere than on this machine's disk is left to `mlflow gc`."""
    parsed = urllib.parse.urlparse(location)
    if parsed.scheme not in ("", "file"):
        return
    folder = urllib.parse.unquote(parsed.path) if parsed.scheme else location  # a plain path may hold a # or a ?
    shutil.rmtree(folder, ignore_errors=True)
    with contextlib.suppress(OSError):
        os.removedirs(os.path.dirname(folder))  # as far up as nothing is left
