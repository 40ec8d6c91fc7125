"""A shared database that is unreachable for a while."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar, cast

from optuna.exceptions import StorageInternalError
from optuna.storages import RDBStorage
from optuna.study import StudyDirection
from sqlalchemy.exc import DBAPIError

from overnight.study.storage import postgres
from overnight.study.storage.optuna_tables import Row, split_trial_id
from overnight.system.errors import one_line

T = TypeVar("T")
_LAST_ROW_ID = 2**31 - 1  # of an INTEGER in PostgreSQL


class Unreachable(RuntimeError):
    """The database of the study storage is unreachable for now. Nothing is lost; the operation can be repeated."""


def unreachable_message(error: BaseException) -> str:
    return f"the database of the study storage can't be reached or written: {one_line(error, root_cause=True)}"


@contextlib.contextmanager
def raising_unreachable() -> Iterator[None]:
    """Raise Unreachable where the block fails because the database is unreachable."""
    try:
        yield
    except (DBAPIError, StorageInternalError) as error:
        if not postgres.is_unreachable(error):
            raise
        raise Unreachable(unreachable_message(error)) from error


class OutageGuard:
    """Lets a process go on while its shared database is unreachable.

    It spaces out the attempts, answers questions about studies from what was read last, and keeps the attributes of
    studies until they can be written. After a commit whose result did not arrive it finds out what was written.

    Attributes:
        outage: why the database is unreachable, or None.
    """

    def __init__(self, database: RDBStorage, retry_after_s: float) -> None:
        self.outage: str | None = None
        self._database, self._retry_after_s = database, retry_after_s
        self._retry_at = 0.0  # by time.monotonic()
        self._uncommitted: set[int] = set()  # ids of trials that a transaction writes, until its commit is confirmed
        self._unwritten: dict[tuple[int, str], Any] = {}  # study id, name of an attribute -> value
        self._last_read: dict[tuple[int, str], Any] = {}  # study id, what was read of it -> value

    @contextlib.contextmanager
    def attempt(self, *, at_once: bool = False) -> Iterator[None]:
        """Run a block that needs the database.

        Args:
            at_once: also run it before the next attempt after a failed one is due.

        Raises:
            Unreachable: the database is unreachable, or was so a moment ago.
        """
        if not at_once and time.monotonic() < self._retry_at:
            raise Unreachable(self.outage)
        try:
            yield
        except (DBAPIError, StorageInternalError) as error:
            if not postgres.is_unreachable(error):
                raise
            self.outage = unreachable_message(error)
            self._retry_at = time.monotonic() + self._retry_after_s
            raise Unreachable(self.outage) from error

    # Trials

    def begin_commit(self, unwritten: Mapping[int, Row]) -> None:
        """Prepare the commit of trials: id -> row. Read what the last one has written, if its result did not arrive."""
        for trial_id in self._uncommitted & unwritten.keys():
            row = unwritten[trial_id]
            (row.written,) = self._database._get_trials(split_trial_id(trial_id)[0], None, {row.row_id}, _LAST_ROW_ID)
        self._uncommitted = set(unwritten)

    def confirm_commit(self) -> None:
        self.outage = None
        self._uncommitted.clear()

    # Studies

    @property
    def unwritten_attributes(self) -> int:
        """The number of attributes of studies that are not written yet."""
        return len(self._unwritten)

    def set_attribute(self, study_id: int, key: str, value: Any) -> None:
        """Set a user attribute of a study, now or when the database is reachable."""
        self._unwritten[study_id, key] = value
        self.write_attributes()

    def write_attributes(self) -> None:
        for (study_id, key), value in list(self._unwritten.items()):
            try:
                with self.attempt():
                    self._database.set_study_user_attr(study_id, key, value)
            except Unreachable:
                return
            except KeyError:
                del self._unwritten[study_id, key]
                raise
            del self._unwritten[study_id, key]

    def user_attributes(self, study_id: int) -> dict[str, Any]:
        unwritten = {key: value for (study, key), value in self._unwritten.items() if study == study_id}
        return {**self._read(study_id, "user attributes", self._database.get_study_user_attrs), **unwritten}

    def system_attributes(self, study_id: int) -> dict[str, Any]:
        return dict(self._read(study_id, "system attributes", self._database.get_study_system_attrs))

    def directions(self, study_id: int) -> list[StudyDirection]:
        return self._read_once(study_id, "directions", self._database.get_study_directions)

    def name(self, study_id: int) -> str:
        return self._read_once(study_id, "name", self._database.get_study_name_from_id)

    def forget_study(self, study_id: int) -> None:
        for values in (self._unwritten, self._last_read):
            for key in [key for key in values if key[0] == study_id]:
                del values[key]

    def _read(self, study_id: int, what: str, read: Callable[[int], T]) -> T:
        """Read something of a study; without the database as it was read last. Raises Unreachable if it never was."""
        was_read = (study_id, what) in self._last_read
        try:
            with self.attempt(at_once=not was_read):
                self._last_read[study_id, what] = read(study_id)
        except Unreachable:
            if not was_read:
                raise
        return cast(T, self._last_read[study_id, what])

    def _read_once(self, study_id: int, what: str, read: Callable[[int], T]) -> T:
        """Read something that never changes. Raises Unreachable."""
        if (study_id, what) not in self._last_read:
            with raising_unreachable():
                self._last_read[study_id, what] = read(study_id)
        return cast(T, self._last_read[study_id, what])
