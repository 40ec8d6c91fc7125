"""Both stores made and brought up to date, on a real PostgreSQL, by any number at once."""

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
from overnight.config.credentials import BACKEND_URI, LOGINS_URI, SECRET, STORAGE_URL
from overnight.config.paths import StudyLocation
from overnight.config.problems import ConfigError
from overnight.study.storage import database as storage
from overnight.study.storage import lock
from overnight.study.storage import postgres as postgres_module
from overnight.study.storage.outage import Unreachable
from support.servers import Cable, Postgres

WORD = "pl4nted%24word"
AT_ONCE = 8


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in SECRET:
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def new(postgres: Postgres) -> Callable[[str], str]:
    """The address of a database that is not there, for a role of its own that brings a password."""
    role = postgres.role("pl4nted$word")
    return lambda name: postgres.url_of(role, WORD, f"{role}-{name}")


def tables(url: str) -> set[str]:
    engine = sqlalchemy.create_engine(url.replace("postgresql://", "postgresql+psycopg://"))
    try:
        return set(sqlalchemy.inspect(engine).get_table_names())
    finally:
        engine.dispose()


def test_a_ledger_that_is_not_there_is_made_once_however_many_are_at_it(
    new: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(STORAGE_URL, new("ledger"))
    with ThreadPoolExecutor(AT_ONCE) as pool:
        said = list(pool.map(lambda _: list(migrating.migrate()), range(AT_ONCE)))
    assert sorted(line for (line,) in said) == [
        f"the ledger ({STORAGE_URL}): created, and up to date",
        *[f"the ledger ({STORAGE_URL}): up to date"] * (AT_ONCE - 1),
    ]
    assert {"trials", "version_info", "alembic_version"} <= tables(os.environ[STORAGE_URL])


def test_first_openings_at_once_of_an_empty_ledger_make_it_whole(database: Callable[[], str]) -> None:
    location = StudyLocation("unused", database(), storage="postgres")

    def study(_: int) -> str:
        opened = storage.open_storage(location)
        made = optuna.create_study(storage=opened, study_name="one", load_if_exists=True)
        storage.dispose(opened)
        return made.study_name

    with ThreadPoolExecutor(AT_ONCE) as pool:
        assert set(pool.map(study, range(AT_ONCE))) == {"one"}


def test_a_ledger_outlives_a_restart_of_its_database(postgres: Postgres) -> None:
    opened = storage.open_storage(StudyLocation("unused", postgres.create(), storage="postgres"))
    study = optuna.create_study(storage=opened, study_name="one")
    study.set_user_attr("before", 1)
    postgres.stop()
    postgres.start()
    study.set_user_attr("after", 2)
    assert study.user_attrs == {"before": 1, "after": 2}
    storage.dispose(opened)


@pytest.mark.parametrize("when", ["opened", "asked who is at it"])
def test_a_database_that_goes_away_while_it_is_looked_at_is_out_of_reach_and_no_mistake(
    database: Callable[[], str], postgres: Postgres, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    storage.dispose(storage.open_storage(StudyLocation("unused", url := database(), storage="postgres")))
    cable = Cable(tmp_path / "cable", postgres)
    location = StudyLocation("unused", cable.through(url), storage="postgres")
    module, name = (postgres_module, "has_tables") if when == "opened" else (storage, "open_storage")
    before = getattr(module, name)

    def and_goes(*args: Any) -> Any:
        answer = before(*args)
        cable.cut()
        return answer

    monkeypatch.setattr(module, name, and_goes)
    with pytest.raises(Unreachable, match="can't be reached"):
        lock.holder_of(location, "one")


def test_an_old_ledger_is_not_opened_until_it_is_brought_up_to_date(
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
    with engine.begin() as connection:  # as that version left it
        connection.execute(
            sqlalchemy.text("UPDATE alembic_version SET version_num = :v"), {"v": opened.get_head_version()}
        )
    engine.dispose()
    monkeypatch.setenv(STORAGE_URL, url)
    assert list(migrating.migrate()) == [f"the ledger ({STORAGE_URL}): up to date"]


def test_mistakes_in_addresses_are_told_at_once_and_nothing_is_touched(
    new: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigError, match=f"{STORAGE_URL}: must be set to the address of the database"):
        migrating.migrate()
    monkeypatch.setenv(STORAGE_URL, new("ledger"))
    monkeypatch.setenv(BACKEND_URI, "sqlite:///runs.db")
    monkeypatch.setenv(LOGINS_URI, "postgresql://h")
    with pytest.raises(ConfigError) as error:
        migrating.migrate()
    assert [p.split(":")[0] for p in error.value.problems] == [BACKEND_URI, LOGINS_URI]
    monkeypatch.delenv(LOGINS_URI)
    monkeypatch.setenv(BACKEND_URI, new("ledger"))
    with pytest.raises(ConfigError, match=f"{BACKEND_URI}: must be another database than {STORAGE_URL}'s"):
        migrating.migrate()
    with pytest.raises(sqlalchemy.exc.OperationalError, match="does not exist"):
        tables(new("ledger"))


def test_a_password_that_is_wrong_is_not_repeated(new: Callable[[str], str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(STORAGE_URL, new("ledger").replace(WORD, "not-the-word"))
    with pytest.raises(ConfigError, match=f"{STORAGE_URL}: must be a database that can be opened and changed") as error:
        list(migrating.migrate())
    assert "authentication failed" in str(error.value)
    assert "not-the-word" not in str(error.value)


@pytest.mark.service
def test_every_store_is_made_by_eight_commands_at_once_on_no_databases(
    new: Callable[[str], str], tmp_path: Path
) -> None:
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
