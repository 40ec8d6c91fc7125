"""Publish the result of a study: write the HTML page and send it to MLflow, before a deadline if there is one."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import TYPE_CHECKING

from overnight.config.paths import StudyLocation
from overnight.report import finding, winner_pictures
from overnight.report.finding import Finding
from overnight.search import deadline
from overnight.search.limits import Launch
from overnight.study.snapshot import StudyView, view
from overnight.system import child_process, forkserver
from overnight.system.kill import discard
from overnight.tracking import summary

if TYPE_CHECKING:
    from overnight.report.report import Report


def publish_report(study: StudyView, location: StudyLocation) -> tuple[Report, Path, str | None]:
    """Write the page of a study and publish it in MLflow.

    Returns:
        The report, the path of its page, and why MLflow does not show it; None if it does.
    """
    content, path = _write(study, location), location.paths.study(study.name).report
    return content, path, publish_to_mlflow(study, location, content.finding, str(path))


def publish_before_deadline(study: StudyView, found: Finding, launch: Launch) -> tuple[Path | None, str | None]:
    """Publish as `publish_report` does, but end before the deadline of a launch.

    A page of many trials may take a minute on a busy machine. With a deadline, a child process writes it while this
    process sends the result to MLflow. The child is ended if it takes too long; `overnight report` writes the page
    then.

    Returns:
        The path of the page, None if it was not written, and why MLflow does not show the result; None if it does.
    """
    location = launch.plan.settings.location
    if launch.deadline is None:
        return publish_report(study, location)[1:]
    process, path = forkserver.fork(write_page_in_child, location, study.name), location.paths.study(study.name).report
    try:
        mlflow_error = _publish_in_time(launch, study, location, found)
        process.join(max(launch.publish_due_at() - launch.now(), 0.0))
        written, late = process.exitcode == 0, process.exitcode is None
    finally:
        discard(process)
    if not written:
        why = f"{launch.deadline.setting} left no time for the page" if late else "the page could not be written"
        launch.add_note(f"{why}; `overnight report {study.name}` writes it")
        return None, mlflow_error
    if launch.now() < launch.publish_due_at():
        mlflow_error = _publish_in_time(launch, study, location, found, str(path))
    return path, mlflow_error


def _publish_in_time(
    launch: Launch, study: StudyView, location: StudyLocation, found: Finding, *files: str
) -> str | None:
    """Publish in MLflow, until shortly after the time at which the page is given up."""
    outcome: list[str | None] = []
    thread = threading.Thread(
        target=lambda: outcome.append(publish_to_mlflow(study, location, found, *files)), daemon=True
    )
    thread.start()
    thread.join(max(launch.publish_due_at() + deadline.EXIT_S / 3 - launch.now(), 0.0))
    return outcome[0] if outcome else "there was no time left"


def write_page_in_child(location: StudyLocation, name: str) -> None:
    """Write the page of a study, as the main function of a child process."""
    child_process.begin(new_session=False)
    study, _ = view(location, name)
    assert study is not None, "the parent has read it"
    _write(study, location)


def publish_to_mlflow(study: StudyView, location: StudyLocation, found: Finding, *files: str) -> str | None:
    """Publish the result in MLflow and return why that failed; None if it did not."""
    won, second = found.winner, study.confirmation
    answer = summary.Summary(
        finding.summary_sentence(found),
        won.trial.number if won else None,
        won.estimate.mean if won and won.estimate else None,
        won.estimate.half_width if won and won.estimate else None,
        second.uid if second is not None else None,
        _tests(second) if second is not None else {},
        files,
        winner_pictures.find_folder(study) if won else None,
    )
    return summary.publish(location, study.plan.experiment, study.uid, answer)


def _tests(confirmation: StudyView) -> dict[int, dict[str, float]]:
    """Return number of a run -> its metrics on the test set, as its run shows them."""
    return {
        number: summary.beside_training(tested.metrics, confirmation.records[number])
        for number, tested in confirmation.tests.items()
    }


def _write(study: StudyView, location: StudyLocation) -> Report:
    from overnight.report import page, report  # slow to import

    content = report.build_report(study)
    page.write(content, location.paths.study(study.name).report)
    return content
