"""Writes to a SQLite file on a full disk."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy
from optuna.study import StudyDirection

from overnight.config.paths import StudyLocation
from overnight.study.storage.database import DiskFull, dispose, open_storage
from overnight.study.storage.exclusive import ExclusiveStorage

LARGE = "x" * 1_000_000


class FullDisk:
    """A storage whose file can't grow until there is space."""

    def __init__(self, home: Path) -> None:
        self.storage = ExclusiveStorage(open_storage(StudyLocation(str(home))))
        self.study_id = self.storage.create_new_study([StudyDirection.MINIMIZE])
        self.trial_id = self.storage.create_new_trial(self.study_id)
        self.max_pages, self.waits = 1, 0  # SQLite raises a limit to the present size
        engine = self.storage.backend.engine
        sqlalchemy.event.listen(engine, "connect", self._limit)
        engine.dispose()

    def _limit(self, connection: Any, _: object) -> None:
        connection.execute(f"PRAGMA max_page_count={self.max_pages}")

    def free_space(self) -> None:
        self.waits += 1
        self.max_pages = 100_000
        self.storage.backend.engine.dispose()


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[FullDisk]:
    disk = FullDisk(tmp_path)
    yield disk
    dispose(disk.storage)


def set_study_attribute(disk: FullDisk) -> None:
    disk.storage.set_study_user_attr(disk.study_id, "large", LARGE)


def set_trial_attribute(disk: FullDisk) -> None:
    disk.storage.set_trial_user_attr(disk.trial_id, "large", LARGE)


@pytest.mark.parametrize("write", [set_study_attribute, set_trial_attribute])
def test_a_write_waits_for_space_and_is_repeated(disk: FullDisk, write: Callable[[FullDisk], None]) -> None:
    disk.storage.backend.wait_for_space = disk.free_space
    write(disk)
    assert disk.waits == 1
    database = disk.storage.backend
    (trial,) = database.get_all_trials(disk.study_id)
    assert LARGE in (database.get_study_user_attrs(disk.study_id).get("large"), trial.user_attrs.get("large"))


@pytest.mark.parametrize("write", [set_study_attribute, set_trial_attribute])
def test_a_write_without_a_policy_raises_disk_full(disk: FullDisk, write: Callable[[FullDisk], None]) -> None:
    with pytest.raises(DiskFull):
        write(disk)
