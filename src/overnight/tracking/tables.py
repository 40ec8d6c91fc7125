"""Creates and updates the tables of MLflow's server. The caller holds the lock of the database."""

from __future__ import annotations

import logging

import sqlalchemy

from overnight.tracking.environment import set_quiet


def make_backend(url: str) -> None:
    """Create or update the tables of the tracking store."""
    _quiet_logging()
    from mlflow.store.db import utils

    engine = sqlalchemy.create_engine(url)
    try:
        if utils._all_tables_exist(engine):
            utils._upgrade_db(engine)
        else:
            utils._initialize_tables(engine)
    finally:
        engine.dispose()


def make_logins(url: str) -> None:
    """Create or update the tables of users and permissions."""
    _quiet_logging()
    from mlflow.server.auth.db import utils

    engine = sqlalchemy.create_engine(url)
    try:
        utils.migrate(engine, "head")
    finally:
        engine.dispose()


def _quiet_logging() -> None:
    set_quiet()
    for name in ("alembic", "mlflow"):
        logging.getLogger(name).setLevel(logging.WARNING)
