"""The databases of MLflow's server: its tables made, or brought up to date, by whoever is alone at it."""

from __future__ import annotations

import logging

import sqlalchemy

from overnight.tracking.store import set_quiet_environment


def make_backend(url: str) -> None:
    """The runs, and all else that the server holds beside who may log in."""
    _hush()
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
    """Who may log in, and what each may see."""
    _hush()
    from mlflow.server.auth.db import utils

    engine = sqlalchemy.create_engine(url)
    try:
        utils.migrate(engine, "head")
    finally:
        engine.dispose()


def _hush() -> None:
    set_quiet_environment()
    for name in ("alembic", "mlflow"):
        logging.getLogger(name).setLevel(logging.WARNING)
