"""Optuna's own contract tests, on both storages."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy
from optuna.storages import BaseStorage
from optuna.testing.pytest_storages import StorageTestCase

from overnight.config.paths import StudyLocation
from overnight.study.storage.database import dispose, open_storage
from overnight.study.storage.exclusive import ExclusiveStorage
from overnight.study.storage.leased import LeasedStorage
from support.servers import Postgres


@pytest.fixture(scope="module")
def url(postgres: Postgres) -> str:
    return postgres.create()


class TestExclusiveStorage(StorageTestCase):
    @pytest.fixture
    def storage(self, tmp_path: Path) -> Iterator[BaseStorage]:
        storage = ExclusiveStorage(open_storage(StudyLocation(str(tmp_path))))
        yield storage
        dispose(storage)


# The copy that `test_pickle_storage` makes leaves a connection open.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
class TestLeasedStorage(StorageTestCase):
    @pytest.fixture
    def storage(self, url: str) -> Iterator[BaseStorage]:
        location = StudyLocation("unused", url, storage="postgres")
        storage = LeasedStorage(open_storage(location), location.lease_s)
        yield storage
        with storage.backend.engine.begin() as connection:
            connection.execute(sqlalchemy.text("TRUNCATE studies, overnight_leases, overnight_members CASCADE"))
        dispose(storage)
