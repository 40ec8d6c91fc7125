"""Addresses and secrets that come from the environment, by name or from a mounted file that NAME_FILE names.

Nothing of them is kept in a plan, shown, logged, or handed to a trial's process. No message here repeats a value.
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
# Of MLflow's server, which `overnight migrate` makes ready. MLflow itself knows the last one from a file of settings.
BACKEND_URI, LOGINS_URI = "MLFLOW_BACKEND_STORE_URI", "MLFLOW_AUTH_DATABASE_URI"
_READ = (STORAGE_URL, TRACKING_URI, USERNAME, PASSWORD, TOKEN, BACKEND_URI, LOGINS_URI)
# What is nothing for a trial, a hook or any other process that runs people's code.
SECRET = frozenset(
    {name + end for name in (*_READ, "OVERNIGHT_NOTIFY_URLS") for end in ("", "_FILE")}
    | {"PGPASSWORD", "MLFLOW_AUTH_ADMIN_PASSWORD", "MLFLOW_FLASK_SERVER_SECRET_KEY"}
)
_POSTGRES = re.compile(r"postgres(ql(\+psycopg)?)?://")
_SECRET_KEY = r"\w*(password|token|secret|passwd)"
_PASSWORD_IN = re.compile(rf"://\S*:\S*@|[?&]{_SECRET_KEY}=", re.IGNORECASE)
_GIVES_WAY = "(not shown)"
_lent: dict[str, str] = {}  # what this process put into its own environment, for MLflow's client


# What the environment gives ------------------------------------------------------------------------------------------


def read_variable(name: str, problems: Problems) -> str | None:
    """What stands under a name, or in the file that NAME_FILE names, stripped; None where there is neither.

    An empty variable counts as none, since a compose file can't leave one out.
    """
    text, path = os.environ.get(name, "").strip(), os.environ.get(f"{name}_FILE", "").strip()
    if not path:
        return text or None
    try:
        held = Path(path).expanduser().read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        problems.add(f"{name}_FILE: must name a file that can be read, got {path!r}: {type(error).__name__}")
        return None
    if not held:
        problems.add(f"{name}_FILE: must name a file that holds the value, and {path!r} is empty")
        return None
    if text and text not in (held, _lent.get(name)):
        problems.add(f"{name}: is set, and {name}_FILE names a file with another value; unset one of them")
        return None
    return held


def storage_url(problems: Problems) -> str | None:
    """The address of the ledger's PostgreSQL, as SQLAlchemy takes it; None where it lacks or is a mistake."""
    return _needed_postgres(STORAGE_URL, "with storage=postgres", problems)


def tracking_uri(problems: Problems) -> str | None:
    """The address of MLflow's server, without a / at its end; None where it lacks or is a mistake."""
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
            f"{TRACKING_URI}: must hold no name and no password, as it is shown; set {USERNAME} and {PASSWORD}"
        )
    else:
        return uri.rstrip("/")
    return None


def login(problems: Problems) -> dict[str, str]:
    """Name -> value of what MLflow's client shows to its server; none where its own file, or no login, is to do."""
    held = {name: value for name in (USERNAME, PASSWORD, TOKEN) if (value := read_variable(name, problems)) is not None}
    files = [name for name in (USERNAME, PASSWORD, TOKEN) if os.environ.get(f"{name}_FILE") and name not in held]
    if not files:  # which were told already
        if TOKEN in held and (USERNAME in held or PASSWORD in held):
            problems.add(f"{TOKEN}: must not be set together with {USERNAME} or {PASSWORD}; unset either")
        for one, other in ((USERNAME, PASSWORD), (PASSWORD, USERNAME)):
            if one in held and other not in held:
                problems.add(f"{other}: must be set, or {other}_FILE, where {one} is")
    return held


def export_login() -> None:
    """Put the login where MLflow's client looks for it at every request, the environment of this process.

    Raises LookupError where it can't be read any more.
    """
    problems = Problems()
    held = login(problems)
    if problems:
        raise LookupError("; ".join(problems))
    for name, value in held.items():
        if os.environ.get(name) != value:
            os.environ[name] = _lent[name] = value


def postgres(name: str, problems: Problems) -> str | None:
    """The address of a PostgreSQL that stands under a name, as SQLAlchemy takes it; None where there is none."""
    url = read_variable(name, problems)
    return postgres_url(name, url, problems) if url is not None else None


