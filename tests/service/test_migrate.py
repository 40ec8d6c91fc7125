"""Databases are created and updated on a real PostgreSQL, by several processes at once."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import optuna
import pytest
import sqlalchemy
from optuna.storages import RDBStorage

from overnight.cluster import migrate as migrating
from overnight.config.credentials import BACKEND_URI, LOGINS_URI, SECRET_VARIABLES, STORAGE_URL
from overnight.config.paths import StudyLocation
from overnight.config.problems import ConfigError
from overnight.study.storage import database as storage
from overnight.study.storage import lock
from overnight.study.storage import postgres as postgres_module
from overnight.study.storage.outage import Unreachable
from support.servers import Cable, Postgres

PASSWORD = "pl4nted%24word"
AT_ONCE = 8


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in SECRET_VARIABLES:
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def new(postgres: Postgres) -> Callable[[str], str]:
    """Name a database that does not exist, with a role and password of its own; return the address."""
    role = postgres.role("pl4nted$word")
    return lambda name: postgres.url_of(role, PASSWORD, f"{role}-{name}")


def tables(url: str) -> set[str]:
    engine = sqlalchemy.create_engine(url.replace("postgresql://", "postgresql+psycopg://"))
    try:
        return set(sqlalchemy.inspect(engine).get_table_names())
    finally:
        engine.dispose()


@pytest.mark.long
def test_a_missing_database_is_created_once_by_concurrent_processes(
    new: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(STORAGE_URL, new("studies"))
    with ThreadPoolExecutor(AT_ONCE) as pool:
        lines = list(pool.map(lambda _: list(migrating.migrate()), range(AT_ONCE)))
    assert sorted(line for (line,) in lines) == [
        f"the study storage ({STORAGE_URL}): created, and up to date",
        *[f"the study storage ({STORAGE_URL}): up to date"] * (AT_ONCE - 1),
    ]
    assert {"trials", "version_info", "alembic_version"} <= tables(os.environ[STORAGE_URL])


@pytest.mark.long
def test_concurrent_first_openings_create_all_tables(database: Callable[[], str]) -> None:
    location = StudyLocation("unused", database(), storage="postgres")

    def study(_: int) -> str:
        opened = storage.open_storage(location)
        made = optuna.create_study(storage=opened, study_name="one", load_if_exists=True)
        storage.dispose(opened)
        return made.study_name

    with ThreadPoolExecutor(AT_ONCE) as pool:
        assert set(pool.map(study, range(AT_ONCE))) == {"one"}


@pytest.mark.long
def test_an_open_storage_survives_a_restart_of_its_database(postgres: Postgres) -> None:
    opened = storage.open_storage(StudyLocation("unused", postgres.create(), storage="postgres"))
    study = optuna.create_study(storage=opened, study_name="one")
    study.set_user_attr("before", 1)
    postgres.stop()
    postgres.start()
    study.set_user_attr("after", 2)
    assert study.user_attrs == {"before": 1, "after": 2}
    storage.dispose(opened)


@pytest.mark.parametrize("when", ["opened", "read"])
def test_an_outage_while_a_study_is_read_raises_unreachable(
    database: Callable[[], str], postgres: Postgres, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    storage.dispose(storage.open_storage(StudyLocation("unused", url := database(), storage="postgres")))
    cable = Cable(tmp_path / "cable", postgres)
    location = StudyLocation("unused", cable.through(url), storage="postgres")
    module, name = (postgres_module, "has_tables") if when == "opened" else (storage, "open_storage")
    before = getattr(module, name)

    def and_cut(*args: Any) -> Any:
        answer = before(*args)
        cable.cut()
        return answer

    monkeypatch.setattr(module, name, and_cut)
    with pytest.raises(Unreachable, match="can't be reached"):
        lock.holder_of(location, "one")


def test_old_tables_are_not_opened_until_they_are_updated(
    database: Callable[[], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    url = database()
    location = StudyLocation("unused", url, storage="postgres")
    storage.dispose(opened := storage.open_storage(location))
    assert isinstance(opened, RDBStorage)
    before = opened.get_all_versions()[1]
    engine = sqlalchemy.create_engine(url)
    with engine.begin() as connection:
        connection.execute(sqlalchemy.text("UPDATE alembic_version SET version_num = :v"), {"v": before})
    with pytest.raises(ConfigError, match="holds the tables of another version of Optuna; `overnight migrate`"):
        storage.open_storage(location)
    with engine.begin() as connection:  # restore the version, as a migration does
        connection.execute(
            sqlalchemy.text("UPDATE alembic_version SET version_num = :v"), {"v": opened.get_head_version()}
        )
    engine.dispose()
    monkeypatch.setenv(STORAGE_URL, url)
    assert list(migrating.migrate()) == [f"the study storage ({STORAGE_URL}): up to date"]


def test_wrong_addresses_are_reported_at_once_and_nothing_is_changed(
    new: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigError, match=f"{STORAGE_URL}: must be set to the address of the database"):
        migrating.migrate()
    monkeypatch.setenv(STORAGE_URL, new("studies"))
    monkeypatch.setenv(BACKEND_URI, "sqlite:///runs.db")
    monkeypatch.setenv(LOGINS_URI, "postgresql://h")
    with pytest.raises(ConfigError) as error:
        migrating.migrate()
    assert [p.split(":")[0] for p in error.value.problems] == [BACKEND_URI, LOGINS_URI]
    monkeypatch.delenv(LOGINS_URI)
    monkeypatch.setenv(BACKEND_URI, new("studies"))
    with pytest.raises(ConfigError, match=f"{BACKEND_URI}: must be another database than {STORAGE_URL}"):
        migrating.migrate()
    with pytest.raises(sqlalchemy.exc.OperationalError, match="does not exist"):
        tables(new("studies"))


def test_a_wrong_password_is_not_repeated(new: Callable[[str], str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(STORAGE_URL, new("studies").replace(PASSWORD, "wrong-password"))
    with pytest.raises(ConfigError, match=f"{STORAGE_URL}: must be a database that can be opened and changed") as error:
        list(migrating.migrate())
    assert "authentication failed" in str(error.value)
    assert "wrong-password" not in str(error.value)


@pytest.mark.service
def test_eight_commands_at_once_create_every_database(new: Callable[[str], str], tmp_path: Path) -> None:
    urls = {name: new(name.lower()) for name in (STORAGE_URL, BACKEND_URI, LOGINS_URI)}
    (tmp_path / "logins").write_text(urls[LOGINS_URI])
    given = {STORAGE_URL: urls[STORAGE_URL], BACKEND_URI: urls[BACKEND_URI], f"{LOGINS_URI}_FILE": "logins"}

    def migrate(_: int) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-W", "ignore", "-m", "overnight", "migrate"]
        return subprocess.run(
            command, env={**os.environ, **given}, cwd=tmp_path, capture_output=True, text=True, check=False
        )

    with ThreadPoolExecutor(AT_ONCE) as pool:
        done = list(pool.map(migrate, range(AT_ONCE)))
    assert [(d.returncode, d.stderr) for d in done] == [(0, "")] * AT_ONCE
    lines = [line for d in done for line in d.stdout.splitlines()]
    assert len(lines) == 3 * AT_ONCE
    assert sum("created, and up to date" in line for line in lines) == 3
    assert "trials" in tables(urls[STORAGE_URL])
    assert {"runs", "registered_models", "alembic_version"} <= tables(urls[BACKEND_URI])
    assert {"users", "alembic_version_auth"} <= tables(urls[LOGINS_URI])
