"""A supervisor that serves whatever studies a shared ledger holds, until it is told to stop."""

from __future__ import annotations

import time
from collections.abc import Sequence

import click
from optuna.exceptions import StorageInternalError

from overnight import api
from overnight.config import import_allowlist
from overnight.config.compose import compose
from overnight.config.problems import ConfigError
from overnight.config.sections import Settings
from overnight.study import requests
from overnight.study.storage.outage import Unreachable
from overnight.system.signals import Signals

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
    own = _machine(overrides)
    import_allowlist.enable_guard()  # before anything is started that would build what a study asks for
    failed, idle, trouble = False, False, None
    refused: dict[str, list[str]] = {}
    with Signals() as signals:
        while True:
            signals.check()
            try:
                open_ = [n for n in requests.open_studies(own.location) if not names or n in names]
                name = next((n for n in open_ if n not in refused), None)
                if name is not None:
                    idle = False
                    try:
                        result = api.run_launched(name, own, signals, say=click.echo)
                    except ConfigError as error:
                        refused[name], failed = error.problems, True
                        requests.refuse(own.location, name, error.problems)
                        click.echo("\n  ".join([f"{name}: refused", *error.problems]), err=True)
                        continue
                    click.echo(f"{name}: {_ended(result)}")
                    failed = failed or result.stop_reason == "failures" or result.all_failed
                    if result.stop_reason == "failures":  # those who share it may do better
                        refused[name] = [_gave_up(result)]
                        requests.refuse(own.location, name, refused[name])
                    if result.signal is not None:
                        return 128 + result.signal
                    continue
                if until_done:
                    return int(failed)
                if not idle:
                    click.echo("nothing to do; waiting for a study to be launched")
                idle = True
                refused = {n: why for n, why in refused.items() if requests.is_refused(own.location, n)}
                trouble = None
            except (Unreachable, StorageInternalError) as error:
                if trouble is None:  # once an outage
                    click.echo(f"trying on: {error}", err=True)
                trouble = error
            time.sleep(_LOOK_EVERY_S)


def _machine(overrides: Sequence[str]) -> Settings:
    """This machine's settings: where the stores are, its home, its slots and the like. Raises ConfigError."""
    said = {text.partition("=")[0].partition(".")[0] for text in overrides if not text.startswith("storage.lease_s")}
    defaults = [f"{group}={option}" for group, option in _SHARED.items() if group not in said]
    draft = compose([*defaults, *overrides])
    wrong = [*draft.problems, *import_allowlist.package_list_problems()]
    if wrong or draft.settings is None:
        raise ConfigError(wrong)
    if not draft.settings.location.shared:
        raise ConfigError(["storage: must be one that many machines share, for a worker; take storage=postgres"])
    return draft.settings


def _ended(result: api.Result) -> str:
    done = sum(r.done for r in result.records)
    return f"{result.stop_reason}, {done} of {result.plan.budget} trials are done"


def _gave_up(result: api.Result) -> str:
    limit = result.plan.settings.study.max_consecutive_failures
    return f"study.max_consecutive_failures={limit} trials in a row failed here; `overnight logs` shows them"
