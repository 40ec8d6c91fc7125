"""Studies from Python: `tune` and `train`, which the command line calls too."""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from overnight.config.paths import Folder
from overnight.config.settings import Settings
from overnight.report import finished
from overnight.report.live import BrokenPipeSafe, Screen, choose_screen
from overnight.report.progress import progress
from overnight.runner import notifier, preflight, shared_exit
from overnight.runner.launch import Say, build_checked_plan, check_configurations, check_home, warm_up
from overnight.runner.notifier import Notifier
from overnight.runner.stop_state import StopReason
from overnight.runner.supervisor import Ending, Supervisor
from overnight.search.build_plan import plan_for_training
from overnight.search.limits import Launch, SearchLimits
from overnight.search.plan import Plan, devices_of
from overnight.search.record import TrialRecord, best_of
from overnight.search.terminator import Terminator
from overnight.study import warm_start
from overnight.study.lost import reject_lost
from overnight.study.open import join, open_study
from overnight.study.session import StudySession
from overnight.study.snapshot import StudyView
from overnight.study.storage.access import no_home_if_refused
from overnight.system import forkserver
from overnight.system.awake import awake
from overnight.system.signals import Signals
from overnight.tracking import environment
from overnight.tracking.sync import MlflowSync

if TYPE_CHECKING:
    import pandas as pd

    from overnight.report.finding import Finding


@dataclass(frozen=True)
class Trial:
    """One trial of a study.

    Attributes:
        objective: the value that the study optimizes; None while there is none.
        params: name of a searched parameter -> value.
    """

    number: int
    state: str
    objective: float | None
    params: dict[str, Any]


@dataclass(frozen=True)
class Result:
    """The state of a study at the end of a launch.

    Attributes:
        messages: what opening the study reported, line by line.
        mlflow_error: why MLflow is not complete. The Optuna storage is, and the next launch repairs MLflow.
        records: of all trials, by number.
        signal: the one that stopped the launch.
        did_work: False if nothing was left to do.
        finding: the answer, once the search has ended.
        report: the HTML page with the answer.
        winner_notes: what was written for the winner, its configuration and its model, line by line.
        limit_notes: what a limit left undone, line by line.
        published: False if another process that shares the study published the answer.
        unconfirmed: the trials of the confirmation that failed.
    """

    study_name: str
    stop_reason: StopReason
    messages: tuple[str, ...]
    mlflow_error: str | None
    records: tuple[TrialRecord, ...] = field(repr=False)
    plan: Plan = field(repr=False)
    signal: int | None = None
    did_work: bool = True
    finding: Finding | None = field(default=None, repr=False)
    report: Path | None = None
    winner_notes: tuple[str, ...] = ()
    limit_notes: tuple[str, ...] = ()
    published: bool = True
    unconfirmed: tuple[TrialRecord, ...] = field(default=(), repr=False)

    @property
    def best(self) -> Trial | None:
        """The complete trial with the best objective, the first of equals; None if none is complete."""
        record = best_of(self.records, self.plan.settings)
        return _trial(record) if record is not None else None

    @property
    def trials(self) -> pd.DataFrame:
        """One row per trial, indexed by number: state, objective, reason, epochs, seconds, and one `params.KEY` column
        per parameter."""
        import pandas as pd

        rows = [
            {
                "number": r.number,
                "state": r.state,
                "objective": r.objective,
                "reason": r.reason,
                "epochs": len(r.history),
                "seconds": sum(e.seconds for e in r.history),
                **{f"params.{k}": v for k, v in r.params.items()},
            }
            for r in self.records
        ]
        return pd.DataFrame(rows).set_index("number")

    @property
    def all_failed(self) -> bool:
        return bool(self.records) and all(r.state == "failed" for r in self.records)


def tune(
    overrides: Iterable[str] = (), config_dir: Folder = None, *, extend: bool = False, config_name: str | None = None
) -> Result:
    """Run a study until its budget is spent. The same call resumes a study that was stopped.

    Args:
        overrides: Hydra overrides, e.g. ["model=mlp", "study.trials=20", "optimizer.lr=tag(log,interval(1e-4,1e-1))"].
        config_dir: a directory of your own configs.
        extend: if the search space only grew, move the existing trials into the new space.
        config_name: the primary config of your own Hydra project in `config_dir`.

    Raises:
        ConfigError: with every mistake in the request; nothing was started.
        StudyInUse: another process runs this study.
        KeyboardInterrupt: after running trials were saved; the same call resumes the study.
    """
    # Ctrl-C and a notebook's stop button request a stop. Other signals belong to the calling program.
    with Signals([signal.SIGINT]) as signals, environment.restored():
        result = run(build_checked_plan(overrides, config_dir, True, config_name), extend=extend, signals=signals)
    if result.stop_reason is StopReason.STOPPED:
        raise KeyboardInterrupt(f"{result.study_name} is paused; the same call resumes it")
    return result


