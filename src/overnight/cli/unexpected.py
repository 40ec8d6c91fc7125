"""Errors that no check foresaw: a fault of overnight, of a library or of a user's code that was imported."""

from __future__ import annotations

import os
import tempfile
import traceback

from overnight.config import credentials
from overnight.system.errors import one_line

# Environment variable: print tracebacks on the terminal.
TRACEBACK = "OVERNIGHT_TRACEBACK"


def report(error: BaseException) -> str:
    """Describe an error in one sentence. Its traceback goes to a new file, or is part of the text if that is wanted."""
    text = credentials.redact("".join(traceback.format_exception(error)))
    sentence = f"unexpected error: {one_line(error)}{_location(error)}"
    if os.environ.get(TRACEBACK, "0") not in ("", "0"):
        return f"{text}{sentence}"
    try:
        descriptor, path = tempfile.mkstemp(prefix="overnight-error-", suffix=".txt", text=True)
        with open(descriptor, "w", encoding="utf-8", errors="backslashreplace") as file:
            file.write(text)
    except OSError:
        return f"{sentence}; {TRACEBACK}=1 shows the traceback"
    return f"{sentence}; the traceback is in {path}, and {TRACEBACK}=1 shows it here"


def _location(error: BaseException) -> str:
    """Where an error was raised: " (module.py:12, in function)"."""
    frames = traceback.extract_tb(error.__traceback__)
    return f" ({frames[-1].filename}:{frames[-1].lineno}, in {frames[-1].name})" if frames else ""
