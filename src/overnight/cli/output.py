"""What commands print about a study: its status, the result of a launch, a forecast, a table."""

from __future__ import annotations

import json
import math
import shutil
import statistics
import sys
import time
from collections import Counter
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import click

from overnight.cli import activity
from overnight.cli.arguments import command, exit_with_mistakes, train_winner_command

if TYPE_CHECKING:
    from overnight.api import Result
    from overnight.runner.forecast import Forecast
    from overnight.search.plan import Plan
    from overnight.search.record import TrialRecord
    from overnight.study.snapshot import StudyView

_RUNS = 10  # of `train`, the last ones, that `status` prints
_STATES = ("complete", "pruned", "failed", "running", "paused", "waiting")


def print_json(value: Any) -> None:
    """Print what `--json` asks for. JSON has no number that is not finite: null takes its place."""
    click.echo(json.dumps(_finite(value), allow_nan=False))


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(v) for key, v in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def status_object(view: StudyView) -> dict[str, Any]:
    """Return what `status --json` prints."""
    return {
        "study": view.name,
        "state": view.state,
        "budget": view.budget if not view.plan.budget.counts_epochs else None,
        "epochs": epochs_object(view.plan, view.records),
        "trials": {
            "complete": view.count("complete"),
            "pruned": view.count("pruned"),
            "failed": view.count("failed"),
            "running": view.count("running"),
            "waiting": view.count("waiting", "paused"),
        },
        "best": best_object(view.best),
        "confirmation": {"done": view.confirmed, "budget": view.confirmations},
        "deadline": (view.launch.get("deadline") or {}).get("ends_at"),  # Unix time in seconds
        "forecast": _forecast_to_deadline(view),
        "limit_notes": list(view.launch.get("notes", ())),
        "experiment_id": view.experiment_id,
        "parent_run_id": view.parent_run_id or None,
    }


def epochs_object(plan: Plan, records: Iterable[TrialRecord]) -> dict[str, int | None]:
    """Return what `status --json` and `list --json` print of the epochs of a study."""
    trained = sum(len(r.history) for r in records)
    return {"trained": trained, "budget": plan.budget.epoch_limit}


def best_object(best: TrialRecord | None) -> dict[str, Any] | None:
    """Return what `status --json` and `list --json` print of the best trial."""
    from overnight.config.values import json_params

    if best is None:
        return None
    return {"trial": best.number, "objective": best.objective, "params": json_params(best.params)}


def print_status(view: StudyView) -> None:
    """Print the progress of a study."""
    from overnight.search.plan import TRAIN_STUDY

    done, forecast = view.count("complete", "pruned", "failed"), _forecast_to_deadline(view)
    click.echo(f"{view.name}: {view.state}, {view.progress} done ({_counts(view.records)})")
    for host, reasons in view.refusals.items():
        for line in reasons:
            click.echo(f"refused by the worker on {host}: {line}")
    if view.holder is not None and "others" in view.holder:
        others = f" and {n} more" if (n := view.holder["others"]) else ""
        click.echo(f"running in: process {view.holder['pid']} on {view.holder['host']}{others}")
    _print_trials(view)
    if view.confirmation is not None and view.confirmations:
        click.echo(f"confirmation: {view.confirmed} of {view.confirmations} trials done")
    for line in (*([forecast] if forecast else []), *view.launch.get("notes", ())):
        print_wrapped(line)
    if view.state == "running" and forecast is None:
        _print_time_left(view, done)
    resumes = f"the same `overnight {'train' if view.name == TRAIN_STUDY else 'tune'}` command resumes"
    if view.state == "paused":
        click.echo(f"{resumes} it")
    if view.state == "stalled":
        click.echo(f"its process ended while trials were running; {resumes} them")


