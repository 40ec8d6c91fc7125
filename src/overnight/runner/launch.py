"""What a launch of a study does before its first trial, and how a supervisor is shown while it works."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from overnight.config.compose_tree import compose_any
from overnight.config.overrides import check_list
from overnight.config.paths import StudyLocation
from overnight.config.problems import ConfigError, Problems
from overnight.runner import preflight
from overnight.search import custom_sampler
from overnight.search.build_plan import build_plan
from overnight.search.formatting import format_duration
from overnight.search.plan import Plan
from overnight.study import warm_start
from overnight.study.open import open_study
from overnight.study.snapshot import view
from overnight.study.storage import database
from overnight.study.storage.access import require_readable, require_writable
from overnight.study.storage.database import free_mib
from overnight.study.storage.lock import holder_of
from overnight.system import forkserver
from overnight.system.signals import Signals
from overnight.tracking import store

_PICKED_UP_WITHIN_S = 6.0  # by an idle worker
_POLL_EVERY_S = 0.5
_IMPORTS_WITHIN_S = 60.0  # after that the dry runs say why none of them starts

Say = Callable[[str], None]


def warm_up(location: StudyLocation) -> None:
    """Start what the first trial waits for: the forkserver's imports, the Optuna storage and MLflow's store."""
    forkserver.warm_up()
    database.get_ready(location)
    store.prepare_in_background(location)


def check_home(plan: Plan) -> None:
    """Raise ConfigError if less than `min_free_mib` is free in the home, or it can't be written. Creates it."""
    settings = plan.settings
    require_readable(settings.location)
    free = free_mib(settings.location.paths.root)
    if free < settings.min_free_mib:
        raise ConfigError(
            [
                f"min_free_mib: {settings.min_free_mib} MiB must be free where home is, got {free:.0f} in "
                f"{settings.location.paths.root}; make room, take another home=, or ask for less"
            ]
        )
    require_writable(settings.location)


def build_checked_plan(
    overrides: Iterable[str],
    config_dir: str | Path | None = None,
    searching: bool = True,
    config_name: str | None = None,
    doing: Say = lambda _: None,
) -> Plan:
    """Build a plan. Where that fails, report the mistakes in the classes of its configuration as well.

    Raises:
        ConfigError: with every mistake found.
    """
    overrides = check_list(overrides)
    try:
        return build_plan(overrides, config_dir, searching, config_name)
    except ConfigError as error:
        names_classes = config_dir is not None or any(o[:1] in "+~" or "_target_" in o for o in overrides)
        if not names_classes:  # those that overnight ships are right
            raise
        doing("importing the classes of the configuration ...")
        with contextlib.suppress(ConfigError, forkserver.ImportsFailed):  # it can't be composed, or not be imported
            config = compose_any(overrides, config_dir, config_name).config
            error = ConfigError([*error.problems, *preflight.find_class_mistakes(config)])
        raise error from None


def check_configurations(
    plan: Plan, say: Say = lambda _: None, doing: Say = lambda _: None, *, runs_here: bool = False
) -> None:
    """Train one batch at the ends of a new study's space.

    Args:
        doing: called with what the user waits for.
        runs_here: this machine runs trials of a study that another one may have started, and so needs its data.

    Raises:
        ConfigError: with every mistake found.
    """
    problems = Problems()
    if plan.settings.sampler.name == "custom":
        _await_imports(doing)
        doing("trying the sampler ...")
        problems.extend(custom_sampler.find_problems(plan, forkserver.fork))
    checks = plan.settings.preflight != "never"
    if checks and view(plan.settings.location, plan.name)[0] is None:
        _await_imports(doing)
        doing(f"{preflight.ACTIVITY}, at most {format_duration(preflight.TIMEOUT_S)} ...")
        problems.extend(preflight.find_mistakes(plan, say))
    elif checks and runs_here and plan.settings.location.shared:
        _await_imports(doing)
        doing("preparing the data ...")
        problems.extend(preflight.find_missing_data(plan, say))
    problems.raise_if_any()


def _await_imports(doing: Say) -> None:
    doing("importing torch and Lightning ...")
    forkserver.warm_up()
    forkserver.is_warm(_IMPORTS_WITHIN_S)


def launch_detached(
    plan: Plan,
    *,
    extend: bool = False,
    signals: Signals | None = None,
    say: Say = lambda _: None,
    doing: Say = lambda _: None,
) -> list[str]:
    """Create a study for the workers of its storage to run, and return what to tell the user, line by line."""
    location = plan.settings.location
    if not location.shared:
        raise ConfigError(["--detach: must have a study storage that workers share; take storage=postgres"])
    plan, messages = warm_start.resolve(plan)
    forkserver.warm_up()
    check_configurations(plan, say, doing)
    if signals is not None:
        signals.check()
    session, opened = open_study(plan, extend=extend, say=say)
    session.close()
    doing(f"waiting for a worker, at most {_PICKED_UP_WITHIN_S:.0f} s ...")
    return [*messages, *opened, *_wait_for_worker(location, plan.name)]


def _wait_for_worker(location: StudyLocation, name: str) -> list[str]:
    until = time.monotonic() + _PICKED_UP_WITHIN_S
    while True:
        holder, (seen, _) = holder_of(location, name), view(location, name)
        refused = seen.refusals if seen is not None else {}
        if holder or refused or time.monotonic() > until:
            break
        time.sleep(_POLL_EVERY_S)
    worker = (
        f"Process {holder['pid']} on {holder['host']} works on it." if holder else "No worker has picked it up yet."
    )
    refusals = [f"the worker on {host} refuses it: {line}" for host, lines in refused.items() for line in lines]
    return [f"{name}: launched. {worker} `overnight status {name}` shows its progress.", *refusals]
