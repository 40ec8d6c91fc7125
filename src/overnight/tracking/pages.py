"""MLflow's pages: the command that serves them, and the views and links that lead to a study's runs."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
import urllib.parse
from collections.abc import Mapping
from typing import Any

from overnight.config.paths import StudyLocation
from overnight.search.plan import Plan
from overnight.search.space import display_name
from overnight.study.snapshot import StudyView
from overnight.tracking import environment, names, tags
from overnight.tracking.store import open_client, tracking_uri

# MLflow keeps the state of a shared table in a tag of the experiment with this prefix. The key after the prefix is part
# of the page's address.
_VIEW = "mlflow.sharedViewState."
_CLASSIC = "workflowType=machine_learning"  # without it MLflow opens its view for language models
_VIEW_CHARS = 4900  # MLflow's limit for such a tag is 5000


def views(plan: Plan, uid: str) -> dict[str, str]:
    """Return tag -> state of the table of a study's trials, the best objective first, with the searched parameters.

    The study's own run and the confirmation runs are not among them, so that sorting and comparing concerns trials.
    """
    return {_VIEW + _study_key(uid): _view(plan, tags.matching({tags.UID: uid, tags.ROLE: "trial"}))}


def note(plan: Plan, uid: str, experiment_id: str, parent_run_id: str) -> str:
    """Return the note on a study's page, one line: what the study optimises, and links to its runs."""

    def link(text: str, condition: str) -> str:
        query = {
            "workflowType": "machine_learning",
            "searchFilter": f"{condition} AND {_below(parent_run_id)}",
            "orderByKey": _metric(names.OBJECTIVE),
            "orderByAsc": str(study.direction == "minimize").lower(),
        }
        encoded = urllib.parse.urlencode(query, quote_via=urllib.parse.quote)
        return f"[{text}](#/experiments/{experiment_id}/runs?{encoded})"

    study = plan.settings.study
    return " · ".join(
        [
            f"This study {study.direction}s {names.metric_name(study.metric)}",
            f"[result and report](#/experiments/{experiment_id}/runs/{parent_run_id}?{_CLASSIC})",
            f"[trials, best first]({_table(experiment_id, _study_key(uid))})",
            link("failed trials", tags.matching({tags.STATE: "failed"})),
            link("confirmation runs", tags.matching({tags.ROLE: "confirmation"})),
        ]
    )


def note_with_result(sentence: str, old_note: str) -> str:
    """Put the result of a study above the links of its note, in place of an earlier result."""
    return f"**{sentence}**\n\n{old_note.rpartition(chr(10))[2]}"


def server_command(location: StudyLocation, port: int) -> tuple[list[str], Mapping[str, str]]:
    """Return arguments and environment of a process that serves the embedded store's pages on 127.0.0.1.

    Creates the store if it does not exist.
    """
    open_client(location)
    root = location.artifact_root
    assert root is not None, "a tracking server serves its own pages"
    options = {
        "--backend-store-uri": tracking_uri(location),
        "--default-artifact-root": root,
        "--artifacts-destination": root,
        "--host": "127.0.0.1",
        "--port": str(port),
        "--workers": "1",
    }
    command = [sys.executable, "-m", "mlflow", "server", *(text for option in options.items() for text in option)]
    return command, environment.for_server(os.environ)


def study_url(view: StudyView | None, address: str) -> str:
    """Return the address of a study's runs on a server, its trials best first."""
    if view is None or view.experiment_id is None:
        return address
    saved: Mapping[str, str] = {}
    with contextlib.suppress(Exception):  # of MLflow or the network: the page itself shows it
        saved = open_client(view.plan.settings.location).get_experiment(view.experiment_id).tags
    if _VIEW + _study_key(view.uid) in saved:
        return f"{address}/{_table(view.experiment_id, _study_key(view.uid))}"
    return f"{address}/#/experiments/{view.experiment_id}/runs?{_CLASSIC}"


def _study_key(uid: str) -> str:
    return f"overnight-study-{uid}"


def _table(experiment_id: str, key: str) -> str:
    """Return the address, from # on, of an experiment's table in the state saved under `key`."""
    return f"#/experiments/{experiment_id}/runs?{_CLASSIC}&viewStateShareKey={key}"


def _below(parent_run_id: str) -> str:
    return f"tags.{tags.PARENT} = '{parent_run_id}'"


def _metric(name: str) -> str:
    return f"metrics.`{name}`"


def _view(plan: Plan, runs: str) -> str:
    """Return a table's state in MLflow's format, with the name that the menu of saved views shows."""
    study, name = plan.settings.study, plan.name
    params = dict.fromkeys(names.param_name(display_name(p)) for p in plan.space.names())
    columns = [_metric(names.OBJECTIVE), *(f"params.`{p}`" for p in params)]
    columns += ["attributes.`Duration`", f"tags.`{tags.STATE}`"]
    state: dict[str, Any] = {
        "searchFilter": runs,
        "orderByKey": _metric(names.OBJECTIVE),
        "orderByAsc": study.direction == "minimize",
        "selectedColumns": columns,
    }
    while True:
        saved = {"name": name, "createdAt": round(time.time() * 1000), "state": json.dumps(state)}
        text = json.dumps(saved)
        if len(text) <= _VIEW_CHARS or len(columns) <= 1:
            return text
        columns.pop()  # a space of hundreds of parameters shows the first ones