def _print_trials(view: StudyView) -> None:
    from overnight.search.formatting import format_value, titled
    from overnight.search.plan import TRAIN_STUDY
    from overnight.search.record import unit_of_trial, units_of_trial
    from overnight.study.exclusions import describe_excluded

    best = view.best
    if best is not None and best.objective is not None:
        metric = view.plan.settings.study.metric
        print_wrapped(f"best: {metric} {format_value(best.objective, metric)}, {titled(best)}")
    if view.name == TRAIN_STUDY:
        _print_runs(view)
    for line in describe_excluded(view.records):
        print_wrapped(f"  {line}")
    at_rungs = Counter(len(r.history) for r in view.records if r.state == "paused" and r.waits_at_rung)
    for record in view.records:
        if record.state == "running" or (record.state == "paused" and not record.waits_at_rung):
            last, total = record.history[-1:], units_of_trial(record, view.plan)
            of, unit = f" of {total}" if total is not None else "", unit_of_trial(record, view.plan)
            progress = f"{last[0].index + 1}{of} {unit}s" if last else f"no {unit} yet"
            print_wrapped(f"  {titled(record)}: {record.state}, {progress}")
    if at_rungs:
        unit = view.plan.unit
        lengths = ", ".join(f"{count} after {n} {unit}{'s' * (n != 1)}" for n, count in sorted(at_rungs.items()))
        print_wrapped(f"  {sum(at_rungs.values())} paused at a rung: {lengths}")


def _print_runs(view: StudyView) -> None:
    """Print the last trials of `train` that ended. They need not share a metric, so none of them is the best."""
    from overnight.config.paths import trial_name
    from overnight.search.formatting import describe, format_value

    done = [r for r in view.records if r.done]
    for record in done[-_RUNS:]:
        metric = view.metric_of(record)
        value = record.reason if record.objective is None else f"{metric} {format_value(record.objective, metric)}"
        print_wrapped(f"  {trial_name(record.number)}: {record.state}, {value} ({describe(record)})")
    if len(done) > _RUNS:
        all_of = command("export", view.name, "FILE.csv", location=view.plan.settings.location)
        click.echo(f"  {len(done) - _RUNS} earlier ones: {all_of}")


def _print_time_left(view: StudyView, done: int) -> None:
    from overnight.search import deadline
    from overnight.search.formatting import format_duration
    from overnight.search.schedulers.study import epochs_in_all, trained_epochs

    second = view.confirmation.records if view.confirmation is not None else ()
    records = (*view.records, *second)
    durations = [s for r in records if (s := deadline.whole_s(r)) is not None]
    epoch_s = deadline.epoch_s(view.records)
    if view.plan.pauses and epoch_s is not None and not durations:
        durations = [view.plan.units * epoch_s]
    if not durations:
        return
    running = max(sum(r.state == "running" for r in records), 1)
    # Trials of a confirmation are never pruned, so they take as long as the longest trial.
    left_s = max(view.budget - done, 0) * statistics.median(durations) / running
    if view.plan.pauses:
        left = max(epochs_in_all(view.records, view.plan, view.finishes) - trained_epochs(view.records), 0)
        left = 0 if view.confirmation is not None else left  # a search may end with a few epochs left
        left_s = left * (epoch_s or 0.0) * deadline.MARGIN / running
    left_s += (view.confirmations - view.confirmed) * max(durations) / running
    end = time.strftime("%H:%M", time.localtime(time.time() + left_s))
    click.echo(f"about {format_duration(left_s)} left, until {end}")


def _forecast_to_deadline(view: StudyView) -> str | None:
    """Describe what a running launch still does before its deadline; None if it has no deadline or is not running."""
    from overnight.search import deadline
    from overnight.search.plan import devices_of

    given, now = view.launch.get("deadline"), time.time()
    if view.state != "running" or given is None:
        return None
    slots, startup_s = len(devices_of(view.plan)), view.launch.get("startup_s", 0.0)
    ahead = deadline.plan_time(view.plan, view.records, deadline.Deadline(**given), slots, now, startup_s)
    return deadline.describe(ahead, now)