def train(overrides: Iterable[str] = (), config_dir: Folder = None, *, config_name: str | None = None) -> Trial:
    """Train one configuration, tracked in the study and MLflow experiment `train`. Raises what `tune` raises."""
    with Signals([signal.SIGINT]) as signals, environment.restored():
        result = run_one(build_checked_plan(overrides, config_dir, False, config_name), signals=signals)
    if result.stop_reason is StopReason.STOPPED:
        raise KeyboardInterrupt("the trial is paused; the same call resumes it")
    return _trial(result.records[-1])


def run(
    plan: Plan,
    *,
    extend: bool = False,
    screen: Screen | None = None,
    signals: Signals | None = None,
    say: Say = lambda _: None,
    doing: Say = lambda _: None,
    command: Sequence[str] = (),
) -> Result:
    """Run a plan's study.

    Args:
        command: the overrides that asked for it.
        signals: those that save the running trials and stop the study.
        say: called with each message before the first trial starts; `Result.messages` holds them too.
        doing: called with what the user waits for, while no screen shows progress; an empty text ends it.
    """
    began = time.time()
    with no_home_if_refused(plan.settings.location):
        check_home(plan)
        reject_lost(plan)
        addresses = notifier.addresses(plan.settings.notify)
        plan, messages = warm_start.resolve(plan)
        doing("reading the study ...")
        ignored = environment.notes(plan.settings.location)
        if (study := finished.read(plan)) is not None:
            for note in ignored:
                say(note)
            return _finished(study, [*messages, *ignored])
        warm_up(plan.settings.location)
        check_configurations(plan, say, doing, runs_here=True)
    doing("opening the study ...")
    session, opened = open_study(plan, extend=extend, say=say)
    messages = [*messages, *opened, *ignored]
    for message in messages:
        say(message)
    notifications = notifier.notifications(plan, addresses, say)
    result = _run_session(session, began, screen, signals or Signals(), notifications, doing, command)
    return replace(result, messages=tuple(messages))


def run_launched(
    name: str, own: Settings, signals: Signals, *, screen: Screen | None = None, say: Say = lambda _: None
) -> Result:
    """Run trials of a study that another process launched, with the settings `own` of this machine.

    Raises:
        ConfigError: the study needs code that this machine does not allow, or data that it cannot get.
        Unreachable: the study storage cannot be reached at the start, or at the end.
    """
    began = time.time()

    def missing_data(plan: Plan) -> list[str]:
        return [] if plan.settings.preflight == "never" else [*preflight.find_missing_data(plan, say)]

    session = join(name, own, missing_data)
    try:
        warm_up(own.location)
        check_home(session.plan)
        notifications = notifier.notifications(session.plan, notifier.addresses(session.plan.settings.notify), say)
    except BaseException:
        session.close()
        raise
    return _run_session(session, began, screen, signals, notifications)


def run_one(
    plan: Plan,
    *,
    screen: Screen | None = None,
    signals: Signals | None = None,
    say: Say = lambda _: None,
    doing: Say = lambda _: None,
) -> Result:
    """Train a plan's baseline configuration as one more trial of the study `train`. The result holds its record."""
    plan = plan_for_training(plan)
    check_home(plan)
    warm_up(plan.settings.location)
    doing("opening the study ...")
    session, opened = open_study(plan, comparable=False)
    messages = (*opened, *environment.notes(plan.settings.location))
    for message in messages:
        say(message)
    with contextlib.closing(session):
        number = session.queue.enqueue(plan.config({}))
        mlflow_sync = MlflowSync(plan, session.attributes.uid, coordinator=session.coordinator, with_parent=False)
        signals = signals or Signals()
        ending = _run_supervisor(Supervisor(session, mlflow_sync, only=number), screen, signals, doing=doing)
    record = next(r for r in ending.records if r.number == number)
    return replace(_result(plan, replace(ending, records=(record,)), signals), messages=messages)


def _run_session(
    session: StudySession,
    began: float,
    screen: Screen | None,
    signals: Signals,
    notifications: AbstractContextManager[Notifier],
    doing: Say = lambda _: None,
    command: Sequence[str] = (),
) -> Result:
    """Search, confirm the finalists, and publish the answer."""
    plan = session.plan
    with contextlib.ExitStack() as stack:
        news = stack.enter_context(notifications)
        stack.callback(session.close)  # before the notifier waits for its last delivery
        launch = Launch(plan, began, session.attributes.set_launch, launched_at=session.coordinator.begin_launch())
        if launch.deadline is not None:
            news.wait_until(launch.deadline.ends_at)
        work = partial(_run_supervisor, screen=screen, signals=signals, news=news, doing=doing)
        with contextlib.closing(Terminator(plan, forkserver.fork)) as terminator:
            limits = SearchLimits(launch, len(devices_of(plan)), terminator)
            mlflow_sync = MlflowSync(plan, session.attributes.uid, coordinator=session.coordinator)
            search = work(Supervisor(session, mlflow_sync, limits=limits))
        result = _result(plan, search, signals)
        if search.stop_reason in (StopReason.COMPLETE, StopReason.LIMIT):
            result = _with_answer(result, search, session, work, launch, doing)
        if result.stop_reason is StopReason.FAILURES:
            shared_exit.give_up(session)
        result = replace(result, signal=_first(signals), limit_notes=tuple(launch.notes))
        if _is_final(result, launch):
            finished.keep(session, _kept(result, command))
        _notify_of_end(news, result)
        return result


