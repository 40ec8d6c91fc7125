"""Both stores made, and brought up to date: the ledger, and the databases of MLflow's server.

Any number may be at it at once, on any machine: whoever makes tables in a database holds its lock, and who comes later
finds them made.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from overnight.config import credentials
from overnight.config.credentials import BACKEND_URI, LOGINS_URI, STORAGE_URL
from overnight.config.problems import ConfigError, Problems
from overnight.study.storage import database, postgres
from overnight.tracking import tables


@dataclass(frozen=True)
class Store:
    """name: of the environment's variable that holds its address. make: its tables, given that address."""

    name: str
    said: str
    make: Callable[[str], None]


STORES = (
    Store(STORAGE_URL, "the ledger", database.make_tables),
    Store(BACKEND_URI, "MLflow's runs", tables.make_backend),
    Store(LOGINS_URI, "MLflow's logins", tables.make_logins),
)


def migrate() -> Iterator[str]:
    """Make ready every store whose address the environment holds; a line each once it is done.

    Raises ConfigError, before anything is touched, for every address that can't be used; later for a database that
    can't be reached or changed.
    """
    problems = Problems()
    urls = {store.name: url for store in STORES if (url := credentials.read_postgres_url(store.name, problems))}
    if not urls and not problems:
        problems.add(
            f"{STORAGE_URL}: must be set to the address of the database to make ready, or {STORAGE_URL}_FILE to a "
            f"file that holds it; {BACKEND_URI} and {LOGINS_URI} too, where MLflow's server has databases of its own"
        )
    if STORAGE_URL in urls and postgres.same_database(urls[STORAGE_URL], urls.get(BACKEND_URI)):
        # Both keep their version in a table of the same name.
        problems.add(f"{BACKEND_URI}: must be another database than {STORAGE_URL}'s, on the same server if you like")
    problems.raise_if_any()
    return _each(urls)


def _each(urls: dict[str, str]) -> Iterator[str]:
    for store in STORES:
        url = urls.get(store.name)
        if url is None:
            continue
        with _said(store):
            created = postgres.create_database(url)
            with postgres.schema_lock(url):
                store.make(url)
        yield f"{store.said} ({store.name}): {'created, and ' if created else ''}up to date"


@contextlib.contextmanager
def _said(store: Store) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # SQLAlchemy's, alembic's, the driver's
        reason = credentials.redact(str(error).splitlines()[0] if str(error) else type(error).__name__)
        raise ConfigError(
            [f"{store.name}: must be a database that can be opened and changed, for {store.said}: {reason}"]
        ) from error