def print_result(result: Result) -> None:
    """Print the result of a launch."""
    _print_exhausted(result)
    from overnight.search.schedulers.study import progress_text

    name, progress = result.study_name, progress_text(result.records, result.plan)
    click.echo(f"{name}: {progress} done ({_counts(result.records)})")
    _print_best(result)
    _print_failures(result)
    for line in result.limit_notes:
        print_wrapped(line)
    _print_finding(result)
    if result.stop_reason != "stopped":
        click.echo(f"show in MLflow: {command('ui', name, location=result.plan.settings.location)}")


def _print_exhausted(result: Result) -> None:
    """Say it if the study had nothing left to do."""
    plan, study = result.plan, result.plan.settings.study
    is_whole_grid = plan.budget.trials < (study.trials or 0) or plan.budget.trials == plan.n_points
    if (
        plan.settings.sampler.name == "grid"
        and is_whole_grid
        and sum(r.done for r in result.records) >= plan.budget.trials
    ):
        click.echo("every point of the grid is done; to search more, widen the space and set a new study.name")
    elif not result.did_work and result.stop_reason == "complete":
        trials = [f"study.trials={plan.budget.trials * 2}"] if study.trials is not None or not plan.pauses else []
        is_limit = plan.budget.epoch_limit is not None
        budget = [f"study.budget={plan.budget.trainings * 2:g}"] if is_limit else []
        more = " ".join([*trials, *budget])  # either one may have ended it
        click.echo(f"{result.study_name} is complete; to search more, set {more} or a new study.name")


def _print_best(result: Result) -> None:
    from overnight.search.formatting import format_value, titled

    best = result.best
    if best is not None and best.objective is not None:
        record = next(r for r in result.records if r.number == best.number)
        metric = result.plan.settings.study.metric
        print_wrapped(f"best: {metric} {format_value(best.objective, metric)}, {titled(record)}")


def _print_failures(result: Result) -> None:
    from overnight.config.paths import trial_name
    from overnight.search.plan import CONFIRM_SUFFIX

    failed = [r for r in result.records if r.state == "failed"]
    study, of = result.study_name, ""
    if result.stop_reason == "failures" and result.unconfirmed:  # the search had ended
        failed, study, of = list(result.unconfirmed), f"{study}{CONFIRM_SUFFIX}", "confirmation "
    for record in failed[-3:]:
        last = f": {record.detail.strip().splitlines()[-1]}" if record.detail.strip() else ""
        click.echo(f"{of}{trial_name(record.number)} failed ({record.reason}){last}", err=True)
    if result.stop_reason == "failures":
        shown = f"`overnight logs {study}/{failed[-1].number}` shows one, and " if failed else ""
        limit = result.plan.settings.study.max_consecutive_failures
        click.echo(
            f"stopped: {limit} trials in a row failed with an error; {shown}the same "
            "`overnight tune` command resumes the study",
            err=True,
        )


def _print_finding(result: Result) -> None:
    found, location = result.finding, result.plan.settings.location
    if found is None:
        return
    if found.search_best is not None:
        from overnight.report import finding

        print_wrapped(finding.summary_sentence(found))
    click.echo(f"report: {result.report or command('report', result.study_name, location=location)}")
    if found.best is not None and result.stop_reason in ("complete", "limit"):
        click.echo(f"train the winner again: {train_winner_command(result.plan)}")
        for line in result.winner_notes:
            click.echo(line)


def print_forecast(plan: Plan) -> None:
    """Print the search space, three samples, and the time and disk space of a study; trains some epochs to measure."""
    from overnight.config.values import to_text
    from overnight.runner import forecast as forecasts
    from overnight.runner.launch import check_configurations

    check_configurations(plan, click.echo, activity.show)
    activity.show(
        "training a few epochs of the smallest and of the largest configuration, at most half a minute each ..."
    )
    try:
        found = forecasts.forecast(plan)
    except forecasts.MeasurementFailed as error:
        click.echo(str(error), err=True)
        exit_with_mistakes([f"conf: the {error.name}, must train, and fails as shown above"])
    print_tree(plan, with_settings=True)
    size = "infinite" if found.points == float("inf") else f"{found.points:,.0f} points"
    click.echo(f"{plan.name}: search space, {size}")
    for key, draw in plan.space.describe().items():
        click.echo(f"  {key}: {draw}")
    click.echo("three random samples:")
    for sample in found.samples:
        click.echo("  " + " ".join(f"{k}={to_text(v)}" for k, v in sample.items()))
    for line in _time_lines(found):
        click.echo(line)
    click.echo(f"disk: about {found.disk_bytes / 1e6:.1f} MB in {plan.settings.location.paths.root}")


