"""Command lines that a user copies from the screen and pastes into a shell."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable

_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


def join(words: Iterable[str]) -> str:
    r"""Quote words for a shell, on one line. Terminals and tables change control characters, so these are escaped.

    A word with a tab is written $'a\tb', which bash, zsh and ksh read.
    """
    return " ".join(_escaped(word) if _CONTROL.search(word) else shlex.quote(word) for word in words)


def _escaped(word: str) -> str:
    text = word.replace("\\", "\\\\").replace("'", "\\'").replace("\t", "\\t").replace("\n", "\\n")
    return "$'" + _CONTROL.sub(lambda match: f"\\{ord(match[0]):03o}", text) + "'"
