"""The end of a study: confirm the finalists, evaluate the test set once, and publish the result."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from overnight.report import confirm, finding, publish, winner, winner_pictures
from overnight.report.finding import Finding
from overnight.runner import shared_exit
from overnight.runner.stop_state import StopReason
from overnight.runner.supervisor import Ending, Supervisor
from overnight.search import deadline
from overnight.search.limits import ConfirmationLimits, Launch
from overnight.search.plan import Plan, devices_of
from overnight.search.record import TrialRecord
from overnight.study.open import open_study
from overnight.study.session import StudySession
from overnight.study.snapshot import StudyView, view
from overnight.tracking.sync import MlflowSync

# With fewer trials only the sentence is published; `overnight report` writes the page.
_MIN_TRIALS_FOR_PAGE = 20
# Seconds before a deadline that writing the winner's network to MLflow's registry needs.
_REGISTER_S = 60.0


@dataclass(frozen=True)
class FinalizedStudy:
    """The result of a study, and what was published of it.

    Attributes:
        confirmation: How the supervisor of the confirmation ended; None if there was nothing to train.
        report: The HTML page, if one was written.
        mlflow_error: Why MLflow does not show the result; None if it does.
        winner_notes: What was written for the winner, its configuration and its model, line by line.
        published: False if another process that shares the study published the result.
    """

    finding: Finding
    confirmation: Ending | None
    report: Path | None = None
    mlflow_error: str | None = None
    winner_notes: tuple[str, ...] = ()
    published: bool = True


def finalize_study(
    search: StudySession,
    plan: Plan,
    records: Sequence[TrialRecord],
    work: Callable[[Supervisor], Ending],
    launch: Launch,
    doing: Callable[[str], None] = lambda _: None,
) -> FinalizedStudy:
    """Confirm the finalists of a search, as far as there is time, and publish the result.

    Args:
        records: The trials of the search.
        work: Runs a supervisor and returns how it ended.
        doing: Called with what the user waits for.
    """
    ending: Ending | None = None
    if confirm.finalists(plan, records):
        session, _ = open_study(confirm.confirmation_plan(plan, records), comparable=False)
        session.attributes.search = search.attributes
        try:
            ending = _confirm(search, session, records, work, launch)
            found = finding.from_records(plan, records, session.records(), session.attributes.tests)
            if ending is not None and ending.stop_reason not in (StopReason.COMPLETE, StopReason.LIMIT):
                return FinalizedStudy(found, ending)
            _note_unconfirmed(launch, found)
            doing("evaluating the winner and the baseline on the test set ...")
            with search.coordinator.lock("test set"):
                _evaluate_winner(session, found, launch, records)
            shared_exit.await_tests(session, _compared_runs(found), launch)
        finally:
            session.close()
    with search.coordinator.lock("answer"):
        study, _ = view(plan.settings.location, plan.name)
        assert study is not None, "its session is open"
        if _is_published(search.coordinator.published, study):
            result = FinalizedStudy(finding.from_view(study), ending, published=False)
        else:
            result = _publish(study, ending, launch, doing)
            search.coordinator.set_published(_progress(study))
        if shared_exit.is_over(search, _running(study), launch):
            search.coordinator.close_study()
        return result


def _confirm(
    search: StudySession,
    session: StudySession,
    records: Sequence[TrialRecord],
    work: Callable[[Supervisor], Ending],
    launch: Launch,
) -> Ending | None:
    """Train the confirmation, as far as there is time; None if there is none."""
    top = _affordable(launch, records, session.records())
    wanted = confirm.enqueue(session, search.plan, records, top)
    if top == 0:
        return None
    mlflow_sync = MlflowSync(
        session.plan,
        session.attributes.uid,
        search_uid=search.attributes.uid,
        search_records=records,
        coordinator=session.coordinator,
    )
    limits = ConfirmationLimits(launch, records, wanted, deadline.test_set_s(records))
    supervisor = Supervisor(session, mlflow_sync, limits=limits)
    if search.attributes.stop_requested:  # after the supervisor of the search ended
        supervisor.stop()
    return work(supervisor)


def _progress(study: StudyView) -> dict[str, int]:
    """Return how much of a study a result is based on."""
    second = study.confirmation
    return {
        "trials": study.count("complete", "pruned", "failed"),
        "confirmations": study.confirmed,
        "tests": len(second.tests) if second is not None else 0,
    }


def _is_published(published: Mapping[str, int], study: StudyView) -> bool:
    """Whether the result was published, by another process, with all that is known now."""
    return bool(published) and all(published.get(name, 0) >= count for name, count in _progress(study).items())


def _running(study: StudyView) -> int:
    """Return the number of running trials of a study and its confirmation."""
    second = study.confirmation
    return study.count("running") + (second.count("running") if second is not None else 0)


def _compared_runs(found: Finding) -> set[int]:
    """Return the numbers of the complete runs of winner and baseline, which the test set compares."""
    compared = [f for f in (found.winner, found.baseline) if f is not None]
    return {r.number for f in compared for r in f.runs if r.state == "complete"}


def _publish(study: StudyView, ending: Ending | None, launch: Launch, doing: Callable[[str], None]) -> FinalizedStudy:
    doing("writing the report ...")
    found, notes = finding.from_view(study), winner.write_config(study)
    if ending is None and len(study.records) < _MIN_TRIALS_FOR_PAGE:
        mlflow_error = publish.publish_to_mlflow(study, study.plan.settings.location, found)
        return FinalizedStudy(found, None, None, mlflow_error, tuple(notes))
    drawing_s = min(launch.publish_due_at() - launch.now(), winner_pictures.DRAW_TIMEOUT_S) / 2
    winner_pictures.draw_missing(study, launch.plan.settings.pictures, drawing_s)
    page, mlflow_error = publish.publish_before_deadline(study, found, launch)
    # The setting of this launch, not the stored one: a user asks for a model, not the study.
    if launch.plan.settings.tracking.register == "auto" and found.best:
        doing("registering the winner's network in MLflow ...")
        notes.append(_register(study, launch))
    return FinalizedStudy(found, ending, page, mlflow_error, tuple(notes))


def _register(study: StudyView, launch: Launch) -> str:
    if launch.deadline is None:
        return winner.register(study)
    time_s = launch.publish_due_at() - launch.now() - _REGISTER_S / 2
    if time_s > _REGISTER_S / 2:
        return winner.register(study, min(time_s, winner.EXPORT_TIMEOUT_S))
    setting, name = launch.deadline.setting, launch.plan.name
    return f"no model in MLflow's registry: {setting} left no time; `overnight register {name}` writes it"


def _affordable(launch: Launch, records: Sequence[TrialRecord], confirmations: Sequence[TrialRecord]) -> int | None:
    """Return the number of finalists that there is time for; None if there is no deadline."""
    if launch.deadline is None:
        return None
    available_s = launch.answer_due_at(len(records)) - deadline.SWITCH_S - launch.now()
    slots = len(devices_of(launch.plan))
    return confirm.affordable_size(launch.plan, records, confirmations, available_s, slots).finalists


def _note_unconfirmed(launch: Launch, found: Finding) -> None:
    """Note on the launch how far the deadline cut the confirmation."""
    if launch.deadline is None or found.confirmed >= found.confirmations:
        return
    tried = [f for f in found.finalists if f.values]
    seeds = sorted({len(f.values) for f in tried})
    seed_range = " to ".join(map(str, dict.fromkeys((seeds[0], seeds[-1])))) if seeds else ""
    effect = (
        f"cut the confirmation to {found.confirmed} of {found.confirmations} trainings: {len(tried)} of "
        f"{len(found.finalists)} finalists on {seed_range} of {found.plan.confirm_seeds} seeds"
        if tried
        else "left no time for a confirmation"
    )
    launch.end("deadline", f"{launch.deadline.setting} {effect}")


def _evaluate_winner(session: StudySession, found: Finding, launch: Launch, records: Sequence[TrialRecord]) -> None:
    """Evaluate winner and baseline on the test set; keep only the winner's weights once everything is confirmed."""
    if found.winner is None:
        return
    trials = {f.trial.number for f in (found.winner, found.baseline) if f is not None}
    until, duration_s = launch.answer_due_at(len(records)), deadline.test_set_s(records)
    if not confirm.evaluate_on_test_set(session, trials, until, duration_s):
        assert launch.deadline is not None
        launch.end("deadline", f"{launch.deadline.setting} cut the test set: not every seed was tested")
    elif found.confirmed >= found.confirmations:
        kept = next(r.number for r in found.winner.runs if r.state == "complete")
        confirm.delete_weights(session, kept if found.plan.settings.study.keep_checkpoints else None)
