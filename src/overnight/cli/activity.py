"""The line on a terminal that says what a command is doing, until the command prints something else.

It goes to standard error, and only to a terminal. It imports nothing slow, because it is the first thing on the screen.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from typing import Any, TextIO

_ERASE = "\r\x1b[2K"


class ActivityLine:
    """A line on a terminal. Where the stream is no terminal, nothing is shown."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._is_shown = False

    def show(self, text: str) -> None:
        """Replace the line. An empty text erases it."""
        if not text:
            self.erase()
        elif self._stream.isatty():
            width = _width(self._stream)
            self._write(_ERASE + (text if len(text) < width else text[: width - 4] + "..."))
            self._is_shown = True

    def erase(self) -> None:
        if self._is_shown:
            self._is_shown = False
            self._write(_ERASE)

    def _write(self, text: str) -> None:
        with contextlib.suppress(OSError, ValueError):  # the terminal was closed
            self._stream.write(text)
            self._stream.flush()


class _ErasesFirst:
    """A text stream that erases the line before it writes."""

    def __init__(self, stream: TextIO, line: ActivityLine) -> None:
        self._stream, self._line = stream, line

    def write(self, text: str) -> int:
        if text:
            self._line.erase()
        return self._stream.write(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


_line: ActivityLine | None = None


@contextlib.contextmanager
def on_terminal() -> Iterator[None]:
    """Let `show` write to the terminal within this block. What else is printed erases the line first."""
    global _line
    if not sys.stderr.isatty() or os.environ.get("TERM") == "dumb":
        yield
        return
    before, _line = (sys.stdout, sys.stderr), ActivityLine(sys.stderr)
    sys.stdout, sys.stderr = _ErasesFirst(sys.stdout, _line), _ErasesFirst(sys.stderr, _line)
    try:
        yield
    finally:
        _line.erase()
        _line = None
        sys.stdout, sys.stderr = before


def show(text: str) -> None:
    """Say what the command is doing, e.g. "importing ...". An empty text erases the line."""
    if _line is not None:
        _line.show(text)


def _width(stream: TextIO) -> int:
    try:
        return os.get_terminal_size(stream.fileno()).columns or 80
    except (OSError, ValueError):
        return 80
