"""A study that has nothing left to do: its answer is read again, without opening a store for work.

The end of a launch keeps what it has seen of both stores. If the next launch asks for the same study and sees the same,
there is nothing to train, to synchronise or to publish, and so nothing to import for it.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping
from typing import Any

from overnight.search.plan import Plan, Start
from overnight.study.session import StudySession
from overnight.study.snapshot import StudyView, view
from overnight.tracking import contents

# The end of a note on what the launch could not do, and the next one may.
TRIED_AGAIN = "the same `overnight tune` tries again"


def keep(session: StudySession, outcome: Mapping[str, Any]) -> None:
    """Keep what a launch leaves in both stores, once it has published its answer.

    Args:
        outcome: What the next launch needs besides, as JSON. `report` is whether the page was written.
    """
    study, _ = view(session.plan.settings.location, session.plan.name)
    digest = _digest(study) if study is not None else None
    if digest is not None and session.attributes.finished != (kept := {**outcome, "digest": digest}):
        session.attributes.set_finished(kept)


def read(plan: Plan) -> StudyView | None:
    """Return the plan's study if its stores are as the end of its last launch has left them; None otherwise."""
    study, _ = view(plan.settings.location, plan.name)
    if study is None or not study.finished or study.state != "complete" or _content(study.plan) != _content(plan):
        return None
    is_final = study.finished["stop_reason"] in ("complete", "limit") and study.launch.get("ended_by") != "deadline"
    if not is_final:  # an earlier version kept what a stop or a deadline had left undone
        return None
    if study.finished["report"] and not plan.paths.report.exists():
        return None
    return study if study.finished["digest"] == _digest(study) else None


def _content(plan: Plan) -> dict[str, Any]:
    """A plan without the folder that it was started in."""
    return dataclasses.replace(plan, start=Start()).to_json()


def _digest(study: StudyView) -> str | None:
    """Return a digest of a study in both stores and of its winner's config; None if it is not finished."""
    plan, second = study.plan, study.confirmation
    if plan.settings.location.shared or any(plan.paths.plots.glob("trial-*/*.weights")):  # pictures to draw
        return None
    uids = [study.uid, *([second.uid] if second is not None else [])]
    in_mlflow = contents.digest(plan.settings.location, study.name, uids)
    if in_mlflow is None:
        return None
    records = [[(r.number, r.state, r.objective) for r in one.records] for one in (study, second) if one is not None]
    config, tests = plan.paths.winner_config, sorted(second.tests) if second is not None else []
    text = repr((in_mlflow, records, tests, config.read_bytes() if config.exists() else None))
    return hashlib.sha256(text.encode()).hexdigest()
