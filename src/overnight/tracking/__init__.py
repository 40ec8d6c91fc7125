"""MLflow mirrors the ledger: the only room that imports it."""

from overnight.tracking.model import write_model
from overnight.tracking.pages import page_of, ui_command
from overnight.tracking.store import client, exists, find_parent, get_ready, in_short
from overnight.tracking.summary import Answer, publish, runs_of
from overnight.tracking.sync import MlflowSync

__all__ = [
    "Answer",
    "MlflowSync",
    "client",
    "exists",
    "find_parent",
    "get_ready",
    "in_short",
    "page_of",
    "publish",
    "runs_of",
    "ui_command",
    "write_model",
]  # fmt: skip
