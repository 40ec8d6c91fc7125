"""optuna-dashboard on a study of ours: what it shows, and that it changes nothing."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import optuna
import pytest

from overnight.config.problems import ConfigError
from overnight.protocol import Progress
from overnight.search.build_plan import build_plan
from overnight.study import dashboard
from overnight.study.open import open_study
from overnight.study.storage.database import dispose, open_storage


@pytest.fixture
def storage(tmp_path: Path) -> Iterator[dashboard.ReadOnlyStorage]:
    """The storage of a study with two complete trials, as the dashboard gets it."""
    plan = build_plan([f"home={tmp_path}", "study.name=shown", "study.trials=3", "sampler=random"])
    session, _ = open_study(plan)
    for _ in range(2):
        assignment = session.queue.ask()
        assert assignment is not None
        metrics = {"val/accuracy": 0.5, "val/loss": 0.25}
        session.writer.record(Progress(assignment.number, 0, metrics, 1000.0, 0.1))
        session.writer.complete(assignment.number)
    session.close()
    database = open_storage(plan.settings.location)
    yield dashboard.ReadOnlyStorage(database)
    dispose(database)


def test_the_dashboard_sees_metrics_and_none_of_our_attributes(storage: dashboard.ReadOnlyStorage) -> None:
    study: Any = optuna.load_study(study_name="shown", storage=storage)  # type: ignore[arg-type]
    assert study.metric_names == ["val/accuracy"]
    assert study.user_attrs == {}
    assert [t.user_attrs for t in study.trials] == [{"val/accuracy": 0.5, "val/loss": 0.25, "epochs": 1}] * 2
    assert [t.value for t in study.trials] == [0.5, 0.5]
    assert storage.get_best_trial(1).user_attrs == study.trials[0].user_attrs
    assert storage.get_trial(study.trials[1]._trial_id).number == 1


def test_the_dashboard_can_change_nothing(storage: dashboard.ReadOnlyStorage) -> None:
    study: Any = optuna.load_study(study_name="shown", storage=storage)  # type: ignore[arg-type]
    with pytest.raises(PermissionError):
        study.set_user_attr("note", "mine")
    with pytest.raises(PermissionError):
        optuna.delete_study(study_name="shown", storage=storage)  # type: ignore[arg-type]

    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        start_response("200 OK", [])
        return [environ["REQUEST_METHOD"].encode()]

    guarded = dashboard.read_only(app, 5000)
    answers = []
    for method, host in (("GET", "127.0.0.1:5000"), ("DELETE", "127.0.0.1:5000"), ("GET", "other.example:5000")):
        guarded({"REQUEST_METHOD": method, "HTTP_HOST": host}, lambda status, _: answers.append(status))
    assert answers == ["200 OK", "403 Forbidden", "403 Forbidden"]


def test_a_missing_dashboard_is_named_with_its_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dashboard.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(ConfigError, match=r"pip install 'overnight\[optuna\]'"):
        dashboard.require_installed()


def test_the_dashboard_answers_with_the_studies(storage: dashboard.ReadOnlyStorage) -> None:
    pytest.importorskip("optuna_dashboard")
    from optuna_dashboard._app import create_app

    app, statuses = create_app(storage), list[str]()
    environ: dict[str, Any] = {
        "REQUEST_METHOD": "GET",
        "PATH_INFO": "/api/studies/1",
        "SERVER_NAME": "x",
        "SERVER_PORT": "1",
    }
    environ |= {"wsgi.url_scheme": "http", "wsgi.errors": None}
    body = b"".join(app(environ, lambda status, *_: statuses.append(status)))
    found = json.loads(body)
    assert statuses == ["200 OK"]
    assert found["name"] == "shown"
    assert [t["values"] for t in found["trials"]] == [[0.5], [0.5]]
    assert "overnight." not in body.decode()
