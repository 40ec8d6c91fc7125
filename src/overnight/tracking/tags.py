"""The names of the tags on MLflow's experiments, runs and models, the tags that every run has, and searches by tag."""

from __future__ import annotations

import getpass
import os
from collections.abc import Mapping

STUDY = "overnight.study"  # the name of the study
UID = "overnight.uid"  # the unique id of the study in the Optuna storage
ROLE = "overnight.role"  # "study", "trial" or "confirmation"
STATE = "overnight.state"
REASON = "overnight.reason"  # why a trial failed, was pruned or is excluded
# The epochs to which the scheduler lets a trial train. A larger budget resumes one that was pruned after so many.
UNTIL = "overnight.until"
NOTES = "overnight.notes"
TRIAL = "overnight.trial"  # the number of a trial
CONFIRMATION = "overnight.confirmation"  # the number of a confirmation run, so that searches for TRIAL do not find it
CONFIRMS = "overnight.confirms"  # the trial that a confirmation run trains again
SEED = "overnight.seed"
BEST = "overnight.best"
REPORT = "overnight.report"  # the result of the study in one sentence
TESTED = "overnight.tested"  # when `overnight test` asked the test set of the trial's weights
WINNER = "overnight.winner"
NAME = "overnight.name"  # with the id of a name that MLflow has the beginning of: the whole name
LOGGED = "overnight.logged"  # how much of the trial's log the run has; see tracking/logged.py
WEIGHTS = "overnight.weights"  # of a model version: the SHA-256 of the checkpoint that it was made from
# MLflow's own
NOTE = "mlflow.note.content"
PARENT = "mlflow.parentRunId"


def common(study_name: str, uid: str) -> dict[str, str]:
    """Return the tags that every run of a study has."""
    return {
        STUDY: study_name,
        UID: uid,
        "mlflow.user": _user(),
        "mlflow.source.name": "overnight",
        "mlflow.source.type": "LOCAL",
    }


def matching(values: Mapping[str, str]) -> str:
    """Return the filter string of an MLflow search for runs with these tags."""
    return " AND ".join(f"tags.`{name}` = '{value}'" for name, value in values.items())


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # the user of a container may have no name
        return str(os.getuid())
