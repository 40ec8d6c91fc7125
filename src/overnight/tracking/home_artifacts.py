"""Writes artifacts only where the user allows it: in the home, and where tracking.artifacts says."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from mlflow.tracking._tracking_service import utils
from mlflow.tracking._tracking_service.client import TrackingServiceClient

from overnight.config.paths import StudyLocation
from overnight.study.storage.home import local_path
from overnight.tracking.store import describe_refusal


class OutsideHome(RuntimeError):
    """MLflow's store places artifacts in a folder outside of the home."""


class HomeTrackingClient(TrackingServiceClient):
    """MLflow's client for a store that this process opens itself.

    A store may say anything: its locations are absolute, and a home may have been moved or copied.

    Attributes:
        refused: The folders outside of the home to which nothing was written.
    """

    def __init__(self, tracking_uri: str, location: StudyLocation) -> None:
        super().__init__(tracking_uri)
        given = local_path(location.given_artifacts) if location.given_artifacts else None
        self._roots = [location.paths.root, *([given.resolve()] if given is not None else [])]
        self.refused: set[Path] = set()
        utils._artifact_repos_cache.clear()  # of the whole process; the locations may have been rewritten since

    def log_artifact(self, run_id: str, local_path: str, artifact_path: str | None = None) -> None:
        if self._is_allowed(run_id, "run", artifact_path):
            super().log_artifact(run_id, local_path, artifact_path)

    def log_model_artifacts(self, model_id: str, local_dir: str, artifact_path: str | None = None) -> None:
        """Write the files of a model. Raises OutsideHome: a model without files cannot be loaded."""
        if not self._is_allowed(model_id, "logged_model", artifact_path):
            raise OutsideHome(describe_refusal(self))
        super().log_model_artifacts(model_id, local_dir, artifact_path)

    def _is_allowed(self, owner_id: str, owner: Any, artifact_path: str | None) -> bool:
        folder = local_path(self._get_artifact_repo(owner_id, resource=owner).artifact_uri)
        if folder is None:
            return True
        target = Path(os.path.realpath(folder / (artifact_path or "")))
        if any(target.is_relative_to(root) for root in self._roots):
            return True
        self.refused.add(folder)
        return False
