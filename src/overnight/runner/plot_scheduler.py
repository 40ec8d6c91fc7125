"""When pictures are drawn: of every new best trial and of the winner, by processes that no slot waits for.

While trials run one process draws at a time, begun each half minute at most, and takes only what the machine has left
over; once they are through, the winner comes first, then whatever is still to be drawn. What a stop leaves undrawn, the
next start draws.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from multiprocessing.process import BaseProcess

from overnight.plots.process import be_quick
from overnight.plots.process import main as draw_and_leave
from overnight.protocol import DrawSpec
from overnight.search.plan import Plan
from overnight.search.record import TrialRecord
from overnight.system import forkserver
from overnight.system.kill import discard
from overnight.tracking.sync import MlflowSync

# A drawing that takes longer hangs, or the machine has nothing left over for it.
DRAWN_WITHIN_S = 600.0
# For the winner and what else is left, once every trial is through.
CLOSED_WITHIN_S = 60.0
_LOOK_EVERY_S = 0.05
# From one drawing to the next while trials run, and from a launch to its first: a study has its first best trials in
# quick succession, and each drawing takes a tenth of a second from those that run, giving way or not.
APART_S = 30.0
_DRAWN = "drawn.json"


@dataclass
class _Drawing:
    record: TrialRecord
    process: BaseProcess
    started_at: float = field(default_factory=time.monotonic)


class PlotScheduler:
    """The pictures of one study. Nothing that goes wrong here is more than a missing picture."""

    def __init__(self, plan: Plan, uid: str, mlflow_sync: MlflowSync) -> None:
        self._plan, self._tracker = plan, mlflow_sync
        self._settings, self._paths = plan.settings.pictures, plan.paths
        self._stamp = json.dumps({"study": uid, "which": self._settings.which, "look": self._settings.look})
        self._held = f"{uid}.weights"  # a trial's weights, from when its pictures are wanted until they are drawn
        self._wanted: list[TrialRecord] = []
        self._drawing: list[_Drawing] = []
        self._rests_until = time.monotonic() + APART_S

    # For the supervisor

    def open(self, records: Mapping[int, TrialRecord]) -> None:
        """Take up what an earlier process left: pictures that MLflow may lack, and trials whose turn never came."""
        for folder in sorted(self._paths.plots.glob("trial-*")):
            number = int(re.sub(r"\D", "", folder.name) or -1)
            if self._is_drawn(number):
                self._tracker.attach_plots(number, folder)
            elif (folder / self._held).exists() and number in records:
                self._wanted.append(records[number])

    def want(self, record: TrialRecord) -> None:
        """Have the pictures of a new best trial drawn when there is time, of the weights that it has now."""
        if self._settings.when == "best":
            self._hold(record)
            self._wanted.append(record)

    def tick(self, at_once: int = 1, gives_way: bool = True) -> None:
        """See to the drawings; start the next where fewer than `at_once` are at it.

        gives_way: to trials that run; then it is one each half minute, the newest first, as somebody may look for it.
        """
        for drawing in list(self._drawing):
            if not drawing.process.is_alive():
                self._done(drawing)
            elif time.monotonic() - drawing.started_at > DRAWN_WITHIN_S:
                self._drop(drawing)
        while self._wanted and len(self._drawing) < at_once:
            if gives_way and time.monotonic() < self._rests_until:
                break
            record = self._wanted.pop(-1 if gives_way else 0)
            if self._is_drawn(record.number):  # by another supervisor of this home
                self._let_go(record.number)
                continue
            self._rests_until = time.monotonic() + APART_S
            self._start(record, gives_way)

    def rest(self) -> None:
        """End what is being drawn, to be drawn from the start another time."""
        for drawing in list(self._drawing):
            if drawing.process.is_alive():
                self._drop(drawing)
                self._wanted.append(drawing.record)
            else:
                self._done(drawing)

    def close(self, winner: TrialRecord | None, at_once: int, given_up: Callable[[], bool]) -> None:
        """Draw the winner's pictures and those still wanted; returns once they are, or somebody has given up."""
        self.rest()  # what gives way can't be told to stop doing so, and there is nothing left to give way to
        if winner is not None and self._settings.when != "never" and not self._is_drawn(winner.number):
            self._hold(winner)
            self._wanted = [winner, *(r for r in self._wanted if r.number != winner.number)]
        deadline = time.monotonic() + CLOSED_WITHIN_S
        try:
            while (self._wanted or self._drawing) and not given_up() and time.monotonic() < deadline:
                if forkserver.is_warm():
                    self.tick(at_once, gives_way=False)
                time.sleep(_LOOK_EVERY_S)
        finally:
            self.rest()

    # Small parts

    def _is_drawn(self, number: int) -> bool:
        with contextlib.suppress(OSError):
            return (self._paths.trial_plots(number) / _DRAWN).read_text() == self._stamp
        return False

    def _hold(self, record: TrialRecord) -> None:
        """Keep the weights' file under another name: it is removed as soon as a better trial is complete."""
        folder = self._paths.trial_plots(record.number)
        weights = self._paths.checkpoint(record.number) / "weights.ckpt"
        with contextlib.suppress(OSError):
            folder.mkdir(parents=True, exist_ok=True)
            if weights.exists() and not (folder / self._held).exists():
                try:
                    os.link(weights, folder / self._held)
                except OSError:  # a file system without links
                    shutil.copyfile(weights, folder / self._held)

    def _start(self, record: TrialRecord, gives_way: bool) -> None:
        folder = self._paths.trial_plots(record.number)
        weights = folder / self._held
        spec = DrawSpec(
            study=self._plan.name,
            number=record.number,
            folder=folder,
            weights=weights if weights.exists() else None,
            history=tuple((e.epoch, e.metrics) for e in record.history),
            metric=self._plan.settings.study.metric,
            which=tuple(self._settings.which),
            look=self._settings.look,
            stamp=self._stamp,
            gives_way=gives_way,
        )
        with contextlib.suppress(OSError, EOFError):
            log = self._paths.plot_log
            log.parent.mkdir(parents=True, exist_ok=True)
            self._drawing.append(_Drawing(record, forkserver.fork(draw_and_leave, spec, log)))

    def _done(self, drawing: _Drawing) -> None:
        self._drop(drawing)
        self._let_go(drawing.record.number)

    def _let_go(self, number: int) -> None:
        """Of the weights that were held for a drawing that is through; what came of it is shown."""
        folder = self._paths.trial_plots(number)
        with contextlib.suppress(OSError):
            (folder / self._held).unlink(missing_ok=True)
        if self._is_drawn(number):
            self._tracker.attach_plots(number, folder)

    def _drop(self, drawing: _Drawing) -> None:
        self._drawing.remove(drawing)
        assert drawing.process.pid is not None
        be_quick(drawing.process.pid)
        discard(drawing.process)
