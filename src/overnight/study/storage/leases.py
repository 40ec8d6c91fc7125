"""Leases and members: which process may write which trial of a shared study.

Both are kept in the database, beside Optuna's tables. The owner of a trial holds its lease. A lease is renewed with
every write and ends by the database's clock, so the clocks of the machines need not agree. Its fencing token grows each
time another process takes the lease, which tells a late owner that it has lost the trial. See "fencing tokens" in
Kleppmann, Designing Data-Intensive Applications, chapter 8.

While the database is down no owner can renew its leases. Therefore only a member that has renewed its own membership
without a break for a whole lease may take a lease that has ended: the owner could have renewed it all that time. This
rule asks the server neither for its start time, which precedes its recovery, nor for rights that users seldom have.
"""

from __future__ import annotations

import os
import socket
import time
import uuid
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import sqlalchemy
from sqlalchemy import BigInteger, Column, Connection, DateTime, Integer, MetaData, String, Table, func, text

_METADATA = MetaData()
# `owner` is null once its owner has released the trial: all of it is written, in MLflow too.
_LEASES = Table(
    "overnight_leases",
    _METADATA,
    Column("study_id", Integer, primary_key=True),
    Column("number", Integer, primary_key=True),
    Column("owner", String(80)),
    Column("fencing_token", BigInteger, nullable=False),
    Column("expires_at", DateTime(timezone=True), nullable=False),
)
# `unbroken_since`: the membership was renewed since then, with gaps of at most half a lease.
_MEMBERS = Table(
    "overnight_members",
    _METADATA,
    Column("study_id", Integer, primary_key=True),
    Column("owner", String(80), primary_key=True),
    Column("host", String(255), nullable=False),
    Column("pid", Integer, nullable=False),
    Column("since", DateTime(timezone=True), nullable=False),
    Column("unbroken_since", DateTime(timezone=True), nullable=False),
    Column("expires_at", DateTime(timezone=True), nullable=False),
)
_STUDIES = sqlalchemy.table("studies", sqlalchemy.column("study_id"), sqlalchemy.column("study_name"))  # Optuna's
_LOCK_SPACE = 0x6F766E74  # the first key of every advisory lock, so that other programs' locks do not clash
_LEASE = "make_interval(secs => :lease_s)"
_IS_OWNED = "study_id = :study_id AND overnight_leases.owner IS NOT NULL"
# A lease has ended, and :owner has been a member without a break for a whole lease.
_ENDED = (
    "expires_at < clock_timestamp() AND EXISTS (SELECT 1 FROM overnight_members AS member WHERE "
    f"member.owner = :owner AND member.study_id = :study_id AND member.unbroken_since + {_LEASE} < clock_timestamp())"
)


@dataclass(frozen=True)
class Member:
    """A process that works on a shared study.

    Attributes:
        owner: its name, as leases have it.
        since: when it joined, in seconds since 1970 by the database's clock.
    """

    owner: str
    host: str
    pid: int
    since: float


_process: dict[str, str] = {}


def start_as_new_owner() -> None:
    """Give this process a new name. What it has not released under its earlier name can be adopted, by itself too."""
    _process["owner"] = f"{socket.gethostname()[:50]}-{os.getpid()}-{uuid.uuid4().hex[:8]}"


def owner_name() -> str:
    """Return the name of this process in leases and among members."""
    if not _process:
        start_as_new_owner()
    return _process["owner"]


def boot_time_s() -> float:
    """Return the seconds of a clock that also advances while the machine is suspended, as the database's clock does."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


def create_tables(connection: Connection) -> None:
    """Create the tables that are missing."""
    _METADATA.create_all(connection)


def lock_transaction(connection: Connection, name: str) -> None:
    """Wait for a lock, one for all processes that share the database, and hold it until the transaction ends."""
    connection.execute(text("SELECT pg_advisory_xact_lock(:space, :key)"), _lock_key(name))


def lock_session(connection: Connection, name: str, while_waiting: Callable[[], None]) -> None:
    """Wait for the same lock, and hold it until `unlock_session` or the end of the connection.

    Args:
        while_waiting: called between two attempts. The lock is polled, so that signals are handled meanwhile.
    """
    pause_s = 0.02
    statement = text("SELECT pg_try_advisory_lock(:space, :key)")
    while not connection.execute(statement, _lock_key(name)).scalar():
        while_waiting()
        time.sleep(pause_s)
        pause_s = min(2 * pause_s, 0.5)


def unlock_session(connection: Connection, name: str) -> None:
    connection.execute(text("SELECT pg_advisory_unlock(:space, :key)"), _lock_key(name))


def _lock_key(name: str) -> dict[str, int]:
    crc = zlib.crc32(name.encode())
    return {"space": _LOCK_SPACE, "key": int.from_bytes(crc.to_bytes(4, "big"), "big", signed=True)}


# Leases ---------------------------------------------------------------------------------------------------------------


def take(connection: Connection, study_id: int, number: int, owner: str, lease_s: float) -> int | None:
    """Take the lease of a trial if it is free or has ended; return its new fencing token, or None."""
    statement = text(
        "INSERT INTO overnight_leases AS held (study_id, number, owner, fencing_token, expires_at) "
        f"VALUES (:study_id, :number, :owner, 1, clock_timestamp() + {_LEASE}) "
        "ON CONFLICT (study_id, number) DO UPDATE "
        "SET owner = excluded.owner, fencing_token = held.fencing_token + 1, expires_at = excluded.expires_at "
        f"WHERE held.owner IS NULL OR (held.{_ENDED}) RETURNING fencing_token"
    )
    parameters = {"study_id": study_id, "number": number, "owner": owner, "lease_s": lease_s}
    token = connection.execute(statement, parameters).scalar()
    return int(token) if token is not None else None


def unavailable(connection: Connection, study_id: int, owner: str, lease_s: float) -> set[int]:
    """Return the numbers of the trials whose leases `owner` can't take."""
    return _held_where(f"NOT ({_ENDED})", connection, study_id, owner, lease_s)


