"""What was typed, found: the study or the trial that somebody means, and how it is said that there is none."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING, NoReturn

import click

if TYPE_CHECKING:
    from overnight.config.paths import StudyLocation
    from overnight.study.snapshot import StudyView

JSON = click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
MISTAKE = 2  # the exit code


def mistake(problems: Iterable[str]) -> NoReturn:
    for line in problems:
        click.echo(line, err=True)
    sys.exit(MISTAKE)


def look(arguments: tuple[str, ...]) -> tuple[StudyLocation, StudyView | None, list[str]]:
    """Where studies lie, the study that was named or else worked on last, and the names of the others."""
    from overnight.config.compose import study_location
    from overnight.study import snapshot

    named = [a for a in arguments if "=" not in a]
    if len(named) > 1:
        mistake([f"study: must be one name, got {', '.join(named)}"])
    location = study_location(a for a in arguments if "=" in a)
    view, names = snapshot.view(location, named[0] if named else None)
    if named and view is None:
        mistake(
            [
                f"study: {named[0]} is not in {location.storage_description}; there "
                + (f"are {', '.join(names)}" if names else "is none yet")
            ]
        )
    return location, view, [] if named or view is None else [n for n in names if n != view.name]


def refer(location: StudyLocation, ref: str) -> tuple[StudyView, int | None]:
    """The study that a STUDY or STUDY/NUMBER speaks of, and the trial's number. Raises ConfigError for any other."""
    from overnight.config.problems import ConfigError
    from overnight.study import snapshot

    name, slash, number = ref.partition("/")
    number = number.removeprefix("trial-")
    if slash and not number.isdigit():
        raise ConfigError([f"{ref}: must be STUDY or STUDY/NUMBER, e.g. digits-mlp/7"])
    view, names = snapshot.view(location, name)
    if view is None:
        raise ConfigError(
            [
                f"{ref}: {name} is not in {location.storage_description}; there "
                + (f"are {', '.join(names)}" if names else "is none")
            ]
        )
    return view, int(number) if slash else None


def command(*words: str, location: StudyLocation) -> str:
    """An `overnight` line that speaks of the same place."""
    return shlex.join(["overnight", *words, *location.overrides])
