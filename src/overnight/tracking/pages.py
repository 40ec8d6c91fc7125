"""MLflow's pages: served on this machine, and opened at what a person wants to see."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
import urllib.parse
from collections.abc import Mapping
from typing import Any

from overnight.config.credentials import SECRET
from overnight.config.paths import StudyLocation
from overnight.search.plan import Plan
from overnight.search.space import display_name
from overnight.study.snapshot import StudyView
from overnight.tracking.store import client, quiet_environment

# A table's state is kept in an experiment's tag of this name, and asked for in the page's address.
VIEW = "mlflow.sharedViewState."
_VIEW_CHARS = 4900  # of the 5000 that such a tag may have


def views(plan: Plan, uid: str, parent_run_id: str) -> dict[str, str]:
    """Tag -> value: the tables that a study's pages open with, the best objective first, what was searched beside it.

    One holds the study's run and its trials, the other the trials alone. Confirmations lie below the same run, and are
    in neither.
    """
    trials = f"tags.`overnight.role` = 'trial' AND tags.mlflow.parentRunId = '{parent_run_id}'"
    return {
        VIEW + study_key(uid): _view(plan, plan.name, f"tags.`overnight.uid` = '{uid}'"),
        VIEW + trials_key(uid): _view(plan, f"{plan.name}: trials, best first", trials),
    }


def study_key(uid: str) -> str:
    return f"overnight-study-{uid}"


def trials_key(uid: str) -> str:
    return f"overnight-trials-{uid}"


def table(experiment_id: str, key: str) -> str:
    """The address, from # on, of an experiment's table in the state that is kept under a key."""
    return f"#/experiments/{experiment_id}/runs?workflowType=machine_learning&viewStateShareKey={key}"


def note(plan: Plan, uid: str, experiment_id: str, parent_run_id: str) -> str:
    """What stands on a study's page: what it is, and where its runs are; one line."""

    def found(words: str, condition: str) -> str:
        query = {
            "workflowType": "machine_learning",
            "searchFilter": f"{condition} AND tags.mlflow.parentRunId = '{parent_run_id}'",
            "orderByKey": "metrics.`objective`",
            "orderByAsc": str(plan.settings.study.direction == "minimize").lower(),
        }
        asked = urllib.parse.urlencode(query, quote_via=urllib.parse.quote)
        return f"[{words}](#/experiments/{experiment_id}/runs?{asked})"

    study = plan.settings.study
    return " · ".join(
        [
            f"A study of {study.metric}, to {study.direction}: "
            f"[its trials, best first]({table(experiment_id, trials_key(uid))})",
            found("the ones that failed", "tags.`overnight.state` = 'failed'"),
            found("the confirmations", "tags.`overnight.role` = 'confirmation'"),
        ]
    )


def with_sentence(sentence: str, before: str) -> str:
    """A note with the answer above its links, whatever stood above them before."""
    return f"**{sentence}**\n\n{before.rpartition(chr(10))[2]}"


def _view(plan: Plan, name: str, runs: str) -> str:
    """A table's state as MLflow keeps it, under a name that its menu of saved views shows."""
    study = plan.settings.study
    columns = ["metrics.`objective`", *(f"params.`{p}`" for p in dict.fromkeys(map(display_name, plan.space.names())))]
    columns += ["attributes.`Duration`", "tags.`overnight.state`"]
    state: dict[str, Any] = {
        "searchFilter": runs,
        "orderByKey": "metrics.`objective`",
        "orderByAsc": study.direction == "minimize",
        "selectedColumns": columns,
    }
    while True:
        kept = {"name": name, "createdAt": round(time.time() * 1000), "state": json.dumps(state)}
        text = json.dumps(kept)
        if len(text) <= _VIEW_CHARS or len(columns) <= 1:
            return text
        columns.pop()  # of hundreds of parameters the first ones


def ui_command(location: StudyLocation, port: int) -> tuple[list[str], Mapping[str, str]]:
    """How to serve the pages of a store that no server serves yet on 127.0.0.1: arguments, and their environment."""
    client(location)  # creates the embedded store where there is none yet
    root = location.artifact_root
    assert root is not None, "a server serves its own pages"
    command = [
        sys.executable,
        "-m",
        "mlflow",
        "server",
        "--backend-store-uri",
        location.tracking_uri,
        "--default-artifact-root",
        root,
        "--artifacts-destination",
        root,
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
        "--workers",
        "1",
    ]
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("MLFLOW_", "_MLFLOW_")) and k not in SECRET}
    return command, {
        **kept,
        **quiet_environment(),
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "PYTHONWARNINGS": "ignore",
    }


def page_of(view: StudyView | None, address: str) -> str:
    """The page of a study's runs, its trials best first; without the last part MLflow would open its view for language
    models."""
    if view is None or view.experiment_id is None:
        return address
    tags: Mapping[str, str] = {}
    with contextlib.suppress(Exception):  # MLflow's, the network's: the page itself will say so
        tags = client(view.plan.settings.location).get_experiment(view.experiment_id).tags
    if VIEW + study_key(view.uid) in tags:
        return f"{address}/{table(view.experiment_id, study_key(view.uid))}"
    return f"{address}/#/experiments/{view.experiment_id}/runs?workflowType=machine_learning"
