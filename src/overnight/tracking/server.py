"""MLflow's server for a group: secrets from files, two accounts, and a gate that closes what MLflow leaves open.

    python -m overnight.tracking.server --host 0.0.0.0 --port 5000 --serve-artifacts --allowed-hosts mlflow:5000

starts `mlflow server` with these arguments. MLflow's own login (basic-auth) protects its API and checks permissions.
It does not protect paths that begin with /static, /health or /favicon.ico, nor what the server says about itself, and
it lets pages of other sites send read requests. The gate has no such exceptions: every path but /health needs the
login, and requests with a foreign host or from a foreign origin are rejected.
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

OPEN = "/health"  # needs no login, for health checks
ADMIN, USER = "MLFLOW_AUTH_ADMIN", "MLFLOW_TRACKING"  # prefixes of the accounts' _USERNAME and _PASSWORD variables
NEEDED = {
    credentials.BACKEND_URI: "the address of the database for runs",
    credentials.LOGINS_URI: "the address of the database for accounts",
    "MLFLOW_FLASK_SERVER_SECRET_KEY": "at least 32 random bytes, which sign the forms of the pages",
    f"{ADMIN}_PASSWORD": "the password of the account that manages accounts",
    f"{USER}_PASSWORD": "the password of the account that workers and users log in with",
}
_LOGIN_CACHE_S = 60  # how long a checked password, and so a deleted account, stays valid
# Every account may write to every study, because workers write to the studies of other accounts. Only the owner of a
# study and the administrator may delete it.
_AUTH_CONFIG = {"default_permission": "EDIT", "auth_cache_ttl_seconds": str(_LOGIN_CACHE_S)}


def read_secrets() -> dict[str, str]:
    """Read every secret of the server from its environment variable NAME, or from the file that NAME_FILE names.

    Raises:
        ConfigError: Secrets are missing or invalid, one line for each.
    """
    secrets: dict[str, str] = {}
    problems = Problems()
    for name, description in NEEDED.items():
        before = len(problems)
        value = credentials.read_variable(name, problems)
        if value is not None and name in (credentials.BACKEND_URI, credentials.LOGINS_URI):
            value = credentials.psycopg_url(name, value, problems)
        if value is not None:
            secrets[name] = value
        elif len(problems) == before:
            problems.add(
                name,
                f"must be set to {description}, or {name}_FILE to a file that contains it",
                remedy="run `make secrets`",
            )
    problems.raise_if_any()
    return secrets


def main(arguments: Sequence[str]) -> NoReturn:
    """Run `mlflow server` with the gate until it ends. The exit code is 2 if a secret is missing."""
    try:
        secrets = read_secrets()
    except ConfigError as error:
        print(error, file=sys.stderr)
        raise SystemExit(2) from None
    with tempfile.TemporaryDirectory(prefix="overnight-") as folder:
        _configure_mlflow(secrets, Path(folder) / "basic_auth.ini")
        from mlflow.cli import cli

        _create_accounts(secrets)
        for name in (f"{ADMIN}_PASSWORD", f"{USER}_PASSWORD"):
            os.environ.pop(name, None)  # the server checks passwords against its database
        cli(["server", "--app-name", "overnight", *arguments])
    raise AssertionError("click exits")


def _configure_mlflow(secrets: Mapping[str, str], config_path: Path) -> None:
    """Pass the secrets to MLflow, in its environment variables and its configuration file."""
    for name in (credentials.BACKEND_URI, "MLFLOW_FLASK_SERVER_SECRET_KEY"):
        os.environ[name] = secrets[name]
    config = configparser.ConfigParser(interpolation=None)
    # MLflow reads the file with interpolation, so % is escaped as %%.
    config["mlflow"] = {**_AUTH_CONFIG, "database_uri": secrets[credentials.LOGINS_URI].replace("%", "%%")}
    with open(os.open(config_path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        config.write(file)
    os.environ["MLFLOW_AUTH_CONFIG_PATH"] = str(config_path)
    os.environ.setdefault(f"{ADMIN}_USERNAME", "admin")
    os.environ.setdefault(f"{USER}_USERNAME", "overnight")
    os.environ[f"{ADMIN}_PASSWORD"] = secrets[f"{ADMIN}_PASSWORD"]


def _create_accounts(secrets: Mapping[str, str]) -> None:
    """Create both accounts, or set their passwords to those of the secrets, which may have changed."""
    from mlflow.server import auth

    auth.bootstrap_admin_user()
    for account in (ADMIN, USER):
        name, password = os.environ[f"{account}_USERNAME"], secrets[f"{account}_PASSWORD"]
        if not auth.store.has_user(name):
            auth.store.create_user(name, password, is_admin=account == ADMIN)
        elif not auth.store.authenticate_user(name, password):
            auth.store.update_user(name, password=password)


def create_app() -> Any:
    """Return MLflow's app with login and gate. `mlflow server --app-name overnight` calls it in each process."""
    from mlflow.server import auth

    app = auth.create_app()
    app.add_middleware(Gate)  # middleware that is added last runs first
    return app


