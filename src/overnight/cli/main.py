"""The command line: reads what was typed, calls the rest, prints. Imports lazily, so that --help answers at once."""

from __future__ import annotations

import atexit
import gc
import os
import shlex
import sys
from typing import TYPE_CHECKING, NoReturn

import click

from overnight.cli import output, studies
from overnight.cli.arguments import JSON as _JSON
from overnight.cli.arguments import command as _command
from overnight.cli.arguments import look as _look
from overnight.cli.arguments import mistake as _mistake
from overnight.cli.arguments import refer as _refer
from overnight.system.signals import Signals

if TYPE_CHECKING:
    from overnight.api import Result
    from overnight.search.plan import Plan

_OVERRIDES = click.argument("overrides", nargs=-1, metavar="[OVERRIDE ...]")
_CONFIG_DIR = click.option("--config-dir", metavar="DIR", help="A folder of your own configs.")
_INTERRUPTED = 130
_STARTED = ("model=mine", "data=mine")  # what `init` wrote is tuned by


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="overnight")
def cli() -> None:
    """Launch a hyperparameter study in the evening, read the answer in the morning.

    OVERRIDE is Hydra's KEY=VALUE, e.g. model.dropout=0.1; a sweep such as model.activation=relu,gelu or
    optimizer.lr='tag(log,interval(1e-4,1e-1))' is searched. STUDY is a study's name.
    """


@cli.command()
@_OVERRIDES
@_CONFIG_DIR
@click.option("--dry-run", is_flag=True, help="Show the space, three configurations, and what it would take.")
@click.option("--extend", is_flag=True, help="Go on in a search space that only grew.")
@click.option("--cfg", is_flag=True, help="Print the composed config and start nothing.")
@click.option("--detach", is_flag=True, help="Leave the work to the workers of a shared ledger.")
def tune(
    overrides: tuple[str, ...], config_dir: str | None, dry_run: bool, extend: bool, cfg: bool, detach: bool
) -> None:
    """Start a study, or go on with it: the same line, as often as you like."""
    signals = click.get_current_context().with_resource(Signals())
    _warm_up(cfg)
    from overnight.search.build_plan import build_plan

    plan = build_plan(_less_job(overrides, cfg), config_dir)
    signals.check()
    if cfg:
        _print_config(overrides, config_dir)
    elif dry_run:
        output.forecast(plan)
    elif detach:
        from overnight.runner.launch import launch_detached

        for line in launch_detached(plan, extend=extend, signals=signals, say=click.echo):
            click.echo(line)
    elif plan.settings.launcher.uses_workers:
        _launch_elsewhere(plan, overrides, extend, signals)
    else:
        from overnight import api

        result = api.run(plan, extend=extend, signals=signals, say=click.echo)
        output.ended(result)
        _exit(result)


@cli.command()
@click.argument("arguments", nargs=-1, metavar="[STUDY ...] [OVERRIDE ...]")
@click.option("--until-done", is_flag=True, help="Leave once there is nothing left to do.")
def worker(arguments: tuple[str, ...], until_done: bool) -> None:
    """Join as one more machine: work on the named studies of a shared ledger, or on every open one, until stopped."""
    from overnight.cluster import worker as working

    named = [a for a in arguments if "=" not in a]
    sys.exit(working.serve(named, [a for a in arguments if "=" in a], until_done=until_done))


@cli.command()
@_OVERRIDES
@_CONFIG_DIR
@click.option("--cfg", is_flag=True, help="Print the composed config and start nothing.")
def train(overrides: tuple[str, ...], config_dir: str | None, cfg: bool) -> None:
    """Train one configuration, with the same tracking."""
    signals = click.get_current_context().with_resource(Signals())
    _warm_up(cfg)
    from overnight.search.build_plan import build_plan

    plan = build_plan(_less_job(overrides, cfg), config_dir, searching=False)
    if cfg:
        _print_config(overrides, config_dir)
        return
    from overnight import api
    from overnight.config.paths import trial_name

    result = api.run_one(plan, signals=signals)
    record, study = result.records[0], result.plan.settings.study
    if record.done:
        outcome = f"{study.metric} {record.objective:.6g}" if record.objective is not None else record.reason
        click.echo(f"train/{trial_name(record.number)}: {record.state}, {outcome}")
        if record.detail:
            click.echo(record.detail, err=True)
        click.echo(f"look: {_command('ui', 'train', location=plan.settings.location)}")
    _exit(result)


