"""Commands that read and use the result of a study: status, report, compare, logs, ui, predict, test, register."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from overnight.cli import activity, output
from overnight.cli.arguments import (
    CONFIG_DIR,
    JSON,
    LOCATION,
    OPTIONAL_STUDY,
    argument,
    command,
    exit_with_mistakes,
    find_code,
    find_search,
    find_study,
    find_study_or_trial,
    find_trial,
    require_search,
    split,
    train_winner_command,
)

if TYPE_CHECKING:
    from overnight.protocol import Predictions
    from overnight.study.snapshot import StudyView


@click.command()
@OPTIONAL_STUDY
@click.option("--watch", is_flag=True, help="Follow the study until it stops running. Ctrl-C ends only the watching.")
@JSON
def status(arguments: tuple[str, ...], as_json: bool, watch: bool) -> None:
    """Show the progress of a study, its best trial and the time left.

    Without STUDY, the study that ran last.

    \b
    Examples:
      overnight status
      overnight status digits-mlp --watch
    """
    from overnight.study.lost import describe_lost

    location, view, others = find_study(arguments)
    if watch and as_json:
        exit_with_mistakes(["--watch: cannot be combined with --json, got both; use one of them"])
    if watch:
        from overnight.cli import watch as watching

        view = watching.follow(location, view)
    lost = describe_lost(location)
    if as_json:
        for line in lost:
            click.echo(line, err=True)
        output.print_json(output.status_object(view))
        return
    output.print_status(view)
    if others:
        click.echo(f"other studies: {', '.join(others)}")
    for line in lost:
        click.echo(line, err=True)


@click.command()
@OPTIONAL_STUDY
def report(arguments: tuple[str, ...]) -> None:
    """Show the result of a study and write it as an HTML page.

    The report says which configuration won, how certain that is, which parameters matter, what the study cost, and
    what to search next.

    \b
    Examples:
      overnight report
      overnight report digits-mlp
    """
    location, view = find_search(arguments)
    from rich.console import Console

    from overnight.report import publish
    from overnight.report.report import build_report, print_report
    from overnight.study.storage.access import is_read_only

    activity.show("drawing the charts and writing the page ...")
    if is_read_only(location):
        print_report(build_report(view), Console(highlight=False))
        click.echo(f"home: {location.paths.root} can only be read, so the page is not written", err=True)
        return
    content, path, mlflow_error = publish.publish_report(view, location)
    print_report(content, Console(highlight=False))
    click.echo(f"\npage: {path}")
    if mlflow_error:
        click.echo(f"MLflow does not show the report ({mlflow_error}); the same command tries again", err=True)
        sys.exit(1)


@click.command()
@argument("refs", "REF [REF ...] [OVERRIDE ...]", "study_or_trial", nargs=-1, required=True)
@JSON
def compare(refs: tuple[str, ...], as_json: bool) -> None:
    """Compare trials or studies side by side.

    REF is STUDY/NUMBER for a trial, or STUDY for the winner of a study. Parameters that are equal are left out.

    \b
    Examples:
      overnight compare digits-mlp/3 digits-mlp/7
      overnight compare digits-mlp digits-cnn
    """
    from overnight.config.compose import study_location
    from overnight.config.problems import ConfigError, Problems
    from overnight.report import compare as comparison

    names, overrides = split(refs)
    location, items, problems = study_location(overrides), [], Problems()
    for ref in names:
        try:
            items.append(comparison.compared_item(*find_study_or_trial(location, ref)))
        except ConfigError as error:
            problems.extend(error.problems)
    if not names:
        problems.add("REF: must be STUDY or STUDY/NUMBER, got none")
    if problems:
        exit_with_mistakes(problems)
    if as_json:
        output.print_json(comparison.as_json(items))
        return
    from rich.console import Console

    Console(highlight=False).print(comparison.table(items))
    page = comparison.mlflow_page(location, items)
    if page is not None:
        click.echo(f"in MLflow: {page}")
    elif len(items) > 1 and location.server is None:
        click.echo(f"this command prints their page in MLflow while `{command('ui', location=location)}` runs")


@click.command()
@argument("trial", "STUDY/NUMBER", "trial")
@LOCATION
def logs(trial: str, overrides: tuple[str, ...]) -> None:
    """Show the output of a trial, and why it failed.

    \b
    Example:
      overnight logs digits-mlp/7
    """
    from overnight.config.compose import study_location
    from overnight.study.exclusions import describe_excluded

    location = study_location(overrides)
    view, record = find_trial(location, "trial", trial)
    path = location.paths.study(view.name).log(record.number)
    text = path.read_text(errors="replace") if path.exists() else ""
    click.echo(text, nl=not text.endswith("\n")) if text else click.echo(f"{trial} printed nothing", err=True)
    if record.detail:
        click.echo(f"{record.reason}: {record.detail}")
    for line in describe_excluded([record]):
        click.echo(line)


@click.command()
@OPTIONAL_STUDY
@click.option(
    "--port",
    type=click.IntRange(1, 65535),
    default=5000,
    show_default=True,
    help="The port on 127.0.0.1, or the next one that is free.",
)
@click.option("--browser/--no-browser", default=True, help="Open the page in a browser.")
@click.option("--optuna", is_flag=True, help="Open optuna-dashboard instead, to be read only.")
def ui(arguments: tuple[str, ...], port: int, browser: bool, optuna: bool) -> None:
    """Open MLflow's UI at the runs of a study.

    MLflow is served on 127.0.0.1 only, until Ctrl-C. With tracking=server the page of that server is opened.

    \b
    Examples:
      overnight ui
      overnight ui digits-mlp --no-browser --port 5001
      overnight ui digits-mlp --optuna
    """
    from overnight.cli import mlflow_ui
    from overnight.tracking import local_server, pages

    location, view, _ = find_study(arguments)
    if optuna:
        from overnight.study import dashboard

        dashboard.require_installed()
        port = _free_port(port)
        name, page = "optuna-dashboard", dashboard.page(location, view.name, port)
        click.echo(f"starting {name} for {view.name} on port {port} ...")
        words = dashboard.server_command(location, port)
        mlflow_ui.serve(words, None, port, page, browser, health="/dashboard", name=name)
        return
    if location.server is not None:
        page = pages.study_url(view, location.server)
        click.echo(page)
        mlflow_ui.open_page(page, browser)
        return
    port = _free_port(port)
    click.echo(f"starting MLflow's server for {view.name} on port {port} ...")
    page = pages.study_url(view, f"http://127.0.0.1:{port}")
    with local_server.announced(location, port):
        mlflow_ui.serve(*pages.server_command(location, port), port, page, browser)


def _free_port(wanted: int) -> int:
    from overnight.cli import mlflow_ui

    port = mlflow_ui.free_port(wanted)
    if port != wanted:
        click.echo(f"port {wanted} is in use; {port} is taken instead")
    return port


@click.command()
@argument("ref", "STUDY[/NUMBER]", "study_or_trial")
@argument("path", "FILE|FOLDER", "file")
@LOCATION
@CONFIG_DIR
@click.option("--invert", is_flag=True, help="Invert images: for dark on light, after training on light on dark.")
@click.option("--out", metavar="FILE.csv", help="Write the predictions to a CSV file.")
@JSON
def predict(
    ref: str,
    path: str,
    overrides: tuple[str, ...],
    config_dir: str | None,
    invert: bool,
    out: str | None,
    as_json: bool,
) -> None:
    """Predict images or rows of a CSV file with the winner of a study.

    STUDY/NUMBER uses a trial whose weights are kept. FILE is a png, jpg or csv file; FOLDER holds images.

    \b
    Examples:
      overnight predict digits-mlp images/
      overnight predict purchase-mlp customers.csv --out answers.csv
      overnight predict --config-dir conf mine-mine rows.csv
    """
    _check_out(out, path)
    from overnight.config.compose import study_location
    from overnight.system import forkserver

    forkserver.warm_up()  # it imports torch while the study is read
    from overnight.report import winner

    view, number = find_study_or_trial(study_location(overrides), ref)
    find_code(view, config_dir)
    activity.show("importing torch, and predicting ...")
    checkpoint, predicted = winner.predict(view, number, Path(path), invert)
    for note in predicted.notes:
        click.echo(note, err=True)
    if out is not None:
        _write_predictions(predicted, Path(out))
        click.echo(f"{len(predicted.rows)} predictions: {out}")
    if as_json:
        rows = [vars(row) for row in predicted.rows]
        output.print_json({"study": view.name, "trial": checkpoint.trial.number, "predictions": rows})
    elif out is None:
        click.echo(f"predictions of {view.name}/{checkpoint.trial.number}, {checkpoint.path}")
        output.print_table(("", "answer", "probability"), [_as_row(row) for row in predicted.rows])


def _check_out(out: str | None, path: str) -> None:
    if out is None:
        return
    if not out.lower().endswith(".csv"):
        exit_with_mistakes([f"--out: must end in .csv, got {out!r}; rename it"])
    if Path(out).exists() and Path(path).exists() and Path(out).samefile(path):
        exit_with_mistakes([f"--out: must not be the input file, got {out!r}; name another file"])


def _as_row(row: Any) -> tuple[str, ...]:
    answer = f"{row.answer:.6g}" if isinstance(row.answer, float) else str(row.answer)
    return row.source, answer, f"{row.probability:.4f}" if row.probability is not None else ""


def _write_predictions(predicted: Predictions, path: Path) -> None:
    import csv

    try:
        with open(path, "w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(("source", "answer", "probability"))
            for row in predicted.rows:
                writer.writerow((row.source, row.answer, "" if row.probability is None else row.probability))
    except OSError as error:
        exit_with_mistakes([f"--out: must be a file that can be written, got {str(path)!r}: {error}"])


@click.command()
@argument("ref", "STUDY[/NUMBER]", "study_or_trial")
@LOCATION
@CONFIG_DIR
@JSON
def test(ref: str, overrides: tuple[str, ...], config_dir: str | None, as_json: bool) -> None:
    """Evaluate a trial on the test set.

    STUDY/NUMBER needs a trial whose weights are kept; STUDY is the winner. That the test set was asked is kept with the
    study and shown in its report.

    \b
    Examples:
      overnight test digits-mlp/3
      overnight test train/0 --json
    """
    from overnight.config.compose import study_location
    from overnight.system import forkserver

    forkserver.warm_up()  # it imports torch while the study is read
    view, number = find_study_or_trial(study_location(overrides), ref)
    require_search("test", view.name)  # whose report says that the test set was asked
    find_code(view, config_dir)
    print_test(view, number, as_json)


def print_test(view: StudyView, number: int | None, as_json: bool = False) -> None:
    """Evaluate a trial on the test set, and print its scores and the warning."""
    activity.show("evaluating the test set ...")
    from overnight.report import test_set
    from overnight.search.formatting import format_value

    scores = test_set.ask(view, number)
    if as_json:
        found = {"study": view.name, "trial": scores.number, "metrics": scores.metrics, "is_answer": scores.is_answer}
        output.print_json(found)
    for name, value in scores.metrics.items() if not as_json else ():
        click.echo(f"{view.name}/{scores.number}: {name} {format_value(value, name)}")
    note = "measured for the study's answer; not asked again" if scores.is_answer else test_set.WARNING
    click.echo(note, err=as_json)
    if scores.mlflow_error is not None:
        click.echo(f"MLflow does not show them ({scores.mlflow_error}); the same command tries again", err=True)
        sys.exit(1)


@click.command()
@OPTIONAL_STUDY
@CONFIG_DIR
def register(arguments: tuple[str, ...], config_dir: str | None) -> None:
    """Register the winner of a study in MLflow's model registry.

    The config and the checkpoint of the winner are kept as well; the command prints where they are.

    \b
    Examples:
      overnight register digits-mlp
      overnight register --config-dir conf mine-mine
    """
    from overnight.system import forkserver

    forkserver.warm_up()  # it imports torch while the study is read
    from overnight.report import winner
    from overnight.study.storage.access import require_writable

    location, view = find_search(arguments)
    require_writable(location)
    find_code(view, config_dir)
    checkpoint = winner.find_checkpoint(view)
    for line in winner.write_config(view):
        click.echo(line)
    click.echo(f"config: {train_winner_command(view.plan)}")
    click.echo(f"checkpoint: {checkpoint.path}")
    activity.show("importing torch, and exporting the network ...")
    outcome = winner.register(view)
    click.echo(outcome)
    sys.exit(0 if outcome.startswith("model:") else 1)


COMMANDS = (status, report, compare, logs, ui, predict, test, register)
