"""The collector of mistakes, so that one run reports all of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, overload

_NO_VALUE = object()


class ConfigError(ValueError):
    """What is wrong with a request. `problems` holds every mistake, one line each."""

    def __init__(self, problems: Iterable[str]) -> None:
        self.problems = list(dict.fromkeys(problems))
        super().__init__("\n".join(self.problems))


class Problems(Sequence[str]):
    """Mistakes in the order in which they are found, one line each.

    A check adds to the collector that it is given and goes on. The caller raises once, when everything is checked:

        problems = Problems()
        problems.add("study.trials", "must be at least 1", -1)
        problems.raise_if_any()
    """

    def __init__(self, lines: Iterable[str] = ()) -> None:
        self._lines = list(lines)

    def add(self, key: str, rule: str = "", value: Any = _NO_VALUE, remedy: str = "") -> None:
        """Add the line `key: rule, got value; remedy`.

        Args:
            key: The configuration key or environment variable; without a rule, the whole line.
            value: What was given, shown as its repr. Leave it out where it is a secret, or where the rule shows it.
            remedy: What to do about it.
        """
        got = f", got {value!r}" if value is not _NO_VALUE else ""
        self._lines.append((f"{key}: {rule}" if rule else key) + got + (f"; {remedy}" if remedy else ""))

    def merge(self, lines: Iterable[str]) -> None:
        """Add the lines of another collector, or any others."""
        self._lines.extend(lines)

    def withdraw(self, line: str) -> None:
        """Take a line back that a later check has found to be no mistake."""
        if line in self._lines:
            self._lines.remove(line)

    def raise_if_any(self) -> None:
        """Raise ConfigError with all lines, if there are any."""
        if self._lines:
            raise ConfigError(self._lines)

    def __len__(self) -> int:
        return len(self._lines)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        return self._lines[index]
