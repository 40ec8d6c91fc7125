"""MLflow's environment variables: which of them overnight obeys, sets, and ignores.

MLflow reads more than 250 of them. Some redirect what is written (MLFLOW_REGISTRY_URI, MLFLOW_ENABLE_WORKSPACES), lose
it (MLFLOW_ENABLE_ASYNC_LOGGING) or make each call fail (MLFLOW_SQLALCHEMYSTORE_POOLCLASS). The configuration says where
a study is tracked, so only variables that say how to reach a server or a store of artifacts are obeyed.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator, Mapping

from overnight.config.credentials import SECRET_VARIABLES, TRACKING_URI
from overnight.config.paths import StudyLocation

# No telemetry, no warnings about MLflow's own plans, and no link printed for each run.
QUIET: Mapping[str, str] = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}
# How to reach a server, and stores of artifacts such as S3. The login is part of SECRET_VARIABLES.
_OBEYED = re.compile(
    r"MLFLOW_(TRACKING_(INSECURE_TLS|SERVER_CERT_PATH|CLIENT_CERT_PATH|AUTH|AWS_SIGV4)|ALLOW_HTTP_REDIRECTS|HTTP_\w+"
    r"|(S3|GCS|BOTO|KERBEROS|PYARROW)_\w+|DFS_TMP|(ENABLE_(PROXY_)?)?MULTIPART_\w+|\w*(DOWNLOAD|UPLOAD)\w*_TIMEOUT)"
)
_OF_A_SERVER = ("MLFLOW_WORKSPACE",)
# Without what MLflow sets in its own process.
_OF_MLFLOW = re.compile(r"_?MLFLOW_(?!TELEMETRY_SESSION_ID)\w+")
_OF_ITS_SERVER = re.compile(r"(UVICORN|GUNICORN)_\w+")
_hidden: dict[str, str] = {}
_added: set[str] = set()  # those of QUIET that the calling program had not set


def take_over(location: StudyLocation) -> None:
    """Hide the ignored variables from MLflow in this process, and set those that keep it quiet.

    Trial processes keep all of them: a user's own code may use MLflow.
    """
    for name in _ignored(location, os.environ):
        _hidden[name] = os.environ.pop(name)
    set_quiet()


def set_quiet() -> None:
    for name in QUIET.keys() - os.environ.keys():
        os.environ[name] = QUIET[name]
        _added.add(name)


@contextlib.contextmanager
def restored() -> Iterator[None]:
    """Give the variables back to the calling program at the end of the block, and remove those that were added."""
    try:
        yield
    finally:
        while _added:
            os.environ.pop(_added.pop(), None)
        while _hidden:
            os.environ.setdefault(*_hidden.popitem())


def for_server(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of an MLflow server that shows a home on this machine."""
    kept = {
        name: value
        for name, value in environment.items()
        if name not in SECRET_VARIABLES
        and (_OBEYED.fullmatch(name) or not (_OF_MLFLOW.fullmatch(name) or _OF_ITS_SERVER.fullmatch(name)))
    }
    return {**kept, **QUIET, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "PYTHONWARNINGS": "ignore"}


def notes(location: StudyLocation) -> list[str]:
    """Return a line for the user that names the variables that are set and ignored, if there are any."""
    names = {*_ignored(location, os.environ), *_hidden} - QUIET.keys()
    found = ", ".join(sorted(names))
    lines = (
        [f"ignored environment variables: {found}; the configuration says where a study is tracked"] if found else []
    )
    if location.server is None and os.environ.get(TRACKING_URI):
        lines.append(f"{TRACKING_URI} is set and not used; tracking=server uses it")
    return lines


def _ignored(location: StudyLocation, environment: Mapping[str, str]) -> list[str]:
    obeyed = {*SECRET_VARIABLES, *QUIET, *(_OF_A_SERVER if location.server else ())}
    return [
        name
        for name in environment
        if _OF_MLFLOW.fullmatch(name) and name not in obeyed and not _OBEYED.fullmatch(name)
    ]
