"""The end of a night: the search's finalists confirmed, the test set asked once, and the answer written down."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from overnight.report import confirm, finding, publish, winner
from overnight.report.finding import Finding
from overnight.runner import exit_policy
from overnight.runner.stop_state import StopReason
from overnight.runner.supervisor import Ending, Supervisor
from overnight.search import deadline
from overnight.search.limits import ConfirmationLimits, Launch
from overnight.search.plan import Plan
from overnight.search.record import TrialRecord
from overnight.study.open import open_study
from overnight.study.session import StudySession
from overnight.study.snapshot import StudyView, view
from overnight.system.devices import slot_devices
from overnight.tracking.sync import MlflowSync

# Trials. What a smaller search has to say fits into a sentence; `overnight report` makes the page all the same.
_WORTH_A_PAGE = 20
# Seconds that must be left of a deadline for the winner's network to go into MLflow's registry.
_A_MODEL_S = 60.0


@dataclass(frozen=True)
class FinalizedStudy:
    """confirmation: how the work on it ended; None where there is nothing to confirm. trouble: MLflow's. left: what
    there is to say of the winner's config and model, one line each. told: False where another process told it."""

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
) -> FinalizedStudy:
    """Confirm what a search has found, as far as it is not confirmed yet and there is time, and say what came of it.

    Args:
        records: the search's. work: has a supervisor run, and says how that ended. launch: this one.
    """
    worked: Ending | None = None
    if confirm.finalists(plan, records):
        session, _ = open_study(confirm.confirmation_plan(plan, records), comparable=False)
        session.attributes.search = search.attributes
        try:
            top = _affordable(launch, records, session.records())
            limits = ConfirmationLimits(
                launch, records, confirm.enqueue(session, plan, records, top), deadline.test_set_s(records)
            )
            if top != 0:
                mlflow_sync = MlflowSync(
                    session.plan,
                    session.attributes.uid,
                    search_uid=search.attributes.uid,
                    coordinator=session.coordinator,
                )
                supervisor = Supervisor(session, mlflow_sync, limits=limits)
                if search.attributes.stop_requested:  # while its supervisor closed
                    supervisor.stop()
                worked = work(supervisor)
            found = finding.from_records(plan, records, session.records(), session.attributes.tests)
            if worked is not None and worked.stop_reason not in (StopReason.COMPLETE, StopReason.LIMIT):
                return FinalizedStudy(found, worked)
            _say_what_was_cut(launch, found)
            with search.coordinator.lock("test set"):
                _test(session, found, launch, records)
            exit_policy.await_tests(session, _compared(found), launch)
        finally:
            session.close()
    with search.coordinator.lock("answer"):
        seen, now = _seen(plan)
        if _is_told(search.coordinator.published, seen):  # somebody who shares it was quicker
            said = FinalizedStudy(now, worked, published=False)
        else:
            said = _tell(seen, now, worked, launch)
            search.coordinator.set_published(_known(seen))
        if exit_policy.is_over(search, _running(seen), launch):
            search.coordinator.close_study()
        return said


def _seen(plan: Plan) -> tuple[StudyView, Finding]:
    seen, _ = view(plan.settings.location, plan.name)
    assert seen is not None, "it was just worked on"
    return seen, finding.from_view(seen)


def _known(seen: StudyView) -> dict[str, int]:
    """How much of a study an answer rests on."""
    second = seen.confirmation
    return {
        "trials": seen.count("complete", "pruned", "failed"),
        "confirmations": seen.confirmed,
        "tests": len(second.tests) if second is not None else 0,
    }


def _is_told(told: Mapping[str, int], seen: StudyView) -> bool:
    return bool(told) and all(told.get(name, 0) >= count for name, count in _known(seen).items())


def _running(seen: StudyView) -> int:
    """How many trials somebody is at, the confirmation's included."""
    second = seen.confirmation
    return seen.count("running") + (second.count("running") if second is not None else 0)


def _compared(found: Finding) -> set[int]:
    """The numbers of the trainings that the test set decides between."""
    compared = [f for f in (found.winner, found.baseline) if f is not None]
    return {r.number for f in compared for r in f.runs if r.state == "complete"}


def _tell(seen: StudyView, found: Finding, worked: Ending | None, launch: Launch) -> FinalizedStudy:
    if worked is None and len(seen.records) < _WORTH_A_PAGE:
        trouble = publish.publish_to_mlflow(seen, seen.plan.settings.location, found)
        return FinalizedStudy(found, None, None, trouble, tuple(winner.write_config(seen)))
    left = winner.write_config(seen)
    page, trouble = publish.publish_before_deadline(seen, found, launch)
    # As composed for this start: it is not the study that asks for a model, but somebody.
    if launch.plan.settings.tracking.register == "auto" and found.best:
        left.append(_registered(seen, launch))
    return FinalizedStudy(found, worked, page, trouble, tuple(left))


def _registered(seen: StudyView, launch: Launch) -> str:
    if launch.deadline is None:
        return winner.register(seen)
    time_s = launch.publish_due_at() - launch.now() - _A_MODEL_S / 2
    if time_s > _A_MODEL_S / 2:
        return winner.register(seen, min(time_s, winner.EXPORT_TIMEOUT_S))
    said, name = launch.deadline.setting, launch.plan.name
    return f"no model in MLflow's registry: {said} left no time; `overnight register {name}` writes it"


def _affordable(launch: Launch, records: Sequence[TrialRecord], confirmations: Sequence[TrialRecord]) -> int | None:
    """How many finalists there is time for; None where nothing presses."""
    if launch.deadline is None:
        return None
    room_s = launch.answer_due_at(len(records)) - deadline.SWITCH_S - launch.now()
    slots = len(slot_devices(launch.plan.settings.slots))
    return confirm.affordable_size(launch.plan, records, confirmations, room_s, slots).finalists


def _say_what_was_cut(launch: Launch, found: Finding) -> None:
    if launch.deadline is None or found.done >= found.asked:
        return
    tried = [f for f in found.finalists if f.values]
    seeds = sorted({len(f.values) for f in tried})
    several = " to ".join(map(str, dict.fromkeys((seeds[0], seeds[-1])))) if seeds else ""
    what = (
        f"cut the confirmation to {found.done} of {found.asked} trainings: {len(tried)} of {len(found.finalists)} "
        f"finalists on {several} of {found.plan.confirm_seeds} seeds"
        if tried
        else "left no time for a confirmation"
    )
    launch.end("deadline", f"{launch.deadline.setting} {what}")


def _test(session: StudySession, found: Finding, launch: Launch, records: Sequence[TrialRecord]) -> None:
    """Ask the test set of the winner and of the configuration as written, then, once all is confirmed, keep the
    winner's weights alone."""
    if found.winner is None:
        return
    asked = {f.trial.number for f in (found.winner, found.baseline) if f is not None}
    if not confirm.evaluate_on_test_set(
        session, asked, launch.answer_due_at(len(records)), deadline.test_set_s(records)
    ):
        assert launch.deadline is not None
        launch.end("deadline", f"{launch.deadline.setting} cut the test set: not every seed was tested")
    elif found.done >= found.asked:
        kept = next(r.number for r in found.winner.runs if r.state == "complete")
        confirm.drop_weights(session, kept if found.plan.settings.study.keep_checkpoints else None)
