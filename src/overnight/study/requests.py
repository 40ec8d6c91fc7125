"""What users and workers tell each other about a study that other processes work on, through its storage."""

from __future__ import annotations

import socket
from collections.abc import Mapping, Sequence

from overnight.config.paths import StudyLocation
from overnight.search.attributes import REFUSED, STOP, TESTED
from overnight.search.plan import CONFIRM_SUFFIX, TRAIN_STUDY
from overnight.study.attributes import StoredAttributes
from overnight.study.snapshot import latest_studies
from overnight.study.storage.access import require_writable
from overnight.study.storage.database import opened


def request_stop(location: StudyLocation, name: str) -> None:
    """Ask the processes that work on a study to save their trials and to stop. Raises ConfigError."""
    require_writable(location)
    with opened(location) as storage:
        latest = latest_studies(storage)
        for part in (name, name + CONFIRM_SUFFIX):
            if part in latest:
                storage.set_study_user_attr(latest[part]._study_id, STOP, True)


def keep_test(location: StudyLocation, name: str, number: int, at: float, metrics: Mapping[str, float]) -> None:
    """Keep for good that the test set was asked of a trial. at: in seconds since 1970."""
    with opened(location) as storage:
        stored = latest_studies(storage)[name]
        storage.set_study_user_attr(stored._study_id, f"{TESTED}{number}", {"at": at, "metrics": dict(metrics)})


def open_studies(location: StudyLocation) -> list[str]:
    """Return the names of the studies that need workers, the first launched one first."""
    with opened(location) as storage:
        latest = {name: StoredAttributes(stored.user_attrs) for name, stored in latest_studies(storage).items()}
    searches = {name: a for name, a in latest.items() if name != TRAIN_STUDY and not name.endswith(CONFIRM_SUFFIX)}
    return [name for name, a in searches.items() if not a.is_closed and not a.stop_requested]


def refuse(location: StudyLocation, name: str, reasons: Sequence[str]) -> None:
    """Tell users why the worker on this machine refuses a study."""
    with opened(location) as storage:
        stored = latest_studies(storage).get(name)
        if stored is not None:
            storage.set_study_user_attr(stored._study_id, REFUSED + socket.gethostname(), list(reasons))


def is_refused(location: StudyLocation, name: str) -> bool:
    """Whether the worker on this machine has refused a study since its last launch."""
    with opened(location) as storage:
        stored = latest_studies(storage).get(name)
        return stored is not None and socket.gethostname() in StoredAttributes(stored.user_attrs).refusals