def _is_ambiguous(path: str) -> bool:
    """Return whether a path changes when it is decoded again or when its dots are resolved."""
    for _ in range(3):
        if "//" in path or {"\\", "\0"} & set(path) or {".", ".."} & set(path.split("/")):
            return True
        path = urllib.parse.unquote(path)
    return False


class Gate:
    """ASGI middleware that checks host, origin, login and path of every request before MLflow sees it."""

    def __init__(self, app: ASGIApp) -> None:
        import cachetools
        from mlflow.server import security_utils

        self.app = app
        # Digests of valid Authorization headers. A page loads twenty files, and checking a password is slow by design.
        self.valid_logins: cachetools.TTLCache[bytes, bool] = cachetools.TTLCache(maxsize=1000, ttl=_LOGIN_CACHE_S)
        self.lock = threading.Lock()
        self.hosts = security_utils.get_allowed_hosts_from_env() or security_utils.get_default_allowed_hosts()
        self.origins = security_utils.get_allowed_origins_from_env() or []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan" or (scope["type"] == "http" and scope["path"] == OPEN):
            await self.app(scope, receive, send)
            return
        rejection = await self._rejection(scope)
        if rejection is None:
            await self.app(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
        else:
            await rejection(scope, receive, send)

    async def _rejection(self, scope: Scope) -> ASGIApp | None:
        import anyio.to_thread
        from mlflow.server.security_utils import is_allowed_host_header
        from starlette.requests import HTTPConnection
        from starlette.responses import PlainTextResponse

        headers = HTTPConnection(scope).headers
        host, origin = headers.get("host", ""), headers.get("origin")
        if not is_allowed_host_header(self.hosts, host):
            return PlainTextResponse("This server does not have that name. --allowed-hosts lists its names.", 403)
        if origin is not None and origin not in self.origins and urllib.parse.urlsplit(origin).netloc != host:
            return PlainTextResponse(
                "Pages of other sites may not send requests. --cors-allowed-origins lists the exceptions.", 403
            )
        header = headers.get("authorization")
        if header is None or not await anyio.to_thread.run_sync(self._is_valid_login, header):
            return PlainTextResponse(
                "You are not logged in.", 401, headers={"WWW-Authenticate": 'Basic realm="mlflow", charset="UTF-8"'}
            )
        query = urllib.parse.parse_qsl(scope["query_string"].decode("latin-1"))
        if any(map(_is_ambiguous, (scope["path"], *(value for name, value in query if name == "path")))):
            return PlainTextResponse("A path must not contain . or .., two slashes in a row, or a backslash.", 400)
        return None

    def _is_valid_login(self, header: str) -> bool:
        """Return whether an Authorization header contains the name and the password of an account."""
        from mlflow.server import auth
        from werkzeug.datastructures import Authorization

        digest = hashlib.sha256(header.encode()).digest()
        with self.lock:
            if digest in self.valid_logins:
                return True
        login = Authorization.from_header(header)
        if login is None or login.type != "basic" or not login.username:
            return False
        if not auth.store.authenticate_user(login.username, login.password or ""):
            return False
        with self.lock:
            self.valid_logins[digest] = True
        return True


if __name__ == "__main__":
    main(sys.argv[1:])