@cli.command()
@click.argument("arguments", nargs=-1, metavar="[STUDY] [OVERRIDE ...]")
@click.option("--watch", is_flag=True, help="Look on until nobody is at it; Ctrl-C leaves it as it is.")
@_JSON
def status(arguments: tuple[str, ...], as_json: bool, watch: bool) -> None:
    """How a study stands: running, paused, stalled or done; the best so far; what is left, and when it will end."""
    import json

    location, view, others = _look(arguments)
    if view is None:
        _mistake([f"study: there is none in {location.storage_description}; `overnight tune` starts one"])
    if watch and as_json:
        _mistake(["--watch: looks on, and --json prints once, got both; take one of them"])
    if watch:
        from overnight.cli import watch as watching

        view = watching.follow(location, view)
    if as_json:
        click.echo(json.dumps(output.status_object(view)))
        return
    output.status(view)
    if others:
        click.echo(f"other studies here: {', '.join(others)}")


@cli.command()
@click.argument("arguments", nargs=-1, metavar="STUDY [OVERRIDE ...]")
@click.option("--wait-s", default=60.0, show_default=True, help="Seconds to wait for it to have stopped.")
def stop(arguments: tuple[str, ...], wait_s: float) -> None:
    """Let running trials save and stop; `tune` goes on from there."""
    import time

    from overnight.study import snapshot
    from overnight.study.storage.lock import holder_of

    location, view, _ = _look(arguments)
    if view is None:
        _mistake([f"study: there is none in {location.storage_description}; `overnight status` lists them"])
    if view.holder is None:
        click.echo(f"{view.name}: nobody is at it ({view.state})")
        return
    snapshot.request_stop(location, view.name)
    deadline = time.monotonic() + wait_s
    while holder_of(location, view.name) is not None:
        if time.monotonic() > deadline:
            click.echo(f"{view.name}: asked to stop; process {view.holder['pid']} is still saving", err=True)
            sys.exit(1)
        time.sleep(0.1)
    click.echo(f"{view.name}: stopped; the same `overnight tune` line goes on with it")


@cli.command()
@click.argument("arguments", nargs=-1, metavar="[STUDY] [OVERRIDE ...]")
@click.option("--dry-run", is_flag=True, help="Only say what is wrong.")
@_JSON
def doctor(arguments: tuple[str, ...], dry_run: bool, as_json: bool) -> None:
    """Say what kills and accidents left wrong around a study, or around all, and mend it. Exits 1 where any is left."""
    import json

    from overnight.cli import doctor as office

    location, view, others = _look(arguments)
    if view is None:
        _mistake([f"study: there is none in {location.storage_description}; `overnight tune` starts one"])
    names = [view.name, *others]
    found = {name: office.examine(location, name) for name in names}
    left = found if dry_run else {name: office.mend(location, name) if found[name] else [] for name in names}
    for name, findings in found.items():
        for f in findings if not as_json else ():
            outcome = "to be mended" if dry_run else "still wrong" if f in left[name] else f.mends
            click.echo(f"{name}: {f.about}: {f.wrong} ({outcome})")
        if not findings and not as_json:
            click.echo(f"{name}: nothing is wrong")
    if as_json:
        shown = {
            n: [{"about": f.about, "wrong": f.wrong, "mended": f not in left[n]} for f in fs] for n, fs in found.items()
        }
        click.echo(json.dumps({"studies": shown, "left": sum(map(len, left.values()))}))
    sys.exit(1 if any(left.values()) else 0)


