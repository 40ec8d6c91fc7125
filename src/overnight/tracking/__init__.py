"""MLflow mirrors the ledger: the only room that imports it."""

from overnight.tracking.model import write_model
from overnight.tracking.pages import page_of, ui_command
from overnight.tracking.store import client, describe_error, exists, find_parent, get_ready
from overnight.tracking.summary import Answer, publish, runs_of
from overnight.tracking.sync import MlflowSync

__all__ = [
    "Answer",
    "MlflowSync",
    "client",
    "describe_error",
    "exists",
    "find_parent",
    "get_ready",
    "page_of",
    "publish",
    "runs_of",
    "ui_command",
    "write_model",
]  # fmt: skip
