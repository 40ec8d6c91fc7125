"""Follow a study that another process runs: the same live table and lines as in that process."""

from __future__ import annotations

import time

from rich.console import Console

from overnight.config.paths import StudyLocation
from overnight.report.live import BrokenPipeSafe, PlainScreen, ProgressSnapshot, RunningTrial, Screen, TerminalScreen
from overnight.search.plan import devices_of
from overnight.search.record import TrialRecord
from overnight.study.snapshot import StudyView, view
from overnight.study.storage.database import free_mib

POLL_EVERY_S = 1.0
# Reading a long study takes a while. Wait this many times as long between two readings.
_WAIT_PER_READING = 5


def follow(location: StudyLocation, found: StudyView) -> StudyView:
    """Show a study while it runs and return its last state. A KeyboardInterrupt does not stop the study."""
    console = Console(highlight=False)
    screen: Screen = BrokenPipeSafe(
        TerminalScreen(console) if console.is_terminal else PlainScreen(skip=len(_ended(found)))
    )
    try:
        while found.state == "running":
            began, now = time.monotonic(), found
            screen.update(lambda now=now: progress(now), force=True)  # type: ignore[misc]
            time.sleep(max(POLL_EVERY_S, _WAIT_PER_READING * (time.monotonic() - began)))
            found = view(location, found.name)[0] or found
        screen.update(lambda: progress(found), force=True)
    finally:
        screen.close()
    return found


def progress(found: StudyView) -> ProgressSnapshot:
    """Return the progress of a study; of its confirmation while that runs."""
    second = found.confirmation
    shown = second if second is not None and second.count("running", "waiting", "paused") else found
    running = tuple(_running(r) for r in shown.records if r.state == "running")
    settings = found.plan.settings
    full = free_mib(settings.location.paths.root) < settings.min_free_mib
    return ProgressSnapshot(
        shown.plan,
        {r.number: r for r in shown.records},
        running,
        _ended(found),
        max(len(devices_of(found.plan)), len(running)),
        None,
        f"less than {settings.min_free_mib} MiB are free: trials are saved and wait for disk space" if full else None,
        finishes=shown is found and found.finishes,
    )


def _ended(found: StudyView) -> tuple[TrialRecord, ...]:
    """Return the ended trials of search and confirmation in the order in which they ended.

    Trials that were paused when the search ended are not among them: all of them end at that moment.
    """
    both = (found, found.confirmation) if found.confirmation is not None else (found,)
    return tuple(
        sorted(
            (r for one in both for r in one.records if r.done and not r.waits_at_rung), key=lambda r: r.ended_at or 0.0
        )
    )


def _running(record: TrialRecord) -> RunningTrial:
    last = record.history[-1] if record.history else None
    fold_start = next((e.index for e in record.history if last is not None and e.fold == last.fold), 0)
    index, fold = (last.index, last.fold) if last is not None else (-1, None)
    started_at = record.started_at or time.time()
    return RunningTrial(record.number, index, record.objective, started_at, fold, fold_start)