@cli.command()
@click.argument("trial", metavar="STUDY/NUMBER")
@click.argument("overrides", nargs=-1, metavar="[OVERRIDE ...]")
def logs(trial: str, overrides: tuple[str, ...]) -> None:
    """Show what a trial printed, and how it failed where it did."""
    from overnight.config.compose import study_location
    from overnight.study import snapshot

    name, _, number = trial.rpartition("/")
    number = number.removeprefix("trial-")
    if not name or not number.isdigit():
        _mistake([f"trial: must be STUDY/NUMBER, e.g. digits-mlp/7, got {trial!r}"])
    location = study_location(overrides)
    view, _ = snapshot.view(location, name)
    if view is None or int(number) >= len(view.records):
        known = f"it has trials 0 to {len(view.records) - 1}" if view else "there is no such study"
        _mistake([f"trial: must be one of the ledger's, got {trial!r}; {known} in {location.storage_description}"])
    path, record = location.paths.study(name).log(int(number)), view.records[int(number)]
    text = path.read_text(errors="replace") if path.exists() else ""
    click.echo(text, nl=not text.endswith("\n")) if text else click.echo(f"{trial} printed nothing", err=True)
    if record.detail:
        click.echo(f"{record.reason}: {record.detail}")


@cli.command()
@click.argument("arguments", nargs=-1, metavar="[STUDY] [OVERRIDE ...]")
def report(arguments: tuple[str, ...]) -> None:
    """What a study has found, how sure that is, what it cost and what to try next; here, and as one HTML file."""
    from overnight.search.plan import TRAIN_STUDY

    location, view, _ = _look(arguments)
    if view is None or view.name == TRAIN_STUDY:
        _mistake(
            [
                f"study: must be the study of a search, and there is none in {location.storage_description}; "
                "start one with `overnight tune`"
            ]
        )
    from rich.console import Console

    from overnight.report import publish
    from overnight.report.report import print_report

    told, path, trouble = publish.publish_report(view, location)
    print_report(told, Console(highlight=False))
    click.echo(f"\npage: {path}")
    if trouble:
        click.echo(f"MLflow does not show it ({trouble}); the same line again tries on", err=True)


@cli.command()
@click.argument("arguments", nargs=-1, required=True, metavar="REF [REF ...] [OVERRIDE ...]")
@_JSON
def compare(arguments: tuple[str, ...], as_json: bool) -> None:
    """Trials or studies side by side; REF is STUDY/NUMBER, or STUDY for its winner. Shows only what differs."""
    import json

    from overnight.config.compose import study_location
    from overnight.config.problems import ConfigError
    from overnight.report import compare as comparing

    location = study_location(a for a in arguments if "=" in a)
    sides, problems = [], []
    for ref in (a for a in arguments if "=" not in a):
        try:
            sides.append(comparing.compared_item(*_refer(location, ref)))
        except ConfigError as error:
            problems += error.problems
    if problems or not sides:
        _mistake(problems or ["REF: must be STUDY or STUDY/NUMBER, got none"])
    if as_json:
        click.echo(json.dumps(comparing.as_json(sides)))
        return
    from rich.console import Console

    Console(highlight=False).print(comparing.table(sides))
    page = comparing.mlflow_page(location, sides)
    if page:
        shown = "in MLflow" if location.server else f"in MLflow, while `{_command('ui', location=location)}` runs"
        click.echo(f"{shown}: {page}")


@cli.command()
@click.argument("arguments", nargs=-1, metavar="[STUDY] [OVERRIDE ...]")
@click.option("--port", default=5000, show_default=True, help="On 127.0.0.1; the next free one where it is taken.")
@click.option("--browser/--no-browser", default=True, help="Open the page, where there is a screen to open it on.")
def ui(arguments: tuple[str, ...], port: int, browser: bool) -> None:
    """Serve MLflow's UI on the right store, at the study's runs, on 127.0.0.1 only. Ctrl-C ends it.

    With tracking=server that server has the pages, and they are opened there.
    """
    from overnight.cli import mlflow_ui
    from overnight.tracking import pages

    location, view, _ = _look(arguments)
    if view is None:
        _mistake([f"study: there is none in {location.storage_description}; `overnight tune` starts one"])
    if location.server is not None:
        page = pages.study_url(view, location.server)
        click.echo(page)
        mlflow_ui.show(page, browser)
        return
    mlflow_ui.serve(
        *pages.server_command(location, port := mlflow_ui.free_port(port)),
        port,
        pages.study_url(view, f"http://127.0.0.1:{port}"),
        browser,
    )


