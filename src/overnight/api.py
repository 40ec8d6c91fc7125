"""Studies from Python: `tune` and `train`, of which the command line is a thin layer."""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from overnight import tracking
from overnight.config.paths import StudyLocation
from overnight.config.problems import ConfigError
from overnight.config.sections import Settings
from overnight.report.live import BrokenPipeSafe, ProgressSnapshot, Screen, Slot, screen_for
from overnight.runner import notifier, preflight
from overnight.runner.notifier import Notifier
from overnight.runner.supervisor import Supervisor, Why
from overnight.search import plan as plans
from overnight.search.limits import Launch, SearchLimits
from overnight.search.plan import Plan
from overnight.search.record import TrialRecord, best_of
from overnight.search.terminator import Terminator
from overnight.study import warm_start
from overnight.study.open import join, open_study
from overnight.study.session import StudySession
from overnight.study.snapshot import view
from overnight.study.storage import database
from overnight.study.storage.database import free_mib, holder_of
from overnight.system import forkserver
from overnight.system.awake import awake
from overnight.system.devices import slot_devices
from overnight.system.signals import Signals
from overnight.tracking import MlflowSync

if TYPE_CHECKING:
    import pandas as pd

    from overnight.report.finding import Finding


_TAKEN_UP_WITHIN_S = 6.0  # by a worker that is idle, after a study was launched


@dataclass(frozen=True)
class Trial:
    """One trial. value: its objective; None where it failed or has none yet. params: searched name -> value."""

    number: int
    state: str
    value: float | None
    params: dict[str, Any]


