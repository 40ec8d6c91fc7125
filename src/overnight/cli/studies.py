"""The command line's second half: what a study has left, and studies as things that lie there."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from overnight.cli.arguments import JSON, command, look, mistake, refer

if TYPE_CHECKING:
    from overnight.cli.manage import StudyListing
    from overnight.config.paths import StudyLocation
    from overnight.protocol import Predicted

_HOME = click.argument("overrides", nargs=-1, metavar="[OVERRIDE ...]")


@click.command()
@click.argument("ref", metavar="STUDY[/NUMBER]")
@click.argument("path", metavar="FILE|FOLDER")
@_HOME
@click.option("--invert", is_flag=True, help="The pictures are dark on light, and what was learned is light on dark.")
@click.option("--out", metavar="FILE.csv", help="Write the table there.")
@JSON
def predict(ref: str, path: str, overrides: tuple[str, ...], invert: bool, out: str | None, as_json: bool) -> None:
    """Ask a study's winner, or a trial whose weights are kept, about pictures (png, jpg, a folder) or a CSV file."""
    if out is not None and not out.lower().endswith(".csv"):
        mistake([f"--out: must end in .csv, got {out!r}; name it so"])
    if out is not None and Path(out).exists() and Path(path).exists() and Path(out).samefile(path):
        mistake([f"--out: must be another file than the one asked about, got {out!r}; name another"])
    from overnight.config.compose import study_location
    from overnight.system import forkserver

    forkserver.warm_up()  # it imports while the ledger is read
    from overnight.report import winner

    view, number = refer(study_location(overrides), ref)
    kept, said = winner.predict(view, number, Path(path), invert)
    for note in said.notes:
        click.echo(note, err=True)
    if out is not None:
        _write_answers(said, Path(out))
        click.echo(f"{len(said.rows)} answers: {out}")
    if as_json:
        import json

        rows = [vars(row) for row in said.rows]
        click.echo(json.dumps({"study": view.name, "trial": kept.trial.number, "predictions": rows}))
    elif out is None:
        click.echo(f"answers of {view.name}/{kept.trial.number}, {kept.path}")
        _print_rows(("", "answer", "probability"), [_answer(row) for row in said.rows])


def _answer(row: Any) -> tuple[str, ...]:
    answer = f"{row.answer:.6g}" if isinstance(row.answer, float) else str(row.answer)
    return row.source, answer, f"{row.probability:.4f}" if row.probability is not None else ""


