"""The collector of mistakes, so that one run reports all of them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

_NO_VALUE = object()


class ConfigError(ValueError):
    """What is wrong with a request. `problems` holds every mistake, one line each."""

    def __init__(self, problems: Iterable[str]) -> None:
        self.problems = list(dict.fromkeys(problems))
        super().__init__("\n".join(self.problems))


class Problems(list[str]):
    """Mistakes in the order in which they are found, one line each.

    A check adds to the list that it is given and goes on. The caller raises once, when everything is checked:

        problems = Problems()
        problems.add("study.trials", "must be at least 1", -1)
        problems.raise_if_any()
    """

    def add(self, key: str, rule: str = "", value: Any = _NO_VALUE, remedy: str = "") -> None:
        """Add the line `key: rule, got value; remedy`.

        Args:
            key: The configuration key or environment variable; without a rule, the whole line.
            value: What was given, shown as its repr. Leave it out where it is a secret, or where the rule shows it.
            remedy: What to do about it.
        """
        got = f", got {value!r}" if value is not _NO_VALUE else ""
        self.append((f"{key}: {rule}" if rule else key) + got + (f"; {remedy}" if remedy else ""))

    def raise_if_any(self) -> None:
        """Raise ConfigError with all lines, if there are any."""
        if self:
            raise ConfigError(self)
