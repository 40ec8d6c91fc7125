"""Creates and updates the databases: of the study storage, and of MLflow's server.

Several processes on several machines may do so at once. Each holds the lock of a database while it changes tables; a
later one finds them up to date.
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
    """A database.

    Attributes:
        variable: the environment variable that holds its address.
        content: what it holds, for messages.
        make_tables: creates or updates its tables, given its address.
    """

    variable: str
    content: str
    make_tables: Callable[[str], None]


STORES = (
    Store(STORAGE_URL, "the study storage", database.make_tables),
    Store(BACKEND_URI, "MLflow's runs", tables.make_backend),
    Store(LOGINS_URI, "MLflow's logins", tables.make_logins),
)


def migrate() -> Iterator[str]:
    """Create or update every database whose address the environment holds.

    Yields:
        A line for each, once it is done.

    Raises:
        ConfigError: at once for all addresses that are wrong; later for a database that can't be opened or changed.
    """
    problems = Problems()
    urls = {store.variable: url for store in STORES if (url := credentials.read_postgres_url(store.variable, problems))}
    if not urls and not problems:
        problems.add(
            f"{STORAGE_URL}: must be set to the address of the database to create or update, or {STORAGE_URL}_FILE "
            f"to a file that holds it; {BACKEND_URI} and {LOGINS_URI} too, if MLflow's server has its own databases"
        )
    if STORAGE_URL in urls and postgres.same_database(urls[STORAGE_URL], urls.get(BACKEND_URI)):
        # Both store their version in a table of the same name.
        problems.add(f"{BACKEND_URI}: must be another database than {STORAGE_URL}, on the same or another server")
    problems.raise_if_any()
    return _each(urls)


def _each(urls: dict[str, str]) -> Iterator[str]:
    for store in STORES:
        url = urls.get(store.variable)
        if url is None:
            continue
        with _explained(store):
            created = postgres.create_database(url)
            with postgres.schema_lock(url):
                store.make_tables(url)
        yield f"{store.content} ({store.variable}): {'created, and ' if created else ''}up to date"


@contextlib.contextmanager
def _explained(store: Store) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # of SQLAlchemy, alembic or the driver
        reason = credentials.redact(str(error).splitlines()[0] if str(error) else type(error).__name__)
        raise ConfigError(
            [f"{store.variable}: must be a database that can be opened and changed, for {store.content}: {reason}"]
        ) from error
