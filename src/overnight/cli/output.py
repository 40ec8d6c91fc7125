"""What commands say of a study: how it stands, what a launch has come to, what it would take."""

from __future__ import annotations

import statistics
import time
from typing import TYPE_CHECKING, Any

import click

from overnight.cli.arguments import command, mistake

if TYPE_CHECKING:
    from overnight.api import Result
    from overnight.search.plan import Plan
    from overnight.study.snapshot import StudyView


def status_object(view: StudyView) -> dict[str, Any]:
    """What `status --json` prints."""
    best = view.best
    return {
        "study": view.name,
        "state": view.state,
        "budget": view.budget,
        "trials": {
            "complete": view.count("complete"),
            "pruned": view.count("pruned"),
            "failed": view.count("failed"),
            "running": view.count("running"),
            "waiting": view.count("waiting", "paused"),
        },
        "best": {"trial": best.number, "value": best.objective, "params": best.params} if best else None,
        "confirmation": {"done": view.confirmed, "budget": view.confirmations},
        "deadline": (view.launch.get("deadline") or {}).get("ends_at"),  # seconds since 1970
        "forecast": _ahead(view),
        "ended": list(view.launch.get("notes", ())),
        "experiment_id": view.experiment_id,
        "parent_run_id": view.parent_run_id or None,
    }


def status(view: StudyView) -> None:
    """How a study stands."""
    from overnight.config.paths import trial_name
    from overnight.search.record import describe, format_duration

    states = ("complete", "pruned", "failed", "running", "paused", "waiting")
    done = view.count("complete", "pruned", "failed")
    counts = ", ".join(f"{view.count(s)} {s}" for s in states if view.count(s))  # type: ignore[arg-type]
    click.echo(f"{view.name}: {view.state}, {done} of {view.budget} trials done ({counts})")
    for host, why in view.refused.items():
        for line in why:
            click.echo(f"refused by the worker on {host}: {line}")
    if view.holder is not None and "others" in view.holder:
        others = f" and {n} more" if (n := view.holder["others"]) else ""
        click.echo(f"at it: process {view.holder['pid']} on {view.holder['host']}{others}")
    best, metric = view.best, view.plan.settings.study.metric
    if best is not None:
        click.echo(f"best: {metric} {best.objective:.6g}, {trial_name(best.number)} ({describe(best)})")
    for record in view.records:
        if record.state == "running":
            last = record.history[-1] if record.history else None
            where = f"epoch {last.epoch + 1} of {view.plan.settings.trainer.max_epochs}" if last else "starting"
            click.echo(f"  {trial_name(record.number)}: {where} ({describe(record)})")
    if view.confirmation is not None:
        click.echo(f"confirmation: {view.confirmed} of {view.confirmations} trials done")
    records = (*view.records, *(view.confirmation.records if view.confirmation else ()))
    took = [r.ended_at - r.started_at for r in records if r.done and r.ended_at and r.started_at]
    ahead = _ahead(view)
    if ahead is not None:
        click.echo(ahead)
    for line in view.launch.get("notes", ()):
        click.echo(line)
    if view.state == "running" and took and ahead is None:
        busy = max(sum(r.state == "running" for r in records), 1)
        # A confirmation's trials run to their last epoch, as the search's longest ones did.
        left = max(view.budget - done, 0) * statistics.median(took) / busy
        left += (view.confirmations - view.confirmed) * max(took) / busy
        click.echo(
            f"about {format_duration(left)} left, until {time.strftime('%H:%M', time.localtime(time.time() + left))}"
        )
    if view.state == "stalled":
        click.echo("its trials say running and nobody is at it: the same `overnight tune` line takes them up")


def _ahead(view: StudyView) -> str | None:
    """What a launch with a deadline has still to come; None where nobody is at it or it has none."""
    from overnight.search import deadline
    from overnight.system.devices import slot_devices

    given, now = view.launch.get("deadline"), time.time()
    if view.state != "running" or given is None:
        return None
    slots = len(slot_devices(view.plan.settings.slots))
    ahead = deadline.plan_time(
        view.plan, view.records, deadline.Deadline(**given), slots, now, view.launch.get("startup_s", 0.0)
    )
    return deadline.describe(ahead, now)


