"""The browser that the tests drive, and screenshots of its pages."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
QUIET = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
# Closed on the first visit by a user: tours, and the assistant's panel, which covers a quarter of the page.
SEEN = {
    "mlflow.assistant.fab.autoOpenedOnFirstLoad_v1": True,
    "mlflow.assistant.panelOpen_v1": False,
    "mlflow.detectIssues.guidanceShown_v1": True,
}
PATIENCE_MS = 60_000
# Folder for screenshots, if they are wanted: OVERNIGHT_SHOTS=docs/pictures make browser
SHOTS = os.environ.get("OVERNIGHT_SHOTS")

Tab = Callable[..., Any]


def shoot(page: Any, name: str, settle_ms: int = 2500, full: bool = False) -> None:
    if SHOTS:
        page.wait_for_timeout(settle_ms)
        Path(SHOTS).mkdir(parents=True, exist_ok=True)
        page.screenshot(path=f"{SHOTS}/{name}.png", full_page=full)
