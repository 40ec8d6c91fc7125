"""When plots are drawn: of every new best trial and of the winner, in processes that no slot waits for.

While trials run, one process draws at a time, at most one every half minute, and uses only spare processor time. Once
the trials have ended, the winner comes first. The next start draws what a stop leaves undrawn.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path

from overnight.plots.process import is_drawn, restore_priority, stamp_of
from overnight.plots.process import main as draw_and_exit
from overnight.protocol import DrawSpec
from overnight.search.formatting import trial_title
from overnight.search.history import steps_of
from overnight.search.plan import Plan
from overnight.search.record import TrialRecord, unit_of_trial
from overnight.system import forkserver
from overnight.system.kill import discard
from overnight.tracking.sync import MlflowSync

# A process that takes longer hangs, or gets no processor time.
TIMEOUT_S = 600.0
# For the winner and the remaining plots, once every trial has ended.
CLOSE_TIMEOUT_S = 60.0
_POLL_EVERY_S = 0.05
# Between two starts while trials run. A study finds its first best trials in quick succession, and each process takes a
# tenth of a second from the running trials even at the lowest priority.
INTERVAL_S = 30.0


def draw_spec(
    plan: Plan, stamp: str, folder: Path, record: TrialRecord, weights: Path | None, low_priority: bool
) -> DrawSpec:
    """Return what a process draws of a trial of a study."""
    return DrawSpec(
        title=f"{plan.name} {trial_title(record)}",
        folder=folder,
        weights=weights,
        # With folds, the curves are those of the first, whose network is drawn.
        history=tuple(
            (step, e.metrics) for e, step in zip(record.history, steps_of(record.history), strict=True) if not e.fold
        ),
        metric=plan.settings.study.metric,
        which=tuple(plan.settings.pictures.which),
        look=plan.settings.pictures.look,
        stamp=stamp,
        unit=unit_of_trial(record, plan),
        low_priority=low_priority,
        locks=plan.settings.location.paths.data_locks,
    )


@dataclass
class _Drawing:
    record: TrialRecord
    process: BaseProcess
    started_at: float


class PlotScheduler:
    """Schedules the plots of one study. An error here costs no more than a plot."""

    def __init__(
        self, plan: Plan, uid: str, mlflow_sync: MlflowSync, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._plan, self._mlflow_sync, self._clock = plan, mlflow_sync, clock
        self._settings, self._paths = plan.settings.pictures, plan.paths
        self._stamp = stamp_of(uid, self._settings.which, self._settings.look)
        self._kept_name = f"{uid}.weights"  # a copy of a trial's weights, until its plots are drawn
        self._wanted: list[TrialRecord] = []
        self._drawing: list[_Drawing] = []
        self._next_at = clock() + INTERVAL_S

    def resume(self, records: Mapping[int, TrialRecord]) -> None:
        """Attach the plots that MLflow may lack, and schedule those that an earlier process left undrawn."""
        for folder in sorted(self._paths.plots.glob("trial-*")):
            number = int(re.sub(r"\D", "", folder.name) or -1)
            if self._is_drawn(number):
                self._mlflow_sync.attach_plots(number, folder)
            elif (folder / self._kept_name).exists() and number in records:
                self._wanted.append(records[number])

    def want(self, record: TrialRecord) -> None:
        """Schedule the plots of a new best trial, with the weights that it has now."""
        if self._settings.when == "best":
            self._keep_weights(record)
            self._wanted.append(record)

    def tick(self, max_processes: int = 1, low_priority: bool = True) -> None:
        """Finish what is drawn, and start the next processes.

        Args:
            low_priority: trials run. The newest best trial comes first then, as a user may look for it.
        """
        for drawing in list(self._drawing):
            if not drawing.process.is_alive():
                self._finish(drawing)
            elif self._clock() - drawing.started_at > TIMEOUT_S:
                self._end(drawing)
        while self._wanted and len(self._drawing) < max_processes:
            if low_priority and self._clock() < self._next_at:
                break
            record = self._wanted.pop(-1 if low_priority else 0)
            if self._is_drawn(record.number):  # by another supervisor of this home
                self._publish(record.number)
                continue
            self._next_at = self._clock() + INTERVAL_S
            self._start(record, low_priority)

    def pause(self) -> None:
        """End the running processes. What they draw is scheduled again."""
        for drawing in list(self._drawing):
            if drawing.process.is_alive():
                self._end(drawing)
                self._wanted.append(drawing.record)
            else:
                self._finish(drawing)

    def close(self, winner: TrialRecord | None, max_processes: int, is_given_up: Callable[[], bool]) -> None:
        """Draw the winner's plots and the scheduled ones, until all are drawn, the time is up, or it is given up."""
        self.pause()  # the priority of a running process cannot be raised
        if winner is not None and self._settings.when != "never" and not self._is_drawn(winner.number):
            self._keep_weights(winner)
            self._wanted = [winner, *(r for r in self._wanted if r.number != winner.number)]
        deadline = self._clock() + CLOSE_TIMEOUT_S
        try:
            while (self._wanted or self._drawing) and not is_given_up() and self._clock() < deadline:
                if forkserver.is_warm():
                    self.tick(max_processes, low_priority=False)
                time.sleep(_POLL_EVERY_S)
        finally:
            self.pause()

    def _is_drawn(self, number: int) -> bool:
        return is_drawn(self._paths.trial_plots(number), self._stamp)

    def _kept_weights(self, number: int) -> Path:
        return self._paths.trial_plots(number) / self._kept_name

    def _keep_weights(self, record: TrialRecord) -> None:
        """Keep the weights' file under another name. The checkpoint is deleted once a better trial is complete."""
        weights = self._paths.checkpoint(record.number) / "weights.ckpt"
        kept = self._kept_weights(record.number)
        with contextlib.suppress(OSError):
            kept.parent.mkdir(parents=True, exist_ok=True)
            if weights.exists() and not kept.exists():
                try:
                    os.link(weights, kept)
                except OSError:  # a file system without hard links
                    shutil.copyfile(weights, kept)

    def _start(self, record: TrialRecord, low_priority: bool) -> None:
        weights = self._kept_weights(record.number)
        folder = self._paths.trial_plots(record.number)
        spec = draw_spec(self._plan, self._stamp, folder, record, weights if weights.exists() else None, low_priority)
        with contextlib.suppress(OSError, EOFError):
            log = self._paths.plot_log
            log.parent.mkdir(parents=True, exist_ok=True)
            self._drawing.append(_Drawing(record, forkserver.fork(draw_and_exit, spec, log), self._clock()))

    def _finish(self, drawing: _Drawing) -> None:
        self._end(drawing)
        self._publish(drawing.record.number)

    def _publish(self, number: int) -> None:
        """Attach a trial's plots to its MLflow run, and delete the copy of its weights."""
        with contextlib.suppress(OSError):
            self._kept_weights(number).unlink(missing_ok=True)
        if self._is_drawn(number):
            self._mlflow_sync.attach_plots(number, self._paths.trial_plots(number))

    def _end(self, drawing: _Drawing) -> None:
        self._drawing.remove(drawing)
        assert drawing.process.pid is not None
        restore_priority(drawing.process.pid)
        discard(drawing.process)
