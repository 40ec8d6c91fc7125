"""Commands that run a study: tune, train, stop, worker, init."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, NoReturn

import click

from overnight.cli import activity, output
from overnight.cli.arguments import (
    CONFIG_DIR,
    CONFIG_NAME,
    OPTIONAL_STUDY,
    OVERRIDES,
    SECONDS,
    argument,
    command,
    find_study,
    split,
)
from overnight.config import shell
from overnight.config.literal import quote
from overnight.system.signals import Signals

if TYPE_CHECKING:
    from overnight.api import Result
    from overnight.search.plan import Plan

_CFG = click.option("--cfg", is_flag=True, help="Print the composed configuration and exit.")
_STARTER = ("model=mine", "data=mine")  # the options that `init` writes
_POLL_S = 0.1


@click.command()
@OVERRIDES
@CONFIG_DIR
@CONFIG_NAME
@click.option("--dry-run", is_flag=True, help="Print the search space, three samples and a forecast, and exit.")
@click.option("--extend", is_flag=True, help="Resume in a larger search space that contains the old one.")
@_CFG
@click.option("--detach", is_flag=True, help="Leave the trials to the workers of a shared storage.")
def tune(
    overrides: tuple[str, ...],
    config_dir: str | None,
    config_name: str | None,
    dry_run: bool,
    extend: bool,
    cfg: bool,
    detach: bool,
) -> None:
    """Start a study, or resume it with the same command.

    \b
    Examples:
      overnight tune model=mlp data=digits study.trials=50
      overnight tune optimizer.lr='tag(log,interval(1e-4,1e-1))' study.hours=8
      overnight tune --config-dir conf model=mine data=mine --dry-run
      overnight tune --config-dir configs --config-name train hparams_search=mnist_optuna
    """
    signals = click.get_current_context().with_resource(Signals())
    command = (*overrides, f"--config-dir={config_dir}", *([f"--config-name={config_name}"] if config_name else []))
    if not (cfg or _is_finished(overrides, command)):
        _warm_up(config_dir, config_name)
    plan = _build_plan(overrides, config_dir, config_name, cfg)
    signals.check()
    if not (cfg or dry_run):
        output.print_tree(plan)
    if cfg:
        _print_config(overrides, config_dir, config_name)
    elif dry_run:
        output.print_forecast(plan)
    elif detach or plan.settings.launcher.uses_workers:
        _tune_elsewhere(plan, overrides, extend, detach, signals)
    else:
        activity.show("importing ...")
        from overnight import api

        result = api.run(plan, extend=extend, signals=signals, say=click.echo, doing=activity.show, command=command)
        output.print_result(result)
        _exit(result)


@click.command()
@OVERRIDES
@CONFIG_DIR
@CONFIG_NAME
@_CFG
@click.option("--test", is_flag=True, help="Evaluate the trained network on the test set.")
def train(overrides: tuple[str, ...], config_dir: str | None, config_name: str | None, cfg: bool, test: bool) -> None:
    """Train one configuration, tracked like a trial.

    \b
    Examples:
      overnight train model=cnn data=mnist trainer.max_epochs=5
      overnight train +experiment=best_digits-mlp
    """
    signals = click.get_current_context().with_resource(Signals())
    if not cfg:
        _warm_up(config_dir, config_name)
    plan = _build_plan(overrides, config_dir, config_name, cfg, searching=False)
    if cfg:
        _print_config(overrides, config_dir, config_name)
        return
    activity.show("importing ...")
    from overnight import api
    from overnight.config.paths import trial_name
    from overnight.search.formatting import format_value

    result = api.run_one(plan, signals=signals, say=click.echo, doing=activity.show)
    record, study = result.records[0], result.plan.settings.study
    if record.done:
        objective, metric = record.objective, study.metric
        outcome = f"{metric} {format_value(objective, metric)}" if objective is not None else record.reason
        click.echo(f"train/{trial_name(record.number)}: {record.state}, {outcome}")
        if record.detail:
            click.echo(record.detail, err=True)
        from overnight.report import winner

        if (line := winner.explain_retraining(plan, record)) is not None:
            output.print_wrapped(line)
        click.echo(f"show in MLflow: {command('ui', 'train', location=plan.settings.location)}")
        if test and record.state == "complete":
            from overnight.cli.results import print_test
            from overnight.study.snapshot import view

            study_view, _ = view(plan.settings.location, result.plan.name)
            assert study_view is not None, "it has just been trained in"
            print_test(study_view, record.number)
    _exit(result)


@click.command()
@OPTIONAL_STUDY
@click.option(
    "--wait-s", type=SECONDS, default=60.0, show_default=True, help="Seconds to wait until the study has stopped."
)
def stop(arguments: tuple[str, ...], wait_s: float) -> None:
    """Save the running trials and stop a study.

    `overnight tune` with the same arguments resumes it.

    \b
    Examples:
      overnight stop
      overnight stop digits-mlp
    """
    import time

    from overnight.study.requests import request_stop
    from overnight.study.storage.lock import holder_of

    location, view, _ = find_study(arguments)
    if view.holder is None:
        click.echo(f"{view.name}: not running ({view.state})")
        return
    request_stop(location, view.name)
    activity.show(f"waiting until the running trials are saved, at most {wait_s:g} s ...")
    deadline = time.monotonic() + wait_s
    while holder_of(location, view.name) is not None:
        if time.monotonic() > deadline:
            click.echo(f"{view.name}: stop requested; process {view.holder['pid']} is still saving", err=True)
            sys.exit(1)
        time.sleep(_POLL_S)
    click.echo(f"{view.name}: stopped; the same `overnight tune` command resumes it")


@click.command()
@argument("arguments", "[STUDY ...] [OVERRIDE ...]", "study", nargs=-1)
@click.option("--until-done", is_flag=True, help="Exit when no study needs work.")
def worker(arguments: tuple[str, ...], until_done: bool) -> None:
    """Run trials of shared studies on this machine until stopped.

    Without STUDY, the worker runs trials of every open study of the shared storage.

    \b
    Examples:
      overnight worker storage=postgres tracking=server
      overnight worker digits-mlp storage=postgres --until-done
    """
    from overnight.cluster import worker as cluster_worker

    names, overrides = split(arguments)
    sys.exit(cluster_worker.serve(names, overrides, until_done=until_done))


@click.command()
@argument("folder", "DIR", "folder")
def init(folder: str) -> None:
    """Write an example project with a network and data of your own.

    \b
    Example:
      overnight init my_project
    """
    from pathlib import Path

    from overnight.cli import starter

    files = starter.write(Path(folder))
    click.echo(f"Wrote to {folder}: {', '.join(map(str, files))}")
    click.echo("Next steps:")
    click.echo(f"  {shell.join(['python', '-m', 'pytest', folder])}")
    click.echo("  " + shell.join(["overnight", "tune", "--config-dir", os.path.join(folder, "conf"), *_STARTER]))


COMMANDS = (tune, train, stop, worker, init)


def _is_finished(overrides: tuple[str, ...], command: tuple[str, ...]) -> bool:
    """Return whether the same command has finished a study, so that it will probably need no torch.

    Only the home is read from the overrides. To compose them takes as long as torch would get ahead.
    """
    from overnight.config.compose import study_location
    from overnight.study.finished import finished_by

    if any(text.startswith(("storage", "tracking")) for text in overrides):
        return False
    try:
        return finished_by(study_location([text for text in overrides if text.startswith("home=")]), command)
    except ValueError:  # mistakes are reported together, when the plan is built
        return False


def _warm_up(config_dir: str | None, config_name: str | None) -> None:
    """Let the forkserver import torch while this process composes and checks the configuration."""
    from overnight.system import forkserver

    if config_dir is not None and config_name is not None:
        from pathlib import Path

        from overnight.config.user_tree import set_project_root

        set_project_root(Path(config_dir).expanduser().absolute())
    forkserver.warm_up()


def _build_plan(
    overrides: tuple[str, ...], config_dir: str | None, config_name: str | None, cfg: bool, searching: bool = True
) -> Plan:
    activity.show("checking the configuration ...")
    if cfg:
        from overnight.search.build_plan import build_plan

        return build_plan(_without_job(overrides, cfg), config_dir, searching, config_name)
    from overnight.runner.launch import build_checked_plan

    return build_checked_plan(overrides, config_dir, searching, config_name, activity.show)


def _print_config(overrides: tuple[str, ...], config_dir: str | None, config_name: str | None) -> None:
    from overnight.config.compose_tree import compose_any
    from overnight.config.trees import to_yaml

    click.echo(to_yaml(compose_any(_without_job(overrides, True), config_dir, config_name).config), nl=False)


def _without_job(overrides: tuple[str, ...], cfg: bool) -> tuple[str, ...]:
    """Accept Hydra's own spelling, `--cfg job`."""
    return tuple(o for o in overrides if not (cfg and o == "job"))