def ended(result: Result) -> None:
    """What a launch has come to."""
    from overnight.config.paths import trial_name
    from overnight.search.record import describe

    study, records = result.plan.settings.study, result.records
    done, budget = sum(r.done for r in records), result.plan.budget
    tried = budget < study.trials or budget == result.plan.n_points
    if result.plan.settings.sampler.name == "grid" and tried and done >= budget:
        click.echo("every point of the grid has been tried; for more: a wider space under a new study.name")
    elif not result.did_work and result.stop_reason == "complete":
        click.echo(
            f"{result.study_name} is done already; for more: study.trials={study.trials * 2}, or a new study.name"
        )
    counts = ", ".join(
        f"{n} {s}" for s in ("complete", "pruned", "failed", "paused") if (n := sum(r.state == s for r in records))
    )
    click.echo(f"{result.study_name}: {done} of {budget} trials done ({counts})")
    best = result.best
    if best is not None:
        record = next(r for r in records if r.number == best.number)
        click.echo(f"best: {study.metric} {best.value:.4f}, {trial_name(best.number)} ({describe(record)})")
    failed = [r for r in records if r.state == "failed"]
    for record in failed[-3:]:
        last = record.detail.strip().splitlines()[-1] if record.detail.strip() else ""
        click.echo(f"{trial_name(record.number)} failed ({record.reason}): {last}", err=True)
    if result.stop_reason == "failures":
        last = f"{result.study_name}/{failed[-1].number}" if failed else f"{result.study_name}.confirm/0"
        click.echo(
            f"stopped: {study.max_consecutive_failures} trials in a row failed with an error; `overnight logs "
            f"{last}` shows one, and `overnight tune` goes on",
            err=True,
        )
    for line in result.limit_notes:
        click.echo(line)
    if result.mlflow_error:
        click.echo(
            f"MLflow lacks part of it ({result.mlflow_error}); the ledger has it all, and the same line again "
            f"writes what is missing",
            err=True,
        )
    if result.finding is not None and result.finding.search_best is not None:
        from overnight.report import finding

        click.echo(finding.summary_sentence(result.finding))
    if result.report is not None:
        click.echo(f"report: {result.report}")
    elif result.finding is not None:
        click.echo(f"report: {command('report', result.study_name, location=result.plan.settings.location)}")
    if result.finding is not None and result.finding.best is not None and result.stop_reason in ("complete", "limit"):
        option = f"+experiment=best_{result.study_name}"
        click.echo(f"winner: {command('train', option, location=result.plan.settings.location)}")
        for line in result.winner_notes:
            click.echo(line)
    if result.stop_reason != "stopped":
        click.echo(f"look: {command('ui', result.study_name, location=result.plan.settings.location)}")


def forecast(plan: Plan) -> None:
    """The space, three configurations of it, and what the study would take; measures that."""
    from overnight.runner import forecast as forecasts
    from overnight.runner.launch import check_configurations
    from overnight.search import space
    from overnight.search.record import format_duration

    check_configurations(plan, click.echo)
    try:
        found = forecasts.forecast(plan)
    except forecasts.BaselineFailed as error:
        click.echo(str(error), err=True)
        mistake(["conf: the configuration as written must train, and fails as above"])
    size = "no end of" if found.points == float("inf") else f"{found.points:,.0f}"
    click.echo(f"{plan.name}: {size} points in the space")
    for key, draw in plan.space.describe().items():
        click.echo(f"  {key}: {draw}")
    click.echo("three of them, drawn at random:")
    for sample in found.samples:
        click.echo("  " + " ".join(f"{k}={space.to_hydra(v)}" for k, v in sample.items()))
    trainer = plan.settings.trainer
    more = f" and {found.confirmations} confirmations" if found.confirmations else ""
    click.echo(
        f"time: at most about {format_duration(found.seconds)} for {max(plan.budget - found.done, 0)} trials{more} of "
        f"{trainer.max_epochs} epochs in {found.slots} slots, nothing pruned; measured just now on the "
        f"configuration as written, {found.seconds_per_epoch:.3g} s an epoch"
    )
    click.echo(f"disk: about {found.disk_bytes / 1e6:.1f} MB in {plan.settings.location.paths.root}")