@cli.command()
@click.argument("folder", metavar="DIR")
def init(folder: str) -> None:
    """Write a network, data and a search space of your own to begin with, ready to tune."""
    from pathlib import Path

    from overnight.cli import starter

    files = starter.write(Path(folder))
    click.echo(f"wrote {', '.join(map(str, files))} in {folder}")
    click.echo(f"  {shlex.join(['python', '-m', 'pytest', folder])}")
    click.echo("  " + shlex.join(["overnight", "tune", "--config-dir", os.path.join(folder, "conf"), *_STARTED]))


for _command_of_studies in studies.COMMANDS:
    cli.add_command(_command_of_studies)


def main() -> None:
    """Run a command. Exit codes: 0 done, 1 it failed, 2 a mistake in what was asked, 130 Ctrl-C, 143 SIGTERM."""
    sys.path.insert(0, os.getcwd())  # a person's own modules, as `python -m` would find them
    # Or Python would look through all there is for garbage before it leaves: 0.3 s after a look at a thousand trials.
    atexit.register(gc.freeze)
    try:
        sys.exit(cli.main(standalone_mode=False))
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        sys.exit(_INTERRUPTED)
    except ValueError as error:
        from overnight.config.problems import ConfigError

        if not isinstance(error, ConfigError):
            raise
        _mistake(error.problems)
    except RuntimeError as error:
        from overnight.study.storage.database import DiskFull
        from overnight.study.storage.lock import StudyInUse
        from overnight.study.storage.outage import Unreachable

        if isinstance(error, DiskFull | Unreachable):
            click.echo(str(error), err=True)
            sys.exit(1)
        if "table schema" in str(error):  # Optuna's word on a ledger of another version of its own
            _mistake([f"storage: {' '.join(str(error).split())}"])
        if not isinstance(error, StudyInUse):
            raise
        _mistake([str(error)])


def _exit(result: Result) -> NoReturn:
    if result.stop_reason == "stopped":
        click.echo(f"to go on: {shlex.join(['overnight', *sys.argv[1:]])}")
        sys.exit(128 + result.signal if result.signal else 0)
    sys.exit(1 if result.stop_reason == "failures" or result.all_failed else 0)


def _launch_elsewhere(plan: Plan, overrides: tuple[str, ...], extend: bool, signals: Signals) -> NoReturn:
    """Have workers, placed as the launcher says, work on the study; leave with what they came to."""
    from overnight.cluster.launchers import launch
    from overnight.runner.launch import launch_detached
    from overnight.study.snapshot import view

    launch.check(plan.settings)
    for line in launch_detached(plan, extend=extend, signals=signals, say=click.echo):
        click.echo(line)
    signals.check()
    code = launch.launch(plan.settings, overrides, click.echo)
    seen, _ = view(plan.settings.location, plan.name)
    if seen is not None:
        output.status(seen)
    sys.exit(code)


def _print_config(overrides: tuple[str, ...], config_dir: str | None) -> None:
    from overnight.config.compose import compose
    from overnight.config.trees import to_yaml

    click.echo(to_yaml(compose(_less_job(overrides, True), config_dir).config), nl=False)


# Small parts ----------------------------------------------------------------------------------------------------------


def _warm_up(cfg: bool) -> None:
    """Have the forkserver import the stack while this process still reads and checks what was asked."""
    if not cfg:
        from overnight.system import forkserver

        forkserver.warm_up()


def _less_job(overrides: tuple[str, ...], cfg: bool) -> tuple[str, ...]:
    """Hydra's own spelling is `--cfg job`."""
    return tuple(o for o in overrides if not (cfg and o == "job"))
