"""A shared database that is unreachable for a while."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from optuna.exceptions import StorageInternalError
from sqlalchemy.exc import DBAPIError

from overnight.config import credentials
from overnight.study.storage import postgres


class Unreachable(RuntimeError):
    """The database of the study storage is unreachable for now. Nothing is lost; the operation can be repeated."""


def unreachable_message(error: BaseException) -> str:
    return f"the database of the study storage can't be reached or written: {_root_cause(error)}"


@contextlib.contextmanager
def raising_unreachable() -> Iterator[None]:
    """Raise Unreachable where the block fails because the database is unreachable."""
    try:
        yield
    except (DBAPIError, StorageInternalError) as error:
        if not postgres.is_unreachable(error):
            raise
        raise Unreachable(unreachable_message(error)) from error


def _root_cause(error: BaseException) -> str:
    while error.__cause__ is not None:
        error = error.__cause__
    text = str(error).strip()
    return credentials.redact(text.splitlines()[0]) if text else type(error).__name__
