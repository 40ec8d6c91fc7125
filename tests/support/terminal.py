"""A small terminal: what a person sees after a program has written text and the control codes that ours write."""

from __future__ import annotations

import io
import os
import pty
import re
import subprocess
from typing import Any

_CODE = re.compile(r"\x1b\[([0-9;?]*)([A-Za-z])")


class Terminal:
    """A screen of `columns`, as high as what was written to it. A line that is too long wraps onto the next one."""

    def __init__(self, columns: int = 80) -> None:
        self.columns = columns
        self._lines = [""]
        self._row = self._column = 0

    def write(self, text: str) -> None:
        while text:
            code = _CODE.match(text)
            if code is not None:
                self._obey(code[1], code[2])
                text = text[code.end() :]
            else:
                self._put(text[0])
                text = text[1:]

    @property
    def lines(self) -> list[str]:
        """The lines without trailing blanks, and without empty lines at the end."""
        lines = [line.rstrip() for line in self._lines]
        while lines and not lines[-1]:
            lines.pop()
        return lines

    def _put(self, character: str) -> None:
        if character == "\r":
            self._column = 0
        elif character == "\n":
            self._row, self._column = self._row + 1, 0
        else:
            if self._column == self.columns:
                self._row, self._column = self._row + 1, 0
            self._extend()
            line = self._lines[self._row].ljust(self._column)
            self._lines[self._row] = line[: self._column] + character + line[self._column + 1 :]
            self._column += 1
        self._extend()

    def _obey(self, parameters: str, command: str) -> None:
        if command == "A":
            self._row = max(self._row - int(parameters or 1), 0)
        elif command == "K":
            line = self._lines[self._row]
            self._lines[self._row] = "" if parameters == "2" else line[: self._column]
        else:
            assert command in "mhl", f"the terminal knows no {command}"  # colours, and whether the cursor is shown

    def _extend(self) -> None:
        while self._row >= len(self._lines):
            self._lines.append("")


class TerminalFile(io.StringIO):
    """A file that says it is a terminal, and keeps what a person would see."""

    def __init__(self, columns: int = 80) -> None:
        super().__init__()
        self.terminal = Terminal(columns)

    def write(self, text: str) -> int:
        if not isinstance(text, str):
            raise TypeError("a text file takes no bytes")
        self.terminal.write(text)
        return len(text)

    def isatty(self) -> bool:
        return True


def run_in_terminal(command: list[str], **options: Any) -> tuple[str, int]:
    """Run a command with a terminal of 80 columns as its input and output. Returns what it wrote, and its exit code."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, **options)
    os.close(theirs)
    return read_to_end(ours), process.wait()


def read_to_end(terminal: int) -> str:
    """Read what is written to a terminal, until nobody writes to it any more, and close it."""
    seen = b""
    while True:
        try:
            data = os.read(terminal, 1 << 16)
        except OSError:
            break
        if not data:
            break
        seen += data
    os.close(terminal)
    return seen.decode(errors="replace").replace("\r\n", "\n")