def _is_final(result: Result, launch: Launch) -> bool:
    """Return whether the next launch has nothing to do, unless a store changes.

    What a deadline has cut is made up for by the next launch, as is what a stop or failures left undone.
    """
    has_ended = result.stop_reason in (StopReason.COMPLETE, StopReason.LIMIT) and launch.ended_by != "deadline"
    has_answer = result.finding is not None and result.published and result.mlflow_error is None
    return has_ended and has_answer and not any(note.endswith(finished.TRIED_AGAIN) for note in result.winner_notes)


def _kept(result: Result, command: Sequence[str]) -> dict[str, Any]:
    """Return what of a result the stores do not hold, as JSON."""
    return {
        "stop_reason": result.stop_reason.value,
        "limit_notes": list(result.limit_notes),
        "winner_notes": list(result.winner_notes),
        "report": result.report is not None,
        "command": list(command),
    }


def _finished(study: StudyView, messages: Sequence[str]) -> Result:
    """Return the result of a study that has nothing left to do. See `_kept`."""
    from overnight.report import finding

    kept = study.finished
    return Result(
        study.name,
        StopReason(kept["stop_reason"]),
        tuple(messages),
        None,
        study.records,
        study.plan,
        did_work=False,
        finding=finding.from_view(study),
        report=study.plan.paths.report if kept["report"] else None,
        winner_notes=tuple(kept["winner_notes"]),
        limit_notes=tuple(kept["limit_notes"]),
    )


def _with_answer(
    result: Result,
    search: Ending,
    session: StudySession,
    work: Callable[[Supervisor], Ending],
    launch: Launch,
    doing: Say,
) -> Result:
    doing("comparing the trials ...")
    from overnight.report import finalize  # its imports must not delay the search

    ended = finalize.finalize_study(session, session.plan, search.records, work, launch, doing)
    last = ended.confirmation or search
    is_cut = last.stop_reason is StopReason.COMPLETE and launch.ended_by is not None
    return replace(
        result,
        stop_reason=StopReason.LIMIT if is_cut else last.stop_reason,
        mlflow_error=ended.mlflow_error or last.mlflow_error or search.mlflow_error,
        did_work=search.did_work or (last.did_work and last is not search),
        finding=ended.finding,
        report=ended.report,
        winner_notes=ended.winner_notes,
        published=ended.published,
        unconfirmed=tuple(r for r in last.records if r.state == "failed") if last is not search else (),
    )


def _run_supervisor(
    supervisor: Supervisor,
    screen: Screen | None,
    signals: Signals,
    news: Notifier | None = None,
    doing: Say = lambda _: None,
) -> Ending:
    doing("")  # from here on the screen says it
    shown = BrokenPipeSafe(screen or choose_screen())

    def show(s: Supervisor) -> None:
        shown.update(lambda: progress(s))
        if news is not None:
            news.report_progress(s.disk.is_full, s.outcomes.stalled)

    with signals.working(supervisor.stop), awake(supervisor.plan.settings.stay_awake):
        try:
            ending = supervisor.run(show)
            shown.update(lambda: progress(supervisor), force=True)
        finally:
            shown.close()
    return ending


def _notify_of_end(news: Notifier, result: Result) -> None:
    """Notify of the end of a study, unless a user stopped it, it had ended before, or another process did."""
    if not result.did_work or not result.published:
        return
    failed = [r for r in result.records if r.state == "failed"]
    last = f", the last with {failed[-1].reason}" if failed else ""
    if result.stop_reason is StopReason.FAILURES:
        limit = result.plan.settings.study.max_consecutive_failures
        if again := result.unconfirmed:
            last = f" in the confirmation, the last with {again[-1].reason}"
        news.send("failed", f"stopped: {limit} in a row failed{last}")
    elif result.all_failed:
        news.send("failed", f"all {len(failed)} trials failed{last}")
    elif result.stop_reason is not StopReason.STOPPED and result.finding is not None:
        from overnight.report import finding

        news.send("done", finding.summary_sentence(result.finding))


def _result(plan: Plan, ending: Ending, signals: Signals) -> Result:
    return Result(
        plan.name, ending.stop_reason, (), ending.mlflow_error, ending.records, plan, _first(signals), ending.did_work
    )


def _first(signals: Signals) -> int | None:
    return signals.received[0] if signals.received else None


def _trial(record: TrialRecord) -> Trial:
    return Trial(record.number, record.state, record.objective, dict(record.params))
