"""A supervisor that serves whatever studies a shared ledger holds, until it is told to stop."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import click
from optuna.exceptions import StorageInternalError

from overnight import api, settings, views
from overnight.settings import ConfigError, Place
from overnight.storage import Unreachable

_LOOK_EVERY_S = 2.0  # for a study to serve
_SHARED = {"storage": "postgres", "tracking": "server"}


def serve(names: Sequence[str], overrides: Sequence[str], *, until_done: bool = False) -> int:
    """Serve the named studies, or every one that is open, one after another in the order of their launches.

    Args:
        overrides: where the stores are, `home=...`, and `slots=...` of this machine; storage=postgres and
            tracking=server go without saying.
        until_done: leave once none of them is open.

    Returns the exit code: 0, or 1 where a study failed, and 128 + the signal that ended it.
    """
    place, slots = _whereabouts(overrides)
    failed, idle = False, False
    with _leaving():
        while True:
            try:
                name = next((n for n in views.wanted(place) if not names or n in names), None)
                if name is not None:
                    idle = False
                    result = api.serve(place, name, slots, say=click.echo)
                    click.echo(f"{name}: {_ended(result)}")
                    failed = failed or result.why == "failures" or result.all_failed
                    if result.signal is not None:
                        return 128 + result.signal
                    continue
                if until_done:
                    return int(failed)
                if not idle:
                    click.echo("nothing to do; waiting for a study to be launched")
                idle = True
            except (Unreachable, StorageInternalError) as error:
                click.echo(f"trying on: {error}", err=True)
            time.sleep(_LOOK_EVERY_S)


def _whereabouts(overrides: Sequence[str]) -> tuple[Place, int | None]:
    """Where the ledger is, and how many slots this machine gives. Raises ConfigError."""
    said = {text.partition("=")[0].partition(".")[0] for text in overrides}
    defaults = [f"{group}={option}" for group, option in _SHARED.items() if group not in said]
    draft = settings.compose([*defaults, *overrides])
    if draft.problems or draft.settings is None:
        raise ConfigError(draft.problems)
    place = draft.settings.place
    if not place.shared:
        raise ConfigError(["storage: must be one that many machines share, for a worker; take storage=postgres"])
    return place, draft.settings.slots


def _ended(result: api.Result) -> str:
    done = sum(r.done for r in result.records)
    return f"{result.why}, {done} of {result.plan.budget} trials are done"


@contextmanager
def _leaving() -> Iterator[None]:
    """Between two studies a signal ends the worker at once, with its exit code; at one, it saves and stops."""

    def leave(number: int, _: Any) -> None:
        sys.exit(128 + number)

    before = {s: signal.signal(s, leave) for s in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