def _tune_elsewhere(plan: Plan, overrides: tuple[str, ...], extend: bool, detach: bool, signals: Signals) -> None:
    """Create the study for workers on other machines and, unless detached, start these with the launcher and wait."""
    from overnight.cluster.launchers import launch
    from overnight.runner.launch import launch_detached
    from overnight.study import snapshot

    if not detach:
        launch.find_problems(plan.settings).raise_if_any()
    for line in launch_detached(plan, extend=extend, signals=signals, say=click.echo, doing=activity.show):
        click.echo(line)
    if detach:
        return
    signals.check()
    import_path = os.pathsep.join(plan.start.import_path)  # a worker takes none from the storage, which others write to
    code = launch.launch(plan.settings, (f"import_path={quote(import_path)}", *overrides), click.echo)
    view, _ = snapshot.view(plan.settings.location, plan.name)
    if view is not None:
        output.print_status(view)
    sys.exit(code)


def _exit(result: Result) -> NoReturn:
    is_stopped = result.stop_reason == "stopped"
    if is_stopped:
        click.echo(f"to resume: {shell.join(['overnight', *sys.argv[1:]])}")
    if result.mlflow_error:  # the last line, as it may be all that a user reads in the morning
        click.echo(
            f"MLflow is incomplete ({result.mlflow_error}); the study storage has everything, and the same command "
            "updates MLflow",
            err=True,
        )
    if is_stopped and result.signal:
        sys.exit(128 + result.signal)
    has_failed = not is_stopped and (result.stop_reason == "failures" or result.all_failed)
    sys.exit(int(has_failed or result.mlflow_error is not None))
