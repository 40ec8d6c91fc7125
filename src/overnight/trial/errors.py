"""Errors that a process reports to a person, and how an error is told in one line."""

from __future__ import annotations


class Mistakes(ValueError):
    """What a person should put right, one line each."""

    def __init__(self, *problems: str) -> None:
        self.problems = problems
        super().__init__("\n".join(problems))


def in_short(error: BaseException) -> str:
    """An error in one line."""
    words = str(error).strip().splitlines()
    return f"{type(error).__name__}: {words[0]}" if words else type(error).__name__