def _write_answers(said: Predicted, path: Path) -> None:
    import csv

    try:
        with open(path, "w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(("source", "answer", "probability"))
            writer.writerows((r.source, r.answer, "" if r.probability is None else r.probability) for r in said.rows)
    except OSError as error:
        mistake([f"--out: must be a file that can be written, got {str(path)!r}: {error}"])


@click.command()
@click.argument("arguments", nargs=-1, metavar="STUDY [OVERRIDE ...]")
def register(arguments: tuple[str, ...]) -> None:
    """Leave a study's winner to take away: its config, its checkpoint, its network in MLflow's model registry."""
    from overnight.system import forkserver

    forkserver.warm_up()
    from overnight.report import winner

    location, view, _ = look(arguments)
    if view is None:
        mistake([f"study: there is none in {location.storage_description}; `overnight tune` starts one"])
    kept = winner.find_checkpoint(view)
    for line in winner.write_config(view):
        click.echo(line)
    click.echo(f"config: {command('train', f'+experiment=best_{view.name}', location=location)}")
    click.echo(f"checkpoint: {kept.path}")
    said = winner.register(view)
    click.echo(said)
    sys.exit(0 if said.startswith("model:") else 1)


@click.command("list")
@_HOME
@JSON
def list_(overrides: tuple[str, ...], as_json: bool) -> None:
    """Every study of a home: state, trials, best, seconds of training, size on disk."""
    from overnight.cli import manage
    from overnight.config.compose import study_location

    location = study_location(overrides)
    found = manage.studies(location)
    if as_json:
        import json

        click.echo(json.dumps({"studies": [_lying(s) for s in found]}))
        return
    if not found:
        click.echo(f"no studies in {location.storage_description}; `overnight tune` starts one")
        return
    _print_rows(("study", "state", "trials", "best", "training", "size"), [_shown(s) for s in found])
    for study in found:
        for line in study.trouble:
            click.echo(line, err=True)
    where = location.paths
    stores = sum(p.stat().st_size for p in (where.optuna_db, where.mlflow_db) if p.exists())
    click.echo(f"and the stores that they share: {_bytes(stores)} in {where.root}")


def _lying(study: StudyListing) -> dict[str, Any]:
    best = study.best
    return {
        "study": study.name,
        "state": study.state,
        "trials": study.trials,
        "budget": study.budget,
        "metric": study.metric,
        "best": {"trial": best.number, "value": best.objective, "params": best.params} if best else None,
        "seconds": study.seconds,
        "bytes": study.bytes,
        "trouble": list(study.trouble),
    }


def _shown(study: StudyListing) -> tuple[str, ...]:
    from overnight.search.record import format_duration

    done = sum(study.trials.get(s, 0) for s in ("complete", "pruned", "failed"))
    trials = f"{done} of {study.budget}" if study.budget is not None else ""
    best = f"{study.metric} {study.best.objective:.6g} (trial {study.best.number})" if study.best else ""
    return study.name, study.state, trials, best, format_duration(study.seconds) if trials else "", _bytes(study.bytes)


def _bytes(count: float) -> str:
    return (
        f"{count / 1e9:.1f} GB"
        if count >= 1e9
        else f"{count / 1e6:.1f} MB"
        if count >= 1e5
        else f"{count / 1e3:.0f} kB"
    )


def _print_rows(heads: tuple[str, ...], rows: list[tuple[str, ...]]) -> None:
    """In columns as wide as what they hold: what is piped on must not be cut to a terminal's width."""
    widths = [max(len(row[i]) for row in (heads, *rows)) for i in range(len(heads))]
    for row in (heads, *rows):
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


@click.command()
@click.argument("study", metavar="STUDY")
@_HOME
@click.option("--dry-run", is_flag=True, help="Only say what would be deleted.")
@click.option("--yes", is_flag=True, help="Do not ask.")
def delete(study: str, overrides: tuple[str, ...], dry_run: bool, yes: bool) -> None:
    """Delete a study for good: trials, MLflow's runs and models, checkpoints, pictures, logs, report. Asks first."""
    from overnight.cli import manage
    from overnight.config.compose import study_location
    from overnight.study.storage.lock import StudyInUse, holder_of

    location = study_location(overrides)
    if holder := holder_of(location, study):
        raise StudyInUse(study, holder)
    found = manage.remains(location, study)
    click.echo(f"{study}: {found.trials} trials, in optuna.db as {', '.join(found.optuna_studies)}")
    click.echo(f"  in MLflow: {found.runs} runs, {found.versions} model versions")
    for path in found.files:
        click.echo(f"  {path}")
    click.echo(f"  {_bytes(found.bytes)} on disk")
    if dry_run:
        click.echo("nothing was deleted")
        return
    if not yes:
        if not sys.stdin.isatty():
            mistake(["--yes: must be given where nobody can be asked; nothing was deleted"])
        if not click.confirm(f"Delete {study} for good?"):
            click.echo("nothing was deleted")
            return
    for line in manage.delete(location, found):
        click.echo(line)
    click.echo(f"{study} is deleted")


@click.command()
@click.argument("study", metavar="STUDY")
@click.argument("path", metavar="FILE.csv|FILE.parquet")
@_HOME
def export(study: str, path: str, overrides: tuple[str, ...]) -> None:
    """Write a study's trials as a table, a row a trial; STUDY.confirm is its confirmation."""
    from overnight.cli import manage
    from overnight.config.compose import study_location

    view, number = refer(study_location(overrides), study)
    if number is not None:
        mistake([f"study: must be a whole study, got {study!r}; take {view.name}"])
    count = manage.export(view, Path(path))
    click.echo(f"{count} trials of {view.name}: {path}")


@click.command()
@click.argument("refs", nargs=-1, required=True, metavar="STUDY/NUMBER [STUDY/NUMBER ...] bad|good")
@click.option("--why", default="", help="Shown wherever the trial is.")
def mark(refs: tuple[str, ...], why: str) -> None:
    """Mark trials bad: sampler, pruner, best, confirmation and report leave them out. `good` takes that back."""
    from overnight.cli import manage
    from overnight.config.compose import study_location
    from overnight.config.paths import trial_name
    from overnight.report import finding, publish, winner
    from overnight.search.plan import TRAIN_STUDY
    from overnight.tracking import registry, tags

    location = study_location(r for r in refs if "=" in r)
    *named, verdict = [r for r in refs if "=" not in r]
    if verdict not in ("bad", "good") or not named:
        mistake([f"mark: must be STUDY/NUMBER bad or STUDY/NUMBER good, got {' '.join(refs)}; e.g. digits-mlp/7 bad"])
    for name, numbers in _by_study(location, named).items():
        seen, trouble = manage.mark(location, name, numbers, verdict == "bad", why)
        for number in numbers:
            click.echo(f"{name}: {manage.described(seen.records[number])}")
        if name == TRAIN_STUDY:
            continue
        found = finding.from_view(seen)
        if seen.state == "done":
            winner.write_config(seen)
            trouble = publish.publish_to_mlflow(seen, location, found) or trouble
        click.echo(finding.summary_sentence(found))
        if seen.state != "done" or found.done < found.asked:
            click.echo("`overnight tune` goes on with what there is to train now")
        if registry.champion_tags(location, name).get(tags.WINNER) in {trial_name(n) for n in numbers}:
            click.echo(
                f"models:/{name}@champion is that trial's network still: `overnight register {name}` replaces it"
            )
        if trouble:
            click.echo(f"MLflow does not show it yet ({trouble}); the next start does", err=True)


def _by_study(location: StudyLocation, refs: list[str]) -> dict[str, list[int]]:
    from overnight.config.problems import ConfigError, Problems

    found: dict[str, list[int]] = {}
    problems = Problems()
    for ref in refs:
        try:
            view, number = refer(location, ref)
            if number is None:
                raise ConfigError([f"{ref}: must be STUDY/NUMBER, e.g. {view.name}/7"])
            found.setdefault(view.name, []).append(number)
        except ConfigError as error:
            problems.merge(error.problems)
    if problems:
        mistake(problems)
    return found


@click.command()
def migrate() -> None:
    """Make the databases of a service and bring them up to date: the ledger's in OVERNIGHT_STORAGE_URL; of MLflow's
    server those in MLFLOW_BACKEND_STORE_URI and MLFLOW_AUTH_DATABASE_URI. Safe to run anywhere, any number at once."""
    from overnight.cluster import migrate as migrating

    for line in migrating.migrate():
        click.echo(line)


COMMANDS = (predict, register, list_, delete, export, mark, migrate)