def print_tree(plan: Plan, with_settings: bool = False) -> None:
    """Print what of the user's own tree has no effect, and the settings that it gives if asked for."""
    tree = plan.start.tree
    if tree is None:
        return
    if with_settings:
        click.echo(f"settings from {tree.label}:")
        for line in tree.taken:
            click.echo(f"  {line}")
    if tree.unused:
        print_wrapped(f"not used of {tree.label}: {', '.join(tree.unused)}")


def _time_lines(found: Forecast) -> list[str]:
    """Return the size of the search, the range of the time, and what it is based on."""
    from overnight.search.formatting import format_duration

    least, most = (format_duration(s) for s in found.seconds)
    work = "the search" if found.pauses else f"{found.searches[0].trials} trials"
    work += f" and {found.confirmations} confirmations" if found.confirmations else ""
    slots = f"in {found.slots} slot{'s' if found.slots > 1 else ''}"
    if found.at_once < found.slots:
        slots += f", of which {found.at_once} train at once, because there are {found.at_once} cores"
    lines = _search_lines(found) + [
        f"time: {least} to {'more than ' if found.slowest.is_cut else ''}{most} for {work} {slots}, "
        f"from the start to the report{'' if found.pauses else ', without pruning'}"
    ]
    for which in dict.fromkeys((found.fastest, found.slowest)):
        at_least = "more than " if which.is_cut else ""
        lines.append(
            f"  measured: {at_least}{which.unit_s:.3g} s per {which.unit}, {which.units} {which.unit}s per trial "
            f"({which.name})"
        )
    return lines


def _search_lines(found: Forecast) -> list[str]:
    """Say how many configurations a search trains whose trials are paused; nothing for another one."""
    if not found.pauses:
        return []
    trials, complete, epochs = ([getattr(s, name) for s in found.searches] for name in ("trials", "complete", "epochs"))
    size = f"about {_range(epochs)}" if found.epoch_limit is None else f"{found.epoch_limit}"
    size += f" {found.fastest.unit}s"
    if found.scheduler:
        return [f"search: {size}; {found.scheduler} decides for how many configurations"]
    done = f", {found.trained_epochs} of them done" if found.trained_epochs else ""
    if set(trials) == {1}:
        return [f"search: {size}{done}, for 1 configuration"]
    about = "" if found.epoch_limit is None else "about "
    return [
        f"search: {size}{done}, for {about}{_range(trials)} configurations, of which about {_range(complete)} train to "
        "the end"
    ]


def _range(values: Iterable[int]) -> str:
    return " to ".join(str(v) for v in sorted(set(values)))


def print_wrapped(text: str) -> None:
    """Print a sentence; a terminal gets it wrapped between words."""
    if sys.stdout.isatty():
        width = shutil.get_terminal_size().columns
        text = click.wrap_text(text, width, subsequent_indent="  ")
    click.echo(text)


def print_table(heads: tuple[str, ...], rows: list[tuple[str, ...]]) -> None:
    """Print columns at their full width, so that a pipe gets whole values."""
    widths = [max(len(row[i]) for row in (heads, *rows)) for i in range(len(heads))]
    for row in (heads, *rows):
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def format_bytes(count: float) -> str:
    """Format a size: 12 kB, 3.4 MB, 5.6 GB."""
    if count >= 1e9:
        return f"{count / 1e9:.1f} GB"
    return f"{count / 1e6:.1f} MB" if count >= 1e5 else f"{count / 1e3:.0f} kB"


def _counts(records: Iterable[TrialRecord]) -> str:
    states = [r.state for r in records]
    return ", ".join(f"{states.count(s)} {s}" for s in _STATES if s in states)
