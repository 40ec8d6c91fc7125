"""MLflow's server for a group: secrets out of files, two accounts, and a gate before what MLflow itself leaves open.

    python -m overnight.tracking.server --host 0.0.0.0 --port 5000 --serve-artifacts --allowed-hosts mlflow:5000

starts `mlflow server` with these arguments. MLflow's own login (basic-auth) stands before its API and knows who may do
what. It leaves open what begins with /static, /health or /favicon.ico and what the server says of itself, and lets
pages of other sites ask to read. The gate knows no such list: it asks everybody for the login, and turns foreign hosts
and foreign origins away, everywhere but at /health.
"""

from __future__ import annotations

import configparser
import hashlib
import os
import sys
import tempfile
import threading
import urllib.parse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from overnight.config import credentials
from overnight.config.problems import ConfigError, Problems

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send

OPEN = "/health"  # the one path that asks for nothing, for health checks
ADMIN, USER = "MLFLOW_AUTH_ADMIN", "MLFLOW_TRACKING"  # accounts: NAME_USERNAME and NAME_PASSWORD
NEEDED = {
    credentials.BACKEND_URI: "the address of the database for runs",
    credentials.LOGINS_URI: "the address of the database for accounts",
    "MLFLOW_FLASK_SERVER_SECRET_KEY": "32 random bytes or more, which sign the forms of its pages",
    f"{ADMIN}_PASSWORD": "the password of the account that makes and removes accounts",
    f"{USER}_PASSWORD": "the password of the account that workers and people log in with",
}
_REMEMBER_S = 60  # that a password was right; so long may an account that was removed still ask
# Who is logged in may write to every study, since workers write to studies that others launched; only the owner of one
# and the admin may delete it.
_RULES = {"default_permission": "EDIT", "auth_cache_ttl_seconds": str(_REMEMBER_S)}


def secrets() -> dict[str, str]:
    """Every secret that the server needs, by name, out of the environment or the file that NAME_FILE names there.

    Raises ConfigError with a line for each that can't be used.
    """
    found: dict[str, str] = {}
    problems = Problems()
    for name, said in NEEDED.items():
        before = len(problems)
        value = credentials.read_variable(name, problems)
        if value is not None and name in (credentials.BACKEND_URI, credentials.LOGINS_URI):
            value = credentials.psycopg_url(name, value, problems)
        if value is not None:
            found[name] = value
        elif len(problems) == before:
            problems.add(f"{name}: must be set to {said}, or {name}_FILE to a file that holds it; `make secrets`")
    problems.raise_if_any()
    return found


def main(arguments: Sequence[str]) -> NoReturn:
    """Start `mlflow server` with the gate, and stay until it ends; exit code 2 where a secret is missing."""
    try:
        held = secrets()
    except ConfigError as error:
        print(error, file=sys.stderr)
        raise SystemExit(2) from None
    with tempfile.TemporaryDirectory(prefix="overnight-") as folder:
        _tell_mlflow(held, Path(folder) / "basic_auth.ini")
        from mlflow.cli import cli

        _make_accounts(held)
        for name in (f"{ADMIN}_PASSWORD", f"{USER}_PASSWORD"):
            os.environ.pop(name, None)  # the server itself compares with what the database holds
        cli(["server", "--app-name", "overnight", *arguments])
    raise AssertionError("click ends the process")


