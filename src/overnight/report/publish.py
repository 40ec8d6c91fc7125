"""The answer told: the report's page, and what MLflow shows of it; within a deadline where there is one."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import TYPE_CHECKING

from overnight.config.paths import StudyLocation
from overnight.report import finding
from overnight.report.finding import Finding
from overnight.search import deadline
from overnight.search.limits import Launch
from overnight.study.snapshot import StudyView, view
from overnight.system import child_process, forkserver
from overnight.system.kill import discard
from overnight.tracking import summary

if TYPE_CHECKING:
    from overnight.report.report import Report


def publish_report(seen: StudyView, location: StudyLocation) -> tuple[Report, Path, str | None]:
    """Write a study's page, and have MLflow show it; returns the report, where its page lies, and MLflow's trouble."""
    told, path = _write(seen, location), location.paths.study(seen.name).report
    return told, path, publish_to_mlflow(seen, location, told.finding, str(path))


def publish_before_deadline(seen: StudyView, found: Finding, launch: Launch) -> tuple[Path | None, str | None]:
    """The same; returns the page, and MLflow's trouble.

    A report of many trials on a busy machine may take a minute. Where there is a deadline a process writes the page
    while MLflow hears the answer, and is ended where it takes too long: `overnight report` writes it then.
    """
    location = launch.plan.settings.location
    if launch.deadline is None:
        return publish_report(seen, location)[1:]
    process, path = forkserver.fork(write_page_in_child, location, seen.name), location.paths.study(seen.name).report
    try:
        trouble = _publish_in_time(launch, seen, location, found)
        process.join(max(launch.publish_due_at() - launch.now(), 0.0))
        written, late = process.exitcode == 0, process.exitcode is None
    finally:
        discard(process)
    if not written:
        why = f"{launch.deadline.setting} left no time for the page" if late else "the page could not be written"
        launch.add_note(f"{why}: `overnight report {seen.name}` writes it")
        return None, trouble
    if launch.now() < launch.publish_due_at():
        trouble = _publish_in_time(launch, seen, location, found, str(path))
    return path, trouble


def _publish_in_time(
    launch: Launch, seen: StudyView, location: StudyLocation, found: Finding, *files: str
) -> str | None:
    """Have MLflow hear the answer, as far as it listens until soon after the page is given up."""
    said: list[str | None] = []
    thread = threading.Thread(target=lambda: said.append(publish_to_mlflow(seen, location, found, *files)), daemon=True)
    thread.start()
    thread.join(max(launch.publish_due_at() + deadline.EXIT_S / 3 - launch.now(), 0.0))
    return said[0] if said else "there was no time left"


def write_page_in_child(location: StudyLocation, name: str) -> None:
    """In a process of its own: write a study's page."""
    child_process.begin(new_session=False)
    seen, _ = view(location, name)
    assert seen is not None, "whoever wants its page has seen it"
    _write(seen, location)


def publish_to_mlflow(seen: StudyView, location: StudyLocation, found: Finding, *files: str) -> str | None:
    """Have MLflow say what was found; what kept it from that, or None."""
    won, second = found.winner, seen.confirmation
    answer = summary.Summary(
        finding.summary_sentence(found),
        won.trial.number if won else None,
        won.estimate.mean if won and won.estimate else None,
        won.estimate.half_width if won and won.estimate else None,
        second.uid if second is not None else None,
        {number: t.metrics for number, t in second.tests.items()} if second is not None else {},
        files,
    )
    return summary.publish(location, seen.plan.experiment, seen.uid, answer)


def _write(seen: StudyView, location: StudyLocation) -> Report:
    from overnight.report import page, report  # they take seconds to import

    told = report.build_report(seen)
    page.write(told, location.paths.study(seen.name).report)
    return told
