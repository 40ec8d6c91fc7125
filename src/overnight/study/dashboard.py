"""optuna-dashboard on the studies of a home, which it can read and not change.

It reads Optuna's tables as they are. What overnight packs into attributes is left out, and what a reader wants from
there takes its place: the metrics at the last epoch, and why a trial failed.
"""

from __future__ import annotations

import importlib.util
import socketserver
import sys
from collections.abc import Callable, Container, Iterable, Mapping
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from optuna.storages import BaseStorage
from optuna.study._frozen import FrozenStudy
from optuna.trial import FrozenTrial, TrialState

from overnight.config.compose import study_location
from overnight.config.literal import quote
from overnight.config.paths import StudyLocation
from overnight.config.problems import ConfigError
from overnight.search.attributes import METRIC_NAMES
from overnight.search.record import TrialRecord, record_of
from overnight.study.attributes import StoredAttributes
from overnight.study.exclusions import with_exclusions
from overnight.study.snapshot import latest_studies, stored_plan
from overnight.study.storage.database import OptunaDatabase, open_storage, opened

HOST = "127.0.0.1"
_OURS = "overnight."
_WRITES = ("set_", "create_", "delete_", "remove_")


def require_installed() -> None:
    """Raise ConfigError where optuna-dashboard is not installed."""
    if importlib.util.find_spec("optuna_dashboard") is None:
        raise ConfigError(
            [
                "--optuna: must have the package optuna-dashboard, which is not installed; "
                "pip install 'overnight[optuna]'"
            ]
        )


def server_command(location: StudyLocation, port: int) -> list[str]:
    """Return the command that serves the dashboard."""
    words = [f"home={quote(str(location.paths.root))}", f"storage={location.storage}"]
    if location.storage == "sqlite" and location.storage_url is not None:
        words.append(f"storage.url={quote(location.storage_url)}")
    return [sys.executable, "-m", "overnight.study.dashboard", str(port), *words]


def page(location: StudyLocation, name: str, port: int) -> str:
    """Return the address of the page of a study."""
    with opened(location) as storage:
        return f"http://{HOST}:{port}/dashboard/studies/{latest_studies(storage)[name]._study_id}"


class ReadOnlyStorage:
    """An Optuna storage that shows the latest version of each study, without our attributes, and refuses writes."""

    # Optuna's own, which ask the methods below.
    get_best_trial: Any = BaseStorage.get_best_trial
    get_trial_user_attrs: Any = BaseStorage.get_trial_user_attrs
    get_trial_system_attrs: Any = BaseStorage.get_trial_system_attrs

    def __init__(self, database: OptunaDatabase) -> None:
        self._database = database

    def __getattr__(self, name: str) -> Any:
        if name.startswith(_WRITES):
            raise PermissionError("overnight shows its studies in the dashboard to be read only")
        return getattr(self._database, name)

    def get_all_studies(self) -> list[FrozenStudy]:
        return [self._shown(name, stored) for name, stored in latest_studies(self._database).items()]

    def get_study_name_from_id(self, study_id: int) -> str:
        return self._study(study_id).study_name

    def get_study_id_from_name(self, study_name: str) -> int:
        return next(s._study_id for s in self.get_all_studies() if s.study_name == study_name)

    def get_study_user_attrs(self, study_id: int) -> dict[str, Any]:
        return self._study(study_id).user_attrs

    def get_study_system_attrs(self, study_id: int) -> dict[str, Any]:
        return self._study(study_id).system_attrs

    def get_trial(self, trial_id: int) -> FrozenTrial:
        studies = (s._study_id for s in self.get_all_studies())
        return next(t for study_id in studies for t in self.get_all_trials(study_id) if t._trial_id == trial_id)

    def get_all_trials(
        self,
        study_id: int,
        deepcopy: bool = True,  # noqa: ARG002
        states: Container[TrialState] | None = None,
    ) -> list[FrozenTrial]:
        stored = next(s for s in latest_studies(self._database).values() if s._study_id == study_id)
        plan, exclusions = stored_plan(stored), StoredAttributes(stored.user_attrs).exclusions
        trials = with_exclusions(self._database.get_all_trials(study_id, deepcopy=False), exclusions)
        shown = [_readable(t, record_of(t, plan)) for t in trials]
        return [t for t in shown if states is None or t.state in states]

    def _study(self, study_id: int) -> FrozenStudy:
        return next(s for s in self.get_all_studies() if s._study_id == study_id)

    def _shown(self, name: str, stored: FrozenStudy) -> FrozenStudy:
        return FrozenStudy(
            study_name=name,
            direction=None,
            directions=stored.directions,
            user_attrs=_without_ours(stored.user_attrs),
            system_attrs={METRIC_NAMES: [stored_plan(stored).settings.study.metric], **stored.system_attrs},
            study_id=stored._study_id,
        )


def _readable(trial: FrozenTrial, record: TrialRecord) -> FrozenTrial:
    """Return a trial with the attributes that a reader wants, in place of ours."""
    last: Mapping[str, float] = record.history[-1].metrics if record.history else {}
    facts = {"epochs": len(record.history), "reason": record.reason, "notes": "; ".join(record.notes)}
    return FrozenTrial(
        number=trial.number,
        trial_id=trial._trial_id,
        state=trial.state,
        value=None,
        values=trial.values,
        datetime_start=trial.datetime_start,
        datetime_complete=trial.datetime_complete,
        params=trial.params,
        distributions=trial.distributions,
        user_attrs={**_without_ours(trial.user_attrs), **last, **{k: v for k, v in facts.items() if v}},
        system_attrs=_without_ours(trial.system_attrs),
        intermediate_values=trial.intermediate_values,
    )


def _without_ours(attrs: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in attrs.items() if not key.startswith(_OURS)}


# The server -----------------------------------------------------------------------------------------------------------


def read_only(app: Callable[..., Iterable[bytes]], port: int) -> Callable[..., Iterable[bytes]]:
    """Refuse requests that would change something, and those of pages of other sites."""
    hosts = {f"{HOST}:{port}", f"localhost:{port}"}

    def guarded(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        if environ["REQUEST_METHOD"] in ("GET", "HEAD") and environ.get("HTTP_HOST") in hosts:
            return app(environ, start_response)
        start_response("403 Forbidden", [("Content-Type", "application/json")])
        return [b'{"reason": "overnight shows its studies to be read only"}']

    return guarded


class _Server(socketserver.ThreadingMixIn, WSGIServer):
    daemon_threads = True


class _Quiet(WSGIRequestHandler):
    def log_message(self, *_: Any) -> None:
        pass


def serve(location: StudyLocation, port: int) -> None:
    """Serve the dashboard until the process is ended."""
    from optuna_dashboard._app import create_app

    app = create_app(ReadOnlyStorage(open_storage(location)))
    make_server(HOST, port, read_only(app, port), server_class=_Server, handler_class=_Quiet).serve_forever()


if __name__ == "__main__":
    serve(study_location(sys.argv[2:]), int(sys.argv[1]))