def _tell_mlflow(held: Mapping[str, str], rules: Path) -> None:
    """Put what was in files where MLflow looks for it."""
    for name in (credentials.BACKEND_URI, "MLFLOW_FLASK_SERVER_SECRET_KEY"):
        os.environ[name] = held[name]
    config = configparser.ConfigParser(interpolation=None)
    # MLflow reads this file with interpolation, where a % is written twice.
    config["mlflow"] = {**_RULES, "database_uri": held[credentials.LOGINS_URI].replace("%", "%%")}
    with open(os.open(rules, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        config.write(file)
    os.environ["MLFLOW_AUTH_CONFIG_PATH"] = str(rules)
    os.environ.setdefault(f"{ADMIN}_USERNAME", "admin")
    os.environ.setdefault(f"{USER}_USERNAME", "overnight")
    os.environ[f"{ADMIN}_PASSWORD"] = held[f"{ADMIN}_PASSWORD"]


def _make_accounts(held: Mapping[str, str]) -> None:
    """Both accounts, with the passwords as the secrets have them now: a new secret and a restart change a password."""
    from mlflow.server import auth

    auth.bootstrap_admin_user()
    for account in (ADMIN, USER):
        name, password = os.environ[f"{account}_USERNAME"], held[f"{account}_PASSWORD"]
        if not auth.store.has_user(name):
            auth.store.create_user(name, password, is_admin=account == ADMIN)
        elif not auth.store.authenticate_user(name, password):
            auth.store.update_user(name, password=password)


def create_app() -> Any:
    """MLflow's app behind its login and the gate; `mlflow server --app-name overnight` calls it in each process."""
    from mlflow.server import auth

    app = auth.create_app()
    app.add_middleware(Gate)  # the last one added is asked first
    return app


def _leads_astray(path: str) -> bool:
    """Whether a path would be another one to somebody who decodes it once more, or follows its dots."""
    for _ in range(3):
        if "//" in path or {"\\", "\0"} & set(path) or {".", ".."} & set(path.split("/")):
            return True
        path = urllib.parse.unquote(path)
    return False


class Gate:
    """Asked before anything of MLflow's is: is the host ours, does the page that asks come from here, who is it?"""

    def __init__(self, app: ASGIApp) -> None:
        import cachetools
        from mlflow.server import security_utils

        self.app = app
        # Digests of what was shown and is right: a page is twenty files, and checking a password is slow on purpose.
        self.known: cachetools.TTLCache[bytes, bool] = cachetools.TTLCache(maxsize=1000, ttl=_REMEMBER_S)
        self.lock = threading.Lock()
        self.hosts = security_utils.get_allowed_hosts_from_env() or security_utils.get_default_allowed_hosts()
        self.origins = security_utils.get_allowed_origins_from_env() or []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan" or (scope["type"] == "http" and scope["path"] == OPEN):
            await self.app(scope, receive, send)
            return
        refusal = await self._refusal(scope)
        if refusal is None:
            await self.app(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
        else:
            await refusal(scope, receive, send)

    async def _refusal(self, scope: Scope) -> ASGIApp | None:
        import anyio.to_thread
        from mlflow.server.security_utils import is_allowed_host_header
        from starlette.requests import HTTPConnection
        from starlette.responses import PlainTextResponse

        headers = HTTPConnection(scope).headers
        host, origin = headers.get("host", ""), headers.get("origin")
        if not is_allowed_host_header(self.hosts, host):
            return PlainTextResponse("This server is not called that: --allowed-hosts lists its names.", 403)
        if origin is not None and origin not in self.origins and urllib.parse.urlsplit(origin).netloc != host:
            return PlainTextResponse("Pages of other sites may not ask here: --cors-allowed-origins lists some.", 403)
        shown = headers.get("authorization")
        if shown is None or not await anyio.to_thread.run_sync(self._opens, shown):
            return PlainTextResponse(
                "You are not logged in.", 401, headers={"WWW-Authenticate": 'Basic realm="mlflow", charset="UTF-8"'}
            )
        asked = urllib.parse.parse_qsl(scope["query_string"].decode("latin-1"))
        if any(map(_leads_astray, (scope["path"], *(value for name, value in asked if name == "path")))):
            return PlainTextResponse("A path must not lead up, hold two slashes in a row, or a backslash.", 400)
        return None

    def _opens(self, shown: str) -> bool:
        """Whether an Authorization header holds the name and the password of an account."""
        from mlflow.server import auth
        from werkzeug.datastructures import Authorization

        digest = hashlib.sha256(shown.encode()).digest()
        with self.lock:
            if digest in self.known:
                return True
        login = Authorization.from_header(shown)
        if login is None or login.type != "basic" or not login.username:
            return False
        if not auth.store.authenticate_user(login.username, login.password or ""):
            return False
        with self.lock:
            self.known[digest] = True
        return True


if __name__ == "__main__":
    main(sys.argv[1:])
