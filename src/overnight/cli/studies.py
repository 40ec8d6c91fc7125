"""Commands that manage studies: list, mark, export, delete, doctor, migrate."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from overnight.cli import activity, output
from overnight.cli.arguments import (
    JSON,
    LOCATION,
    OPTIONAL_STUDY,
    argument,
    exit_with_mistakes,
    find_code,
    find_study,
    find_study_or_trial,
    find_trial,
    require_search,
    split,
)

if TYPE_CHECKING:
    from overnight.cli.manage import StudyListing
    from overnight.config.paths import StudyLocation
    from overnight.study.snapshot import StudyView


@click.command("list")
@LOCATION
@JSON
def list_(overrides: tuple[str, ...], as_json: bool) -> None:
    """List all studies with state, best trial, training time and size.

    \b
    Examples:
      overnight list
      overnight list home=/data/mlruns --json
    """
    from overnight.cli import manage
    from overnight.config.compose import study_location
    from overnight.study.lost import describe_lost

    location = study_location(overrides)
    found = manage.list_studies(location)
    for line in describe_lost(location):
        click.echo(line, err=True)
    if as_json:
        output.print_json({"studies": [_listing_object(s) for s in found]})
        return
    if not found:
        click.echo(f"no studies in {location.storage_description}; start one with `overnight tune`")
        return
    output.print_table(("study", "state", "trials", "best", "training", "size"), [_listing_row(s) for s in found])
    for study in found:
        for line in study.problems:
            click.echo(line, err=True)
    paths = location.paths
    databases = sum(p.stat().st_size for p in (paths.optuna_db, paths.mlflow_db) if p.exists())
    click.echo(f"databases of all studies: {output.format_bytes(databases)} in {paths.root}")


def _listing_object(study: StudyListing) -> dict[str, Any]:
    return {
        "study": study.name,
        "state": study.state,
        "trials": study.trials,
        "budget": study.budget,
        "epochs": study.epochs or None,
        "metric": study.metric,
        "best": output.best_object(study.best),
        "seconds": study.seconds,
        "bytes": study.bytes,
        "problems": list(study.problems),
    }


def _listing_row(study: StudyListing) -> tuple[str, ...]:
    from overnight.search.formatting import format_duration, format_value

    size = output.format_bytes(study.bytes)
    if study.state == "unreadable":
        return study.name, study.state, "", "", "", size
    best = ""
    if study.best is not None and study.best.objective is not None and study.metric is not None:
        best = f"{study.metric} {format_value(study.best.objective, study.metric)} (trial {study.best.number})"
    elif study.latest is not None and (value := study.latest[1].objective) is not None:
        metric, last = study.latest
        best = f"{metric} {format_value(value, metric)} (the last, {last.number})"
    return study.name, study.state, study.progress, best, format_duration(study.seconds), size


@click.command()
@argument("refs", "STUDY/NUMBER [STUDY/NUMBER ...] bad|good", "marks", nargs=-1, required=True)
@click.option("--why", default="", help="A reason, shown with the trial.")
def mark(refs: tuple[str, ...], why: str) -> None:
    """Exclude trials from a study, or include them again.

    The sampler, the scheduler, the confirmation and the report ignore a trial that is marked bad.

    \b
    Examples:
      overnight mark digits-mlp/7 digits-mlp/9 bad --why "wrong labels"
      overnight mark digits-mlp/7 good
    """
    from overnight.cli import manage
    from overnight.config.compose import study_location

    names, overrides = split(refs)
    *names, verdict = names or [""]
    if verdict not in ("bad", "good") or not names:
        given = " ".join(refs)
        exit_with_mistakes([f"mark: must be STUDY/NUMBER bad or STUDY/NUMBER good, got {given}; e.g. digits-mlp/7 bad"])
    location, is_incomplete = study_location(overrides), False
    for study, numbers in _numbers_by_study(location, names).items():
        view, mlflow_error = manage.mark(location, study, numbers, verdict == "bad", why)
        for number in numbers:
            click.echo(f"{study}: {manage.format_state(view.records[number])}")
        mlflow_error = _update_result(location, view, numbers) or mlflow_error
        if mlflow_error:
            click.echo(f"MLflow does not show it yet ({mlflow_error}); the next start updates it", err=True)
            is_incomplete = True
    sys.exit(int(is_incomplete))


def _numbers_by_study(location: StudyLocation, refs: list[str]) -> dict[str, list[int]]:
    from overnight.config.problems import ConfigError, Problems

    found: dict[str, list[int]] = {}
    problems = Problems()
    for ref in refs:
        try:
            view, number = find_study_or_trial(location, ref)
            if number is None:
                raise ConfigError([f"{ref}: must be STUDY/NUMBER, e.g. {view.name}/7"])
            found.setdefault(view.name, []).append(number)
        except ConfigError as error:
            problems.extend(error.problems)
    if problems:
        exit_with_mistakes(problems)
    return found


def _update_result(location: StudyLocation, view: StudyView, numbers: list[int]) -> str | None:
    """Write and print the result of a study whose trials were marked; returns why MLflow does not show it, if so."""
    from overnight.config.paths import trial_name
    from overnight.report import finding, publish, winner
    from overnight.search.plan import TRAIN_STUDY
    from overnight.tracking import registry, tags

    if view.name == TRAIN_STUDY:
        return None
    found, mlflow_error = finding.from_view(view), None
    if view.state == "complete":
        winner.write_config(view)
        mlflow_error = publish.publish_to_mlflow(view, location, found)
    output.print_wrapped(finding.summary_sentence(found))
    if view.state != "complete" or found.confirmed < found.confirmations:
        click.echo("`overnight tune` trains what is missing now")
    if registry.champion_tags(location, view.name).get(tags.WINNER) in {trial_name(n) for n in numbers}:
        click.echo(
            f"models:/{view.name}@champion is still the network of that trial; "
            f"`overnight register {view.name}` replaces it"
        )
    return mlflow_error


@click.command()
@argument("study", "STUDY", "study")
@argument("path", "FILE.csv|FILE.parquet", "file")
@LOCATION
def export(study: str, path: str, overrides: tuple[str, ...]) -> None:
    """Write the trials of a study to a CSV or Parquet file.

    STUDY.confirm names the confirmation of a study.

    \b
    Example:
      overnight export digits-mlp trials.csv
    """
    from overnight.cli import manage
    from overnight.config.compose import study_location

    view, number = find_study_or_trial(study_location(overrides), study)
    if number is not None:
        exit_with_mistakes([f"study: must be a whole study, got {study!r}; use {view.name}"])
    count = manage.export(view, Path(path))
    click.echo(f"{count} trials of {view.name}: {path}")


@click.command()
@argument("study", "STUDY", "study")
@LOCATION
@click.option("--dry-run", is_flag=True, help="Only print what would be deleted.")
@click.option("--yes", is_flag=True, help="Do not ask.")
def delete(study: str, overrides: tuple[str, ...], dry_run: bool, yes: bool) -> None:
    """Delete a study permanently.

    Deletes its trials, MLflow runs and models, checkpoints, plots, logs and report, after a question.

    \b
    Examples:
      overnight delete digits-mlp --dry-run
      overnight delete digits-mlp --yes
    """
    from overnight.cli import manage
    from overnight.config.compose import study_location
    from overnight.study.storage.access import require_writable
    from overnight.study.storage.lock import StudyInUse, holder_of

    location = study_location(overrides)
    if holder := holder_of(location, study):
        raise StudyInUse(study, holder)
    if not dry_run and location.paths.root.exists():  # where there is no home, there is no study, and none is created
        require_writable(location)
    found = manage.footprint(location, study)
    trials, runs, versions = (
        f"1 {noun}" if count == 1 else f"{count} {noun}s"
        for count, noun in ((found.trials, "trial"), (found.runs, "run"), (found.versions, "model version"))
    )
    click.echo(f"{study}: {trials}, in the study storage as {', '.join(found.optuna_studies)}")
    click.echo(f"  in MLflow: {runs}, {versions}")
    for path in found.files:
        click.echo(f"  {path}")
    click.echo(f"  {output.format_bytes(found.bytes)} on disk")
    if not (dry_run or yes or sys.stdin.isatty()):
        exit_with_mistakes(["--yes: must be given without a terminal; nothing was deleted"])
    if dry_run or not (yes or click.confirm(f"Delete {study} permanently?")):
        click.echo("nothing was deleted")
        return
    for line in manage.delete(location, found):
        click.echo(line)
    click.echo(f"{study} is deleted")


@click.command()
@OPTIONAL_STUDY
@click.option("--dry-run", is_flag=True, help="Only print the problems.")
@click.option("--resume", metavar="STUDY/NUMBER", help="Check that a trial trains the same after an interruption.")
@click.option(
    "--epochs",
    type=click.IntRange(2),
    default=3,
    show_default=True,
    help="Epochs, or validations, that --resume trains.",
)
@JSON
def doctor(arguments: tuple[str, ...], dry_run: bool, resume: str | None, epochs: int, as_json: bool) -> None:
    """Find and repair what crashes left behind.

    Without STUDY, all studies are checked. A study that only MLflow has, because the study storage was deleted, is
    rebuilt. What concerns trials of supervisors that join a shared study meanwhile is left to them. Exits with 1 if a
    problem remains.

    --resume trains a trial's configuration for some epochs, with and without interruptions, and compares metrics and
    states. It repairs nothing. Exits with 1 if they differ.

    \b
    Examples:
      overnight doctor --dry-run
      overnight doctor digits-mlp
      overnight doctor --resume digits-mlp/0
    """
    if resume is not None:
        _check_resume(resume, arguments, epochs)
    from overnight.cli import doctor as checks
    from overnight.config.compose import study_location
    from overnight.study.snapshot import study_names

    given, overrides = split(arguments)
    if len(given) > 1:  # before any lost study is rebuilt
        exit_with_mistakes([f"study: must be one name, got {', '.join(given)}"])
    for name in given:  # the runs of a confirmation would lose their place below the run of their search
        require_search("study", name)
    location = study_location(overrides)
    lost = checks.rebuild_lost(location, given, dry_run=dry_run)
    still_lost = {name for name, (_, remains) in lost.items() if remains}
    if still_lost:
        names = [name for name in study_names(location) if not given or name in given]
    else:
        location, view, others = find_study(arguments)
        names = [view.name, *others]
    activity.show(f"comparing the stores of {len(names)} studies ...")
    found = {name: checks.find_defects(location, name) for name in names}
    if dry_run:
        remaining = {n: dict.fromkeys(defects, "not repaired: dry run") for n, defects in found.items()}
    else:
        remaining = {n: checks.repair(location, n, found[n], activity.show) if found[n] else {} for n in names}
    for name, (defect, remains) in lost.items():
        found[name] = [defect, *found.get(name, [])]
        if remains:
            why = "not repaired: dry run" if dry_run else "still wrong"
            remaining[name] = {defect: why, **remaining.get(name, {})}
    for name, defects in found.items():  # those that were not there before
        defects += [d for d in remaining.setdefault(name, {}) if d not in defects]
    if as_json:
        studies = {
            n: [{"subject": d.subject, "problem": d.problem, "repaired": d not in remaining[n]} for d in defects]
            for n, defects in found.items()
        }
        output.print_json({"studies": studies, "remaining": sum(map(len, remaining.values()))})
    else:
        for name, defects in found.items():
            for d in defects:
                click.echo(f"{name}: {d.subject}: {d.problem} ({remaining[name].get(d, d.repair)})")
            if not defects:
                click.echo(f"{name}: no problems")
    sys.exit(1 if any(remaining.values()) else 0)


def _check_resume(reference: str, arguments: tuple[str, ...], epochs: int) -> NoReturn:
    """Print whether a trial resumes exactly, and exit."""
    from overnight.config.compose import study_location
    from overnight.runner import resume_check

    names, overrides = split(arguments)
    if names:
        exit_with_mistakes([f"--resume: names the study itself; leave out {', '.join(names)}"])
    found, record = find_trial(study_location(overrides), "--resume", reference)
    find_code(found)
    name = f"{found.name}/{record.number}"
    try:
        check = resume_check.check_resume(found.plan, record, epochs, activity.show)
    except resume_check.TrainingFailed as error:
        click.echo(f"{name}: can't be trained, so nothing was compared: {error}")
        sys.exit(1)
    for line in check.differences:
        click.echo(f"{name}: {line}")
    for line in check.notes:
        click.echo(f"{name}: {line}")
    trained = f"{check.reports} {check.unit}s" if check.reports > 1 else f"1 {check.unit}"
    outcome = "differs" if check.differences else "is the same, bit for bit"
    click.echo(f"{name}: trained for {trained} with and without interruptions: the result {outcome}")
    sys.exit(1 if check.differences else 0)


@click.command()
def migrate() -> None:
    """Create or upgrade the databases of a service.

    The study storage is OVERNIGHT_STORAGE_URL. The databases of MLflow's server are MLFLOW_BACKEND_STORE_URI and
    MLFLOW_AUTH_DATABASE_URI. The command can run at the same time on several machines.

    \b
    Example:
      OVERNIGHT_STORAGE_URL=postgresql://... overnight migrate
    """
    from overnight.cluster import migrate as cluster_migrate

    for line in cluster_migrate.migrate():
        click.echo(line)


COMMANDS = (list_, mark, export, delete, doctor, migrate)