def owned(connection: Connection, study_id: int) -> set[int]:
    """Return the numbers of the trials that any process has claimed and not released."""
    statement = text(f"SELECT number FROM overnight_leases WHERE {_IS_OWNED}")
    return set(connection.execute(statement, {"study_id": study_id}).scalars())


def abandoned(connection: Connection, study_id: int, owner: str, lease_s: float) -> set[int]:
    """Return the numbers of the trials that were never released, and whose leases `owner` can take."""
    return _held_where(_ENDED, connection, study_id, owner, lease_s)


def _held_where(condition: str, connection: Connection, study_id: int, owner: str, lease_s: float) -> set[int]:
    statement = text(f"SELECT number FROM overnight_leases WHERE {_IS_OWNED} AND {condition}")
    parameters = {"study_id": study_id, "owner": owner, "lease_s": lease_s}
    return set(connection.execute(statement, parameters).scalars())


def held(connection: Connection, owner: str) -> dict[tuple[int, int], int]:
    """Return (study id, trial number) -> fencing token of all leases of an owner, and lock them for the transaction."""
    statement = sqlalchemy.select(_LEASES.c.study_id, _LEASES.c.number, _LEASES.c.fencing_token)
    rows = connection.execute(statement.where(_LEASES.c.owner == owner).with_for_update())
    return {(row.study_id, row.number): row.fencing_token for row in rows}


def renew(connection: Connection, owner: str, lease_s: float) -> None:
    """Renew all leases and memberships of an owner for `lease_s` seconds from now."""
    parameters = {"owner": owner, "lease_s": lease_s}
    renewed = f"expires_at = clock_timestamp() + {_LEASE}"
    unbroken = f"CASE WHEN expires_at - {_LEASE} / 2 < clock_timestamp() THEN clock_timestamp() ELSE unbroken_since END"
    connection.execute(text(f"UPDATE overnight_leases SET {renewed} WHERE owner = :owner"), parameters)
    connection.execute(
        text(f"UPDATE overnight_members SET {renewed}, unbroken_since = {unbroken} WHERE owner = :owner"), parameters
    )


def release(connection: Connection, owner: str, trials: Iterable[tuple[int, int]]) -> None:
    """Free the leases of an owner on some trials: pairs of study id and number."""
    for study_id, number in trials:
        is_own = (_LEASES.c.study_id == study_id) & (_LEASES.c.number == number) & (_LEASES.c.owner == owner)
        connection.execute(_LEASES.update().where(is_own).values(owner=None))


# Members --------------------------------------------------------------------------------------------------------------


def join(connection: Connection, study_id: int, owner: str, lease_s: float) -> None:
    """Add this process to the members of a study."""
    statement = text(
        "INSERT INTO overnight_members (study_id, owner, host, pid, since, unbroken_since, expires_at) VALUES "
        "(:study_id, :owner, :host, :pid, clock_timestamp(), clock_timestamp(), "
        f"clock_timestamp() + {_LEASE}) ON CONFLICT DO NOTHING"
    )
    process = {"host": socket.gethostname(), "pid": os.getpid()}
    connection.execute(statement, {"study_id": study_id, "owner": owner, "lease_s": lease_s, **process})


def leave(connection: Connection, study_id: int, owner: str) -> None:
    """Remove a process from the members of a study."""
    connection.execute(_MEMBERS.delete().where((_MEMBERS.c.study_id == study_id) & (_MEMBERS.c.owner == owner)))


def members(connection: Connection, study: int | str) -> list[Member]:
    """Return the members of a study, the earliest first.

    Args:
        study: the id of a study, or its name, which includes the studies that it was extended to.
    """
    if isinstance(study, int):
        of_study = _MEMBERS.c.study_id == study
    else:
        names = _STUDIES.c.study_name
        is_named = (names == study) | names.startswith(f"{study}~", autoescape=True)
        of_study = _MEMBERS.c.study_id.in_(sqlalchemy.select(_STUDIES.c.study_id).where(is_named))
    is_alive = _MEMBERS.c.expires_at > func.clock_timestamp()
    rows = connection.execute(sqlalchemy.select(_MEMBERS).where(of_study & is_alive).order_by(_MEMBERS.c.since))
    return [Member(row.owner, row.host, row.pid, row.since.timestamp()) for row in rows]


def peers(connection: Connection, study_id: int, owner: str) -> tuple[dict[str, float], set[str]]:
    """Return the peers of a member.

    Returns:
        owner -> end of its membership, in seconds since 1970, of the other members; the other owners of trials.
    """
    others = (_MEMBERS.c.study_id == study_id) & (_MEMBERS.c.owner != owner)
    is_alive = _MEMBERS.c.expires_at > func.clock_timestamp()
    alive = connection.execute(sqlalchemy.select(_MEMBERS.c.owner, _MEMBERS.c.expires_at).where(others & is_alive))
    is_held = (_LEASES.c.study_id == study_id) & _LEASES.c.owner.is_not(None) & (_LEASES.c.owner != owner)
    owners = connection.execute(sqlalchemy.select(_LEASES.c.owner).where(is_held).distinct())
    return {row.owner: row.expires_at.timestamp() for row in alive}, set(owners.scalars())


def forget(connection: Connection, study_id: int) -> None:
    """Delete the leases and members of a study."""
    for table in (_LEASES, _MEMBERS):
        connection.execute(table.delete().where(table.c.study_id == study_id))
