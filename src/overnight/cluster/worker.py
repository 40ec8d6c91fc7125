"""A worker: a supervisor that works on the launched studies of a shared study storage until it is stopped."""

from __future__ import annotations

import time
from collections.abc import Sequence

import click
from optuna.exceptions import StorageInternalError

from overnight import api
from overnight.config import import_allowlist
from overnight.config.compose import compose
from overnight.config.problems import ConfigError, Problems
from overnight.config.search_path import add_to_import_path, folders_of
from overnight.config.settings import Settings
from overnight.search.schedulers.study import progress_text
from overnight.study import requests
from overnight.study.storage.outage import Unreachable
from overnight.system.signals import Signals

_POLL_EVERY_S = 2.0
_DEFAULT_GROUPS = {"storage": "postgres", "tracking": "server"}


def serve(names: Sequence[str], overrides: Sequence[str], *, until_done: bool = False) -> int:
    """Work on the named studies, or on every open one, one after another in the order of their launches.

    Args:
        overrides: Settings of this machine: `home=...`, `slots=...` and where the stores are. The defaults are
            storage=postgres and tracking=server.
        until_done: Return when none of the studies is open. Otherwise wait for the next launch.

    Returns:
        An exit code: 0, or 1 if a study failed or MLflow is incomplete, or 128 + the signal that stopped the worker.
    """
    settings = _machine_settings(overrides)
    add_to_import_path(folders_of(settings.import_path))
    import_allowlist.enable_guard()  # before anything starts that may import code that a study names
    failed = idle = outage_reported = False
    refused: set[str] = set()
    with Signals() as signals:
        while True:
            signals.check()
            try:
                open_studies = [n for n in requests.open_studies(settings.location) if not names or n in names]
                name = next((n for n in open_studies if n not in refused), None)
                if name is not None:
                    idle = False
                    result, reasons = _work_on(name, settings, signals)
                    failed = failed or bool(reasons) or (result is not None and _has_failed(result))
                    if reasons:
                        refused.add(name)
                        requests.refuse(settings.location, name, reasons)
                    if result is not None and result.signal is not None:
                        return 128 + result.signal
                    continue
                if until_done:
                    return int(failed)
                if not idle:
                    click.echo("nothing to do; waiting for a study to be launched")
                idle = True
                # A new launch withdraws the refusal.
                refused = {n for n in refused if requests.is_refused(settings.location, n)}
                outage_reported = False
            except (Unreachable, StorageInternalError) as error:
                if not outage_reported:
                    click.echo(f"{error}; retrying", err=True)
                outage_reported = True
            time.sleep(_POLL_EVERY_S)


def _work_on(name: str, settings: Settings, signals: Signals) -> tuple[api.Result | None, list[str]]:
    """Work on a study. Returns the result, and the reasons why this worker refuses to continue the study."""
    try:
        result = api.run_launched(name, settings, signals, say=click.echo)
    except ConfigError as error:
        click.echo("\n  ".join([f"{name}: refused", *error.problems]), err=True)
        return None, error.problems
    click.echo(f"{name}: {result.stop_reason}, {progress_text(result.records, result.plan)} are done")
    if result.mlflow_error:
        click.echo(f"{name}: MLflow is incomplete ({result.mlflow_error}); the next launch updates it", err=True)
    if result.stop_reason != "failures":
        return result, []
    limit = result.plan.settings.study.max_consecutive_failures
    return result, [
        f"study.max_consecutive_failures={limit} trials in a row failed here; `overnight logs` shows their output"
    ]


def _has_failed(result: api.Result) -> bool:
    return result.all_failed or result.mlflow_error is not None


def _machine_settings(overrides: Sequence[str]) -> Settings:
    """Compose this machine's settings. Raises ConfigError."""
    groups = {text.partition("=")[0].partition(".")[0] for text in overrides if not text.startswith("storage.lease_s")}
    defaults = [f"{group}={option}" for group, option in _DEFAULT_GROUPS.items() if group not in groups]
    draft = compose([*defaults, *overrides])
    problems = Problems([*draft.problems, *import_allowlist.package_list_problems()])
    problems.raise_if_any()
    assert draft.settings is not None, "a configuration without problems has settings"
    if not draft.settings.location.shared:
        raise ConfigError(["storage: must be shared by all machines for a worker; use storage=postgres"])
    return draft.settings
