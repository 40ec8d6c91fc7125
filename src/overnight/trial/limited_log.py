"""The log of a trial with limits on its size, which keep one trial from filling the disk and MLflow."""

from __future__ import annotations

import json
import math
import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from overnight.trial.log_file import METRICS, PARAMS, TAGS, LogFile

MOST_VALUES, MOST_FILES = 1_000_000, 2_000
MOST_FILE_BYTES, MOST_BYTES = 50_000_000, 500_000_000
_MOST_NOTES = 5
_RESERVED_TAGS = ("overnight.", "mlflow.")
_PARAM_CHARS = 6000  # MLflow's limit for one param


class LimitedLog:
    """Values, params, tags and files for the run of a trial. What exceeds a limit is left out, and a note says so.

    Args:
        folder, saved: see LogFile.

    Attributes:
        file: has the state that a resumed trial needs.
        notes: what was left out, for the page of the trial: kind -> text.
    """

    def __init__(self, folder: Path | None, saved: dict[str, int] | None) -> None:
        self.file = LogFile(folder, saved)
        self.notes: dict[str, str] = {}
        self._heads: dict[str, str] = {}  # name -> as JSON

    def add_values(self, metrics: Mapping[str, Any], step: int) -> None:
        amounts = self.file.amounts
        if amounts.values + len(metrics) > MOST_VALUES:
            self._note("values", f"logged more than {MOST_VALUES:,} values; the later ones are left out")
            return
        parts = []
        for name, value in metrics.items():
            number = float(value.item() if hasattr(value, "item") else value)
            if math.isfinite(number):  # MLflow's charts can't show others
                parts.append(f"{self._heads.get(name) or self._head(name)}:{number!r}")
        amounts.values += len(parts)
        if parts:
            self.file.append(f'["{METRICS}",{step},{round(time.time() * 1000)},{{{",".join(parts)}}}]')

    def add_params(self, params: Mapping[str, Any]) -> None:
        """Add parameters. The names of nested ones are joined by slashes."""
        texts = {name: str(value)[:_PARAM_CHARS] for name, value in _flat(params)}
        self.file.append(json.dumps([PARAMS, texts]))

    def add_tag(self, key: str, value: Any) -> None:
        if key.startswith(_RESERVED_TAGS):
            raise ValueError(f"set_tag: must not be a tag of overnight or MLflow, got {key!r}; choose another name")
        self.file.append(json.dumps([TAGS, {key: str(value)}]))

    def add_file(self, name: str, content: bytes | Path) -> None:
        """Add a file under a relative name, in place of an earlier one of that name."""
        name = _relative(name)
        size = content.stat().st_size if isinstance(content, Path) else len(content)
        amounts = self.file.amounts
        if size > MOST_FILE_BYTES:
            most = f"a file may have {MOST_FILE_BYTES / 1e6:.0f}"
            self._note("size", f"did not log {name}, which has {size / 1e6:.0f} MB; {most}")
        elif amounts.files >= MOST_FILES:
            self._note("files", f"logged more than {MOST_FILES:,} files; the later ones are left out")
        elif amounts.file_bytes + size > MOST_BYTES:
            self._note("bytes", f"logged more than {MOST_BYTES / 1e6:.0f} MB of files; the later ones are left out")
        else:
            try:
                self.file.add_file(name, content)
            except OSError as error:
                self._note("error", f"could not log {name}: {error.strerror}")
                return
            amounts.files += 1
            amounts.file_bytes += size

    def _head(self, name: str) -> str:
        self._heads[name] = json.dumps(str(name))
        return self._heads[name]

    def _note(self, kind: str, text: str) -> None:
        if len(self.notes) < _MOST_NOTES:
            self.notes.setdefault(kind, text)


def _flat(params: Mapping[Any, Any], prefix: str = "") -> list[tuple[str, Any]]:
    flat: list[tuple[str, Any]] = []
    for key, value in params.items():
        flat += _flat(value, f"{prefix}{key}/") if isinstance(value, Mapping) else [(f"{prefix}{key}", value)]
    return flat


def _relative(name: str) -> str:
    """Return a name of a file that MLflow and all file systems take, and that is below its folder."""
    parts = [re.sub(r"[^\w.\- ]", "_", part).strip(" .") for part in str(name).replace("\\", "/").split("/")]
    return "/".join(part[:120] for part in parts if part) or "file"
