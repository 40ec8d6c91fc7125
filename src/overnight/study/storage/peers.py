"""What a process asks about the others that share its database, and the locks by which they take turns.

Each call has a connection of its own, so that any thread may make it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

from sqlalchemy import Engine
from sqlalchemy.exc import DBAPIError

from overnight.study.storage import leases
from overnight.study.storage.outage import raising_unreachable


def count_peers(engine: Engine, study_id: int, owner: str) -> int:
    """Return the number of other members of a study. Raises Unreachable."""
    with raising_unreachable(), engine.connect() as connection:
        return sum(member.owner != owner for member in leases.members(connection, study_id))


def may_have_silent_peers(engine: Engine, study_id: int, owner: str, first_seen: dict[str, float]) -> bool:
    """Whether a peer may be dead, or has left trials that this process can't adopt yet. Raises Unreachable.

    Args:
        first_seen: peer -> end of its membership when it was first seen. Empty at first; filled by the call.
    """
    with raising_unreachable(), engine.connect() as connection:
        alive, owners = leases.peers(connection, study_id, owner)
    silent = [peer for peer, until in alive.items() if first_seen.setdefault(peer, until) == until]
    return bool(silent or owners - alive.keys())


@contextlib.contextmanager
def locked(engine: Engine, name: str, while_waiting: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Run a block that one process at a time runs, of all that share the database.

    Args:
        name: what the lock protects.
        while_waiting: called now and then until the lock is free.

    Raises:
        Unreachable: the database is unreachable.
    """
    with raising_unreachable():
        connection = engine.connect().execution_options(isolation_level="AUTOCOMMIT")
    with connection:
        with raising_unreachable():
            leases.lock_session(connection, name, while_waiting)
        try:
            yield
        finally:
            with contextlib.suppress(DBAPIError):  # the lock ends with its connection
                leases.unlock_session(connection, name)
