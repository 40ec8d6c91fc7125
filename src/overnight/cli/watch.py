"""Looking on at a study that somebody else works on, until nobody does: the same table and lines that they see."""

from __future__ import annotations

import time

from rich.console import Console

from overnight.config.paths import StudyLocation
from overnight.report.live import BrokenPipeSafe, PlainScreen, ProgressSnapshot, RunningTrial, Screen, TerminalScreen
from overnight.search.record import TrialRecord
from overnight.study.snapshot import StudyView, view
from overnight.study.storage.database import free_mib
from overnight.system.devices import slot_devices

LOOK_EVERY_S = 1.0
# Reading a long study's ledger takes a while: most of the time should go to the study.
_SHARE = 5


def follow(location: StudyLocation, found: StudyView) -> StudyView:
    """Show a study until nobody works on it; how it stands then. Ctrl-C, a KeyboardInterrupt, leaves it as it is."""
    console = Console(highlight=False)
    screen: Screen = BrokenPipeSafe(
        TerminalScreen(console) if console.is_terminal else PlainScreen(told=len(_ended(found)))
    )
    try:
        while found.state == "running":
            began, now = time.monotonic(), found
            screen.update(lambda now=now: glance(now), force=True)  # type: ignore[misc]
            time.sleep(max(LOOK_EVERY_S, _SHARE * (time.monotonic() - began)))
            found = view(location, found.name)[0] or found
        screen.update(lambda: glance(found), force=True)
    finally:
        screen.close()
    return found


def glance(found: StudyView) -> ProgressSnapshot:
    """A study as its ledger shows it; while it is being confirmed, its confirmation."""
    second = found.confirmation
    shown = second if second is not None and second.count("running", "waiting", "paused") else found
    running = tuple(
        RunningTrial(r.number, r.history[-1].epoch if r.history else -1, r.objective, r.started_at or time.time())
        for r in shown.records
        if r.state == "running"
    )
    settings = found.plan.settings
    full = free_mib(settings.location.paths.root) < settings.min_free_mib
    return ProgressSnapshot(
        shown.plan,
        {r.number: r for r in shown.records},
        running,
        _ended(found),
        max(len(slot_devices(settings.slots)), len(running)),
        False,
        f"less than {settings.min_free_mib} MiB are free: trials are saved and wait for room" if full else None,
    )


def _ended(found: StudyView) -> tuple[TrialRecord, ...]:
    """What has ended, in the order in which it did: a search may go on after its confirmation."""
    both = (found, found.confirmation) if found.confirmation is not None else (found,)
    return tuple(sorted((r for one in both for r in one.records if r.done), key=lambda r: r.ended_at or 0.0))