def postgres_url(name: str, url: str, problems: Problems) -> str | None:
    """The same address, to be driven by psycopg 3."""
    if not _POSTGRES.match(url):
        problems.add(f"{name}: must be a PostgreSQL's address, postgresql://NAME:PASSWORD@HOST/DATABASE")
        return None
    parts = _split(url)
    if parts is None or parts.netloc.count("@") > 1 or len(parts.path) < 2 or "/" in parts.path[1:] or parts.fragment:
        problems.add(
            f"{name}: must be postgresql://NAME:PASSWORD@HOST:PORT/DATABASE, where a password's own @ : / ? # and % "
            f"are written %40 %3A %2F %3F %23 and %25"
        )
        return None
    if importlib.util.find_spec("psycopg") is None:
        problems.add(f"{name}: needs the package psycopg; pip install 'overnight[service]'")
        return None
    return _POSTGRES.sub("postgresql+psycopg://", url, count=1)


def is_postgres(url: str | None) -> bool:
    return url is not None and _POSTGRES.match(url) is not None


def _needed_postgres(name: str, where: str, problems: Problems) -> str | None:
    before = len(problems)
    url = postgres(name, problems)
    if url is None and len(problems) == before:
        problems.add(
            f"{name}: must be set {where}, to postgresql://NAME:PASSWORD@HOST/DATABASE, or {name}_FILE to a file "
            f"that holds it"
        )
    return url


def _split(url: str) -> urllib.parse.SplitResult | None:
    try:
        parts = urllib.parse.urlsplit(url)
        _ = parts.port  # raises where it is no number
    except ValueError:
        return None
    return parts


# Keeping them to this process ----------------------------------------------------------------------------------------


def has_password(text: str) -> bool:
    """Whether an address brings a password, or a token, along."""
    return _PASSWORD_IN.search(text) is not None


def mask_credentials(text: str) -> str:
    """A text without the name and the password of the addresses in it."""
    text = re.sub(r"://\S*@", f"://{_GIVES_WAY}@", text)
    return re.sub(rf"([?&]{_SECRET_KEY}=)[^&\s]*", rf"\1{_GIVES_WAY}", text, flags=re.IGNORECASE)


def redact(text: str) -> str:
    """A text, of an error say, without any secret that this process knows."""
    for secret in sorted(_known(), key=len, reverse=True):
        text = text.replace(secret, _GIVES_WAY)
    return mask_credentials(text)


def _known() -> set[str]:
    """Every value that no text may hold; of an address that is shown, such as a server's, nothing."""
    found: set[str] = set()
    for name in (*_READ, "PGPASSWORD"):
        value = read_variable(name, Problems())
        if value is None or name in (TRACKING_URI, USERNAME):
            continue
        found.add(value)
        parts = _split(value) if "://" in value else None
        if parts is not None:
            found.add(value.partition("://")[2])
            asked = urllib.parse.parse_qsl(parts.query)
            secrets = [parts.password or "", *(v for k, v in asked if re.fullmatch(_SECRET_KEY, k, re.IGNORECASE))]
            found |= {*secrets, *map(urllib.parse.unquote, secrets)}
    return {secret for secret in found if len(secret) > 3}  # of less, any word might be one


def reject_secrets(overrides: Iterable[str], problems: Problems) -> list[str]:
    """The overrides less those with secrets, which a command line would show to everybody on the machine."""
    kept: list[str] = []
    for text in overrides:
        key, _, value = text.partition("=")
        key = key.strip().lstrip("+~")
        if re.fullmatch(r"notify(\.urls.*)?", key):
            problems.add(
                "notify.urls: must not stand on a command line, which others can read; put the addresses into the "
                "environment's OVERNIGHT_NOTIFY_URLS, into a file that OVERNIGHT_NOTIFY_URLS_FILE names, or into a "
                "config"
            )
        elif re.fullmatch(r"(storage|tracking)\b.*", key) and has_password(value):
            remedy = (
                f"take storage=postgres and put the address into the environment's {STORAGE_URL}, or into a file that "
                f"{STORAGE_URL}_FILE names"
                if key.startswith("storage")
                else f"take tracking=server and put them into the environment's {TRACKING_URI}, {USERNAME} and "
                f"{PASSWORD}, or into files that {PASSWORD}_FILE and the like name"
            )
            problems.add(f"{key}: a password must not stand on a command line, which others can read; {remedy}")
        else:
            kept.append(text)
    return kept


@contextlib.contextmanager
def hidden_secrets() -> Iterator[None]:
    """Have a process that is started in this block inherit no secret."""
    held = {name: os.environ.pop(name) for name in SECRET & os.environ.keys()}
    try:
        yield
    finally:
        os.environ.update(held)


def delete_secrets() -> None:
    """Take every secret out of this process's environment: what runs here is people's code."""
    for name in SECRET & os.environ.keys():
        del os.environ[name]
