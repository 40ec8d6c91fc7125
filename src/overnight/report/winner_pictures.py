"""The pictures of the winner's network: drawn after the confirmation if the search drew none, and read for the page."""

from __future__ import annotations

import contextlib
import json
from dataclasses import dataclass
from pathlib import Path

from overnight.config.problems import ConfigError
from overnight.config.settings import PictureSettings
from overnight.plots.process import DRAWN, IN_WORDS, is_drawn, stamp_of
from overnight.plots.process import main as draw_and_exit
from overnight.report import finding, winner
from overnight.runner.plot_scheduler import draw_spec
from overnight.study.snapshot import StudyView
from overnight.system import forkserver
from overnight.system.kill import discard

DRAW_TIMEOUT_S = 60.0
# The page has learning curves of its own.
_TITLES = {
    "confusion": "Confusion matrix",
    "mistakes": "The most confident mistakes",
    "predictions": "Predicted and true values",
    "weights": "First weights",
}


@dataclass(frozen=True)
class Picture:
    """A picture of a network. description: what it shows, for readers who cannot see it."""

    title: str
    description: str
    png: bytes


def find(view: StudyView) -> list[Picture]:
    """Return the pictures of the winner, as far as this home has them."""
    folder = find_folder(view)
    found: list[Picture] = []
    if folder is None:
        return found
    with contextlib.suppress(OSError):  # the page is complete without them
        lines = (folder / IN_WORDS).read_text("utf-8").splitlines()
        described = dict(line.removeprefix("- ").split(".png: ", 1) for line in lines if ".png: " in line)
        for name, title in _TITLES.items():
            if name in described:
                found.append(Picture(title, described[name], (folder / f"{name}.png").read_bytes()))
    return found


def find_folder(view: StudyView) -> Path | None:
    """Return the folder with the pictures of the winner; None if none are drawn."""
    best = finding.from_view(view).best
    if best is None:
        return None
    folder = view.plan.paths.trial_plots(best.number)
    with contextlib.suppress(OSError, ValueError):
        if (
            json.loads((folder / DRAWN).read_text("utf-8"))["study"] == view.uid
        ):  # not of a deleted study with this name
            return folder
    return None


def draw_missing(view: StudyView, settings: PictureSettings, timeout_s: float) -> None:
    """Draw the winner, if it is not drawn yet.

    The search draws its best trials while it runs. The confirmation may choose a trial that never was the best one. Its
    weights of the search are deleted then, so the pictures show its network of the confirmation.
    """
    best = finding.from_view(view).best
    if best is None or settings.when == "never" or timeout_s <= 0:
        return
    folder, stamp = view.plan.paths.trial_plots(best.number), stamp_of(view.uid, settings.which, settings.look)
    if is_drawn(folder, stamp):
        return
    with contextlib.suppress(OSError, EOFError, ConfigError):  # the result is complete without pictures
        kept = winner.find_checkpoint(view)
        confirmation = view.confirmation
        record = kept.trial
        if confirmation is not None and kept.study == confirmation.name:
            record = confirmation.records[kept.number]
        folder.mkdir(parents=True, exist_ok=True)
        view.plan.paths.plot_log.parent.mkdir(parents=True, exist_ok=True)
        spec = draw_spec(view.plan, stamp, folder, record, kept.path, low_priority=False)
        process = forkserver.fork(draw_and_exit, spec, view.plan.paths.plot_log)
        try:
            process.join(timeout_s)
        finally:
            discard(process)
