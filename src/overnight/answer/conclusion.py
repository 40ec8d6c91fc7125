"""The end of a night: the search's finalists confirmed, the test set asked once, and the answer written down."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

from overnight import tracking
from overnight.answer import confirm, finding, winner
from overnight.answer.finding import Finding
from overnight.plan import Plan
from overnight.records import TrialRecord
from overnight.settings import Place
from overnight.study import Ledger, StudyView, open_study, view
from overnight.supervisor import Supervisor
from overnight.tracking import Tracker

if TYPE_CHECKING:
    from overnight.answer.report import Report

# Trials. What a smaller search has to say fits into a sentence; `overnight report` makes the page all the same.
_WORTH_A_PAGE = 20


class Worked(Protocol):
    """How a supervisor's work ended."""

    @property
    def why(self) -> str: ...
    @property
    def records(self) -> tuple[TrialRecord, ...]: ...


W = TypeVar("W", bound=Worked)


@dataclass(frozen=True)
class Conclusion(Generic[W]):
    """confirmation: how the work on it ended; None where there is nothing to confirm. trouble: MLflow's. left: what
    there is to say of the winner's config and model, one line each."""

    finding: Finding
    confirmation: W | None
    report: Path | None = None
    trouble: str | None = None
    left: tuple[str, ...] = ()


def conclude(plan: Plan, records: Sequence[TrialRecord], uid: str, work: Callable[[Supervisor], W]) -> Conclusion[W]:
    """Confirm what a search has found, as far as it is not confirmed yet, and say what came of it.

    Args:
        records: the search's, all done. uid: its ledger's. work: has a supervisor run, and says how that ended.
    """
    worked: W | None = None
    if confirm.finalists(plan, records):
        ledger, _ = open_study(confirm.plan_of(plan, records), comparable=False)
        try:
            confirm.enqueue(ledger, plan, records)
            worked = work(Supervisor(ledger, Tracker(ledger.plan, ledger.uid, search_uid=uid), lambda _: None))
            found = finding.found(plan, records, worked.records, ledger.tests())
            if worked.why != "done":
                return Conclusion(found, worked)
            _test(ledger, found)
        finally:
            ledger.close()
    seen, _ = view(plan.settings.place, plan.name)
    assert seen is not None, "it was just worked on"
    found = finding.of(seen)
    if worked is None and len(records) < _WORTH_A_PAGE:
        left = tuple(winner.leave_config(seen))
        return Conclusion(found, None, None, publish(seen, plan.settings.place, found), left)
    _, page, trouble = tell(seen, plan.settings.place)
    # As composed for this start: it is not the study that asks for a model, but somebody.
    registered = [winner.register(seen)] if plan.settings.tracking.register == "auto" and found.best else []
    return Conclusion(found, worked, page, trouble, (*winner.leave_config(seen), *registered))


def tell(seen: StudyView, place: Place) -> tuple[Report, Path, str | None]:
    """Write a study's page, and have MLflow show it; returns the report, where its page lies, and MLflow's trouble."""
    from overnight.answer import page, report  # they take seconds to import

    told, path = report.report_of(seen), place.where.report(seen.name)
    page.write(told, path)
    return told, path, publish(seen, place, told.finding, str(path))


def publish(seen: StudyView, place: Place, found: Finding, *files: str) -> str | None:
    """Have MLflow say what was found; what kept it from that, or None."""
    won, second = found.winner, seen.confirmation
    answer = tracking.Answer(
        finding.sentence(found),
        won.trial.number if won else None,
        won.estimate.mean if won and won.estimate else None,
        won.estimate.half_width if won and won.estimate else None,
        second.uid if second is not None else None,
        {number: t.metrics for number, t in second.tests.items()} if second is not None else {},
        files,
    )
    return tracking.publish(place, seen.plan.experiment, seen.uid, answer)


def _test(ledger: Ledger, found: Finding) -> None:
    """Ask the test set of the winner and of the configuration as written, then keep the winner's weights alone."""
    if found.winner is None:
        return
    confirm.test(ledger, {f.trial.number for f in (found.winner, found.baseline) if f is not None})
    kept = next(r.number for r in found.winner.runs if r.state == "complete")
    confirm.drop_weights(ledger, kept if found.plan.settings.study.keep_checkpoints else None)
