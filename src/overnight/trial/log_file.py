"""What a trial's code logs through `self.logger`, in a folder of the trial: the trial writes, the supervisor reads.

The file `log.jsonl` has a header of fixed length and a JSON list in each line: a letter for the kind, then the content.
It is only appended to. A trial that resumes cuts it off where it was when the state was saved, and logs the rest again.
The header says how much belongs to a saved state. The reader takes no more of a trial that has not ended, so that
nothing is read that is logged a second time. Uses the standard library only.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import shutil
import time
import uuid
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

METRICS, FILE, PARAMS, TAGS = "m", "f", "p", "t"  # kinds of lines
_HEADER = "{:32} {:020d}\n"  # the id of the file's history, and the length of what is saved
HEADER_BYTES, _AT_LENGTH = 54, 33
_BUFFER_CHARS, _BUFFER_S = 1 << 16, 0.5
_MOST_CHARS = 1 << 26  # that wait for space on a full disk


@dataclass
class Amounts:
    """How much a trial has logged. length: bytes of log.jsonl; 0 if there is none. file_bytes: size of all files."""

    length: int = 0
    values: int = 0
    files: int = 0
    file_bytes: int = 0


class LogFile:
    """The writer. It creates nothing before the first line.

    Args:
        folder: of the trial; None to write nothing.
        saved: what `state` returned when the state was saved that the trial resumes from; None from the start.

    Attributes:
        amounts: what was logged. The trial goes on counting where it was when the state was saved.
    """

    def __init__(self, folder: Path | None, saved: dict[str, int] | None = None) -> None:
        self._folder = folder
        self.amounts = Amounts()
        if folder is not None and folder.exists():
            if saved is not None and _cut_off(folder / "log.jsonl", saved["length"]):
                self.amounts = Amounts(**saved)
            else:
                shutil.rmtree(folder)
        self._lines: list[str] = []
        self._chars, self._flushed_at = 0, time.monotonic()

    def append(self, line: str) -> None:
        """Append a line, a JSON list. It is written within half a second, if another one follows, or by `flush`."""
        self._lines.append(line)
        self._chars += len(line) + 1
        if self._chars > _BUFFER_CHARS or time.monotonic() - self._flushed_at > _BUFFER_S:
            self.flush()

    def add_file(self, name: str, content: bytes | Path) -> None:
        """Keep a file under a relative name, in place of an earlier one of that name."""
        if self._folder is not None:
            path = self._folder / "files" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if isinstance(content, Path):
                shutil.copyfile(content, path)
            else:
                path.write_bytes(content)
        self.append(json.dumps([FILE, name]))

    def flush(self) -> None:
        """Write the lines. On a full disk they stay for the next time."""
        self._flushed_at = time.monotonic()
        if not self._lines:
            return
        is_written = self._folder is None
        if self._folder is not None:
            with contextlib.suppress(OSError):
                is_written = self._write("".join(f"{line}\n" for line in self._lines).encode())
        if is_written or self._chars > _MOST_CHARS:
            self._lines, self._chars = [], 0

    def state(self) -> dict[str, int]:
        """Return what has been logged by now, for the trial's saved state."""
        self.flush()
        return asdict(self.amounts)

    def commit(self, state: dict[str, int] | None) -> None:
        """Let the reader take what was logged before `state`, which is in a saved state of the trial, if it has one."""
        if self._folder is not None and state is not None and state["length"]:
            with contextlib.suppress(OSError), open(self._folder / "log.jsonl", "r+b", buffering=0) as file:
                os.pwrite(file.fileno(), f"{state['length']:020d}".encode(), _AT_LENGTH)

    def _write(self, content: bytes) -> bool:
        """Append to the file, or leave it as it was and return False."""
        assert self._folder is not None
        length = self.amounts.length
        if not length:
            self._folder.mkdir(parents=True, exist_ok=True)
            content = _HEADER.format(uuid.uuid4().hex, 0).encode() + content
        with open(self._folder / "log.jsonl", "r+b" if length else "w+b", buffering=0) as file:
            file.seek(length)
            if file.write(content) < len(content):
                file.truncate(length)
                return False
        self.amounts.length = length + len(content)
        return True


def _cut_off(path: Path, length: int) -> bool:
    """Cut off the file of a trial that resumes after what was saved. Return False if it does not have that much."""
    if not path.exists() or not HEADER_BYTES <= length <= path.stat().st_size:
        return False
    with open(path, "r+b", buffering=0) as file:
        header = read_header(file)
        file.truncate(length)
        # Where more has been read, the reader must not take what follows for the rest of it.
        history = uuid.uuid4().hex if header is None or header[1] > length else header[0]
        os.pwrite(file.fileno(), _HEADER.format(history, length).encode(), 0)
    return True


def read_header(file: BinaryIO) -> tuple[str, int] | None:
    """Return the id of a file's history and the length of what is saved; None if it is no such file."""
    header = os.pread(file.fileno(), HEADER_BYTES, 0)
    try:
        return header[:32].decode(), int(header[33:])
    except ValueError:
        return None


def read_lines(file: BinaryIO, start: int, end: int, limit: int) -> Iterator[tuple[int, list[list[Any]]]]:
    """Yield the lines between two positions in groups of at most `limit`, each with the position after it.

    An incomplete last line is left out.
    """
    file.seek(start)
    while lines := list(itertools.islice(file, limit)):
        while lines and (not lines[-1].endswith(b"\n") or start + sum(map(len, lines)) > end):
            lines.pop()
        if not lines:
            return
        start += sum(map(len, lines))
        yield start, json.loads(b"[" + b",".join(lines) + b"]")
