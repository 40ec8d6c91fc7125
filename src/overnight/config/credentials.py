"""Addresses and secrets from the environment: from a variable NAME, or from the file that NAME_FILE names.

They are not stored in a plan, shown, logged, or passed to a trial process. No message here repeats a value.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import re
import urllib.parse
from collections.abc import Iterable, Iterator
from pathlib import Path

from overnight.config.problems import Problems

STORAGE_URL = "OVERNIGHT_STORAGE_URL"
TRACKING_URI = "MLFLOW_TRACKING_URI"
USERNAME, PASSWORD, TOKEN = "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN"
# Databases of MLflow's server, which `overnight migrate` prepares. MLflow reads the last one from a settings file.
BACKEND_URI, LOGINS_URI = "MLFLOW_BACKEND_STORE_URI", "MLFLOW_AUTH_DATABASE_URI"
_VARIABLES = (STORAGE_URL, TRACKING_URI, USERNAME, PASSWORD, TOKEN, BACKEND_URI, LOGINS_URI)
# Variables that no trial, hook or other process with user code may see.
SECRET_VARIABLES = frozenset(
    {name + end for name in (*_VARIABLES, "OVERNIGHT_NOTIFY_URLS") for end in ("", "_FILE")}
    | {"PGPASSWORD", "MLFLOW_AUTH_ADMIN_PASSWORD", "MLFLOW_FLASK_SERVER_SECRET_KEY"}
)
_POSTGRES = re.compile(r"postgres(ql(\+psycopg)?)?://")
_SECRET_KEY = r"\w*(password|token|secret|passwd)"
_PASSWORD_IN = re.compile(rf"://\S*:\S*@|[?&]{_SECRET_KEY}=", re.IGNORECASE)
_MASK = "(not shown)"
_exported: dict[str, str] = {}  # the variables that `export_login` has set


# Reading the environment ---------------------------------------------------------------------------------------------


def read_variable(name: str, problems: Problems) -> str | None:
    """Read the variable `name`, or the file that NAME_FILE names, stripped; None where neither is set.

    An empty variable counts as not set, because a compose file can't leave one out.
    """
    text, path = os.environ.get(name, "").strip(), os.environ.get(f"{name}_FILE", "").strip()
    if not path:
        return text or None
    try:
        value = Path(os.path.expanduser(path)).read_text("utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        problems.add(f"{name}_FILE: must name a file that can be read, got {path!r}: {type(error).__name__}")
        return None
    if not value:
        problems.add(f"{name}_FILE: must name a file that holds the value, and {path!r} is empty")
        return None
    if text and text not in (value, _exported.get(name)):
        problems.add(f"{name}: is set, and {name}_FILE names a file with another value; unset one of them")
        return None
    return value


def storage_url(problems: Problems) -> str | None:
    """The address of a PostgreSQL study storage for SQLAlchemy; None where it is missing or wrong."""
    before = len(problems)
    url = read_postgres_url(STORAGE_URL, problems)
    if url is None and len(problems) == before:
        problems.add(
            f"{STORAGE_URL}: must be set with storage=postgres, to postgresql://NAME:PASSWORD@HOST/DATABASE, or "
            f"{STORAGE_URL}_FILE to a file that holds it"
        )
    return url


def tracking_uri(problems: Problems) -> str | None:
    """The address of MLflow's server, without a / at its end; None where it is missing or wrong."""
    before = len(problems)
    uri = read_variable(TRACKING_URI, problems)
    if uri is None:
        if len(problems) == before:
            problems.add(
                f"{TRACKING_URI}: must be set with tracking=server, to the server's address such as "
                f"http://mlflow.example.com:5000, or {TRACKING_URI}_FILE to a file that holds it"
            )
        return None
    parts = _split(uri)
    if parts is None or parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
        problems.add(f"{TRACKING_URI}: must be a server's address such as http://mlflow.example.com:5000")
    elif "@" in parts.netloc:
        problems.add(
            f"{TRACKING_URI}: must not contain a name or a password, because it is shown; set {USERNAME} and {PASSWORD}"
        )
    else:
        return uri.rstrip("/")
    return None


def login(problems: Problems) -> dict[str, str]:
    """The login for MLflow's server, variable -> value; empty where MLflow's own file is used, or no login."""
    names = (USERNAME, PASSWORD, TOKEN)
    found = {name: value for name in names if (value := read_variable(name, problems)) is not None}
    files = [name for name in names if os.environ.get(f"{name}_FILE") and name not in found]
    if not files:  # those that can't be read are reported already
        if TOKEN in found and (USERNAME in found or PASSWORD in found):
            problems.add(f"{TOKEN}: must not be set together with {USERNAME} or {PASSWORD}; unset either")
        for one, other in ((USERNAME, PASSWORD), (PASSWORD, USERNAME)):
            if one in found and other not in found:
                problems.add(f"{other}: must be set, or {other}_FILE, where {one} is")
    return found


