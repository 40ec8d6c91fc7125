"""A shared database that is unreachable for a while."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from optuna.exceptions import StorageInternalError
from sqlalchemy.exc import DBAPIError

from overnight.study.storage import postgres
from overnight.system.errors import one_line


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