@dataclass(frozen=True)
class Result:
    """What a study has come to. why: done, stopped, failures, or a limit that came before the budget was spent; said:
    what there was to say on opening it; cut: what the limit ended, line by line."""

    study_name: str
    why: Why
    said: tuple[str, ...]
    trouble: str | None
    records: tuple[TrialRecord, ...] = field(repr=False)
    plan: Plan = field(repr=False)
    signal: int | None = None
    worked: bool = True  # False where there was nothing left to do
    finding: Finding | None = field(default=None, repr=False)  # what it all says, once the search is done
    report: Path | None = None  # the page that says so
    left: tuple[str, ...] = ()  # lines on what the winner's config and model have become
    cut: tuple[str, ...] = ()  # lines on what a limit left undone
    told: bool = True  # False where another process that shares the study told its answer

    @property
    def best(self) -> Trial | None:
        """The complete trial with the best objective, the earliest of equals; None where none is complete."""
        record = best_of(self.records, self.plan.settings)
        return _trial(record) if record is not None else None

    @property
    def trials(self) -> pd.DataFrame:
        """A row a trial, by number: state, value, reason, epochs, seconds, and a column `params.KEY` a parameter."""
        import pandas as pd

        rows = [
            {
                "number": r.number,
                "state": r.state,
                "value": r.objective,
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


def tune(overrides: Iterable[str] = (), config_dir: str | Path | None = None, *, extend: bool = False) -> Result:
    """Run a study, or go on with it, until its budget is spent.

    Args:
        overrides: Hydra's, e.g. ["model=mlp", "study.trials=20", "optimizer.lr=tag(log,interval(1e-4,1e-1))"].
        config_dir: a folder of your own configs.
        extend: where the search space only grew, take the old trials into the new one.

    Raises:
        ConfigError: with every mistake in what was asked, nothing started. Held: another process is at this study.
        KeyboardInterrupt: after running trials were saved; the same call goes on.
    """
    with _interrupts() as signals:
        result = run(plans.make(overrides, config_dir), extend=extend, signals=signals)
    if result.why == "stopped":
        raise KeyboardInterrupt(f"{result.study_name} is paused; the same call goes on with it")
    return result


def train(overrides: Iterable[str] = (), config_dir: str | Path | None = None) -> Trial:
    """Train one configuration, tracked in the study and MLflow experiment `train`. Raises as `tune` does."""
    with _interrupts() as signals:
        result = run_one(plans.make(overrides, config_dir, searching=False), signals=signals)
    if result.why == "stopped":
        raise KeyboardInterrupt("the trial is paused; the same call goes on with it")
    return _trial(result.records[-1])


def _interrupts() -> Signals:
    """Ctrl-C, or a notebook's button, asks for a stop; whatever else ends a process is the program's own."""
    return Signals([signal.SIGINT])


def run(
    plan: Plan,
    *,
    extend: bool = False,
    screen: Screen | None = None,
    signals: Signals | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> Result:
    """Work on a plan's study.

    signals: those that have it save and stop. say: told, line by line and before the first trial, what there is to say
    of this start; the result keeps it too.
    """
    began = time.time()
    _check_room(plan)
    addresses = notifier.addresses(plan.settings.notify)
    plan, taken = warm_start.resolved(plan)
    _get_ready(plan.settings.location)
    check(plan, say, works_here=True)
    session, said = open_study(plan, extend=extend, say=say)
    said = [*taken, *said]
    for line in said:
        say(line)
    return _carry_on(session, began, said, screen, signals or Signals(), notifier.herald(plan, addresses, say))


def launch(
    plan: Plan, *, extend: bool = False, signals: Signals | None = None, say: Callable[[str], None] = lambda _: None
) -> list[str]:
    """Leave a study to whichever workers of its ledger are up; what there is to say of it, line by line."""
    location = plan.settings.location
    if not location.shared:
        raise ConfigError(["--detach: must have a ledger that workers share; take storage=postgres"])
    plan, taken = warm_start.resolved(plan)
    forkserver.warm_up()
    check(plan, say)
    if signals is not None:
        signals.check()
    session, said = open_study(plan, extend=extend, say=say)
    session.close()
    return [*taken, *said, *_taken_up(location, plan.name)]


def _taken_up(location: StudyLocation, name: str) -> list[str]:
    """What becomes of a study that was just launched, as far as that shows soon."""
    until = time.monotonic() + _TAKEN_UP_WITHIN_S
    while True:
        holder, (seen, _) = holder_of(location, name), view(location, name)
        refused = seen.refused if seen is not None else {}
        if holder or refused or time.monotonic() > until:
            break
        time.sleep(0.5)
    at_it = f"process {holder['pid']} on {holder['host']} is at it" if holder else "no worker is at it yet"
    why = [f"the worker on {host} refuses it: {line}" for host, lines in refused.items() for line in lines]
    return [f"{name} is launched, and {at_it}; `overnight status {name}` looks on", *why]


def serve(
    name: str,
    own: Settings,
    signals: Signals,
    *,
    screen: Screen | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> Result:
    """Work, as one of many, on a study that somebody has launched, on a machine with these settings.

    Raises ConfigError where the study asks for what the machine's operator does not trust, or for data that can't be
    had here; Unreachable where the ledger is out of reach at the beginning, or as it ends.
    """
    began = time.time()

    def lacking(plan: Plan) -> list[str]:
        return preflight.lacking(plan, say) if plan.settings.preflight != "never" else []

    session = join(name, own, lacking)
    try:
        _get_ready(own.location)
        _check_room(session.plan)
        news = notifier.herald(session.plan, notifier.addresses(session.plan.settings.notify), say)
    except BaseException:
        session.close()
        raise
    return _carry_on(session, began, [], screen, signals, news)


def _carry_on(
    session: StudySession,
    began: float,
    said: list[str],
    screen: Screen | None,
    signals: Signals,
    herald: contextlib.AbstractContextManager[Notifier],
) -> Result:
    """Search, confirm and tell, as far as somebody lets it."""
    plan = session.plan
    with contextlib.ExitStack() as ending:
        news = ending.enter_context(herald)
        ending.callback(session.close)  # first, then the last word is waited for

        def work(supervisor: Supervisor, said: list[str] | None = None) -> Result:
            return _work(supervisor, said or [], screen, signals, news)

        launch = Launch(plan, began, session.keep_launch, launched=session.begin())
        if launch.deadline is not None:
            news.wait_until(launch.deadline.ends)
        with contextlib.closing(Terminator(plan, forkserver.fork)) as terminator:
            limits = SearchLimits(launch, len(slot_devices(plan.settings.slots)), terminator)
            mlflow_sync = MlflowSync(plan, session.uid, peers=session.peers)
            search = work(Supervisor(session, mlflow_sync, lambda _: None, limits=limits), said)
        if search.why in ("done", "limit"):
            search = _with_answer(search, session, work, launch)
        if search.why == "failures":
            session.give_up()
        result = replace(search, cut=tuple(launch.notes))
        _tell(news, result)
        return result


def _tell(news: Notifier, result: Result) -> None:
    """Tell how a study has ended, unless somebody stopped it, who knows, or it had ended before."""
    if not result.worked or not result.told:
        return
    failed = [r for r in result.records if r.state == "failed"]  # none, where it was the confirmation that failed
    last = f", the last with {failed[-1].reason}" if failed else ""
    if result.why == "failures":
        limit = result.plan.settings.study.max_consecutive_failures
        news.tell("failed", f"stopped: {limit} in a row failed{last}")
    elif result.all_failed:
        news.tell("failed", f"all {len(failed)} trials failed{last}")
    elif result.why in ("done", "limit") and result.finding is not None:
        from overnight.report import finding

        news.tell("done", finding.sentence(result.finding))


def check(plan: Plan, say: Callable[[str], None] = lambda _: None, works_here: bool = False) -> None:
    """Try the ends of a new study's space, one batch each. Raises ConfigError with every mistake that this shows.

    works_here: and where it was begun on another machine, as far as this one may know, see to the data.
    """
    if plan.settings.preflight == "never":
        return
    if view(plan.settings.location, plan.name)[0] is None:
        mistakes = preflight.mistakes(plan, say)
    else:
        mistakes = preflight.lacking(plan, say) if works_here and plan.settings.location.shared else []
    if mistakes:
        raise ConfigError(mistakes)


def _with_answer(search: Result, session: StudySession, work: Callable[[Supervisor], Result], launch: Launch) -> Result:
    """A search's result once it is confirmed, as far as somebody lets it."""
    from overnight.report import finalize  # a search need not wait for its imports

    ended = finalize.conclude(session, search.plan, search.records, work, launch)
    last = ended.confirmation or search
    return replace(
        search,
        why="limit" if last.why == "done" and launch.over is not None else last.why,
        signal=last.signal,
        trouble=ended.trouble or last.trouble or search.trouble,
        worked=search.worked or (last.worked and last is not search),
        finding=ended.finding,
        report=ended.report,
        left=ended.left,
        told=ended.told,
    )


def run_one(plan: Plan, *, screen: Screen | None = None, signals: Signals | None = None) -> Result:
    """Train a plan's written configuration as one trial more of the study `train`; its record is the result's last."""
    plan = plans.for_training(plan)
    _check_room(plan)
    _get_ready(plan.settings.location)
    session, said = open_study(plan, comparable=False)
    try:
        number = session.enqueue(plan.config({}))
        supervisor = Supervisor(
            session, MlflowSync(plan, session.uid, peers=session.peers, with_parent=False), lambda _: None, only=number
        )
        result = _work(supervisor, said, screen, signals or Signals())
    finally:
        session.close()
    mine = next(r for r in result.records if r.number == number)
    return Result(**{**vars(result), "records": (mine,)})


def _get_ready(location: StudyLocation) -> None:
    """Begin what the first trial has to wait for; what others wait for later is done meanwhile."""
    forkserver.warm_up()
    database.get_ready(location)
    tracking.get_ready(location)


def _check_room(plan: Plan) -> None:
    settings = plan.settings
    free = free_mib(settings.location.paths.root)
    if free < settings.min_free_mib:
        raise ConfigError(
            [
                f"min_free_mib: {settings.min_free_mib} MiB must be free where home is, got {free:.0f} in "
                f"{settings.location.paths.root}; make room, take another home=, or ask for less"
            ]
        )


def _work(
    supervisor: Supervisor, said: list[str], screen: Screen | None, signals: Signals, news: Notifier | None = None
) -> Result:
    shown = BrokenPipeSafe(screen or screen_for())

    def changed(s: Supervisor) -> None:
        shown.update(lambda: glance(s))
        if news is not None:
            news.look(s.no_room, s.silent)

    supervisor.on_change = changed
    settings = supervisor.plan.settings
    with signals.working(supervisor.stop), awake(settings.stay_awake):
        try:
            ending = supervisor.run()
            shown.update(lambda: glance(supervisor), force=True)
        finally:
            shown.close()
    records = tuple(supervisor.records[n] for n in sorted(supervisor.records))
    return Result(
        supervisor.plan.name,
        ending.why,
        tuple(said),
        ending.trouble,
        records,
        supervisor.plan,
        signals.received[0] if signals.received else None,
        bool(supervisor.started) or ending.why not in ("done", "limit"),
    )


def glance(supervisor: Supervisor) -> ProgressSnapshot:
    running = tuple(
        Slot(number, trial.epoch, r.objective if (r := supervisor.records.get(number)) else None, trial.started_at)
        for number, trial in supervisor.running.items()
    )
    only = supervisor.only
    records = supervisor.records if only is None else {n: r for n, r in supervisor.records.items() if n == only}
    return ProgressSnapshot(
        supervisor.plan,
        records,
        running,
        tuple(supervisor.ended),
        supervisor.slots,
        supervisor.why in ("stopped", "limit"),
        _trouble(supervisor),
        supervisor.ahead,
    )


def _trouble(supervisor: Supervisor) -> str | None:
    if not supervisor.no_room:
        trouble = supervisor.mlflow_sync.error
        return f"MLflow can't be written, trying on: {trouble}" if trouble else None
    settings = supervisor.plan.settings
    return (
        f"less than {settings.min_free_mib} MiB are free in {settings.location.paths.root}: trials are saved and go on "
        f"when there is room"
    )


def _trial(record: TrialRecord) -> Trial:
    return Trial(record.number, record.state, record.objective, dict(record.params))