def export_login() -> None:
    """Export the login to the environment of this process, where MLflow's client reads it for every request.

    Raises:
        LookupError: The login can't be read any more.
    """
    problems = Problems()
    variables = login(problems)
    if problems:
        raise LookupError("; ".join(problems))
    for name, value in variables.items():
        if os.environ.get(name) != value:
            os.environ[name] = _exported[name] = value


def read_postgres_url(name: str, problems: Problems) -> str | None:
    """The PostgreSQL address in a variable, for SQLAlchemy; None where it is not set or wrong."""
    url = read_variable(name, problems)
    return psycopg_url(name, url, problems) if url is not None else None


def psycopg_url(name: str, url: str, problems: Problems) -> str | None:
    """Check an address, and name psycopg 3 as its driver. `name`: the key or variable, for messages."""
    if not _POSTGRES.match(url):
        problems.add(f"{name}: must be the address of a PostgreSQL, postgresql://NAME:PASSWORD@HOST/DATABASE")
        return None
    parts = _split(url)
    if parts is None or parts.netloc.count("@") > 1 or len(parts.path) < 2 or "/" in parts.path[1:] or parts.fragment:
        problems.add(
            f"{name}: must be postgresql://NAME:PASSWORD@HOST:PORT/DATABASE, where @ : / ? # and % in a password "
            f"are written %40 %3A %2F %3F %23 and %25"
        )
        return None
    if importlib.util.find_spec("psycopg") is None:
        problems.add(f"{name}: needs the package psycopg; pip install 'overnight[service]'")
        return None
    return _POSTGRES.sub("postgresql+psycopg://", url, count=1)


def is_postgres(url: str | None) -> bool:
    return url is not None and _POSTGRES.match(url) is not None


def _split(url: str) -> urllib.parse.SplitResult | None:
    try:
        parts = urllib.parse.urlsplit(url)
        _ = parts.port  # raises ValueError where it is not a number
    except ValueError:
        return None
    return parts


# Protecting secrets --------------------------------------------------------------------------------------------------


def has_password(text: str) -> bool:
    """Whether an address contains a password or a token."""
    return _PASSWORD_IN.search(text) is not None


def mask_credentials(text: str) -> str:
    """Mask the names, passwords and tokens of all addresses in a text."""
    text = re.sub(r"://\S*@", f"://{_MASK}@", text)
    return re.sub(rf"([?&]{_SECRET_KEY}=)[^&\s]*", rf"\1{_MASK}", text, flags=re.IGNORECASE)


def redact(text: str) -> str:
    """Mask every secret that this process knows in a text, such as an error message."""
    for secret in sorted(_secrets(), key=len, reverse=True):
        text = text.replace(secret, _MASK)
    return mask_credentials(text)


def _secrets() -> set[str]:
    """Every value that no text may contain. The address of MLflow's server and the user name are shown."""
    found: set[str] = set()
    for name in (*_VARIABLES, "PGPASSWORD"):
        value = read_variable(name, Problems())
        if value is None or name in (TRACKING_URI, USERNAME):
            continue
        found.add(value)
        parts = _split(value) if "://" in value else None
        if parts is not None:
            found.add(value.partition("://")[2])
            query = urllib.parse.parse_qsl(parts.query)
            secrets = [parts.password or "", *(v for k, v in query if re.fullmatch(_SECRET_KEY, k, re.IGNORECASE))]
            found |= {*secrets, *map(urllib.parse.unquote, secrets)}
    return {secret for secret in found if len(secret) > 3}  # a shorter one may be part of any word


def reject_secrets(overrides: Iterable[str], problems: Problems) -> list[str]:
    """Drop overrides with secrets, and add them to `problems`: other users of the machine can read a command line."""
    kept: list[str] = []
    for text in overrides:
        key, _, value = text.partition("=")
        key = key.strip().lstrip("+~")
        if re.fullmatch(r"notify(\.urls.*)?", key):
            problems.add(
                "notify.urls: must not be on a command line, which others can read; put the addresses into the "
                "environment variable OVERNIGHT_NOTIFY_URLS, into a file that OVERNIGHT_NOTIFY_URLS_FILE names, or "
                "into a config"
            )
        elif re.fullmatch(r"(storage|tracking)\b.*", key) and has_password(value):
            remedy = (
                f"take storage=postgres and put the address into the environment variable {STORAGE_URL}, or into a "
                f"file that {STORAGE_URL}_FILE names"
                if key.startswith("storage")
                else f"take tracking=server and put them into the environment variables {TRACKING_URI}, {USERNAME} and "
                f"{PASSWORD}, or into files that {PASSWORD}_FILE and the like name"
            )
            problems.add(f"{key}: a password must not be on a command line, which others can read; {remedy}")
        else:
            kept.append(text)
    return kept


@contextlib.contextmanager
def hidden_secrets() -> Iterator[None]:
    """Remove the secrets from the environment, for processes that are started in this block."""
    secrets = {name: os.environ.pop(name) for name in SECRET_VARIABLES & os.environ.keys()}
    try:
        yield
    finally:
        os.environ.update(secrets)


def delete_secrets() -> None:
    """Remove the secrets from the environment of this process, which runs user code."""
    for name in SECRET_VARIABLES & os.environ.keys():
        del os.environ[name]
