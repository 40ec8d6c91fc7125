"""Studies from Python: `tune` and `train`, of which the command line is a thin layer."""

from __future__ import annotations

import contextlib
import random
import shutil
import signal
import tempfile
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from overnight import plan as plans
from overnight import supervisor as supervision
from overnight.plan import Plan
from overnight.records import TrialRecord, best_of
from overnight.screen import Glance, Screen, Slot, Unfailing, screen_for
from overnight.study import open_study, view
from overnight.supervisor import Supervisor
from overnight.tracking import Tracker

if TYPE_CHECKING:
    import pandas as pd

# Bytes that a trial takes in ledger and MLflow: so much once, and so much an epoch (measured on digits, 3 metrics).
_BYTES_A_TRIAL, _BYTES_AN_EPOCH = 9_000, 1_400


@dataclass(frozen=True)
class Trial:
    """One trial. value: its objective; None where it failed or has none yet. params: searched name -> value."""

    number: int
    state: str
    value: float | None
    params: dict[str, Any]


@dataclass(frozen=True)
class Result:
    """What a study has come to. why: done, stopped or failures; said: what there was to say on opening it."""

    study_name: str
    why: Literal["done", "stopped", "failures"]
    said: tuple[str, ...]
    trouble: str | None
    records: tuple[TrialRecord, ...] = field(repr=False)
    plan: Plan = field(repr=False)
    signal: int | None = None
    worked: bool = True  # False where there was nothing left to do

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
    result = run(plans.make(overrides, config_dir), extend=extend)
    if result.why == "stopped":
        raise KeyboardInterrupt(f"{result.study_name} is paused; the same call goes on with it")
    return result


def train(overrides: Iterable[str] = (), config_dir: str | Path | None = None) -> Trial:
    """Train one configuration, tracked in the study and MLflow experiment `train`. Raises as `tune` does."""
    result = run_one(plans.make(overrides, config_dir, searching=False))
    if result.why == "stopped":
        raise KeyboardInterrupt("the trial is paused; the same call goes on with it")
    return _trial(result.records[-1])


def run(plan: Plan, *, extend: bool = False, screen: Screen | None = None, take_signals: bool = False) -> Result:
    """Work on a plan's study. take_signals: have SIGINT, SIGTERM and SIGHUP save and stop, as a command should."""
    supervision.warm_up()
    ledger, said = open_study(plan, extend=extend)
    try:
        return _work(Supervisor(ledger, Tracker(plan, ledger.uid), lambda _: None), said, screen, take_signals)
    finally:
        ledger.close()


def run_one(plan: Plan, *, screen: Screen | None = None, take_signals: bool = False) -> Result:
    """Train a plan's written configuration as one trial more of the study `train`; its record is the result's last."""
    plan = plans.for_training(plan)
    supervision.warm_up()
    ledger, said = open_study(plan, comparable=False)
    try:
        number = ledger.enqueue(plan.config({}))
        supervisor = Supervisor(ledger, Tracker(plan, ledger.uid, with_parent=False), lambda _: None, only=number)
        result = _work(supervisor, said, screen, take_signals)
    finally:
        ledger.close()
    mine = next(r for r in result.records if r.number == number)
    return Result(**{**vars(result), "records": (mine,)})


def _work(supervisor: Supervisor, said: list[str], screen: Screen | None, take_signals: bool) -> Result:
    screen = Unfailing(screen or screen_for())
    supervisor.on_change = lambda s: screen.update(lambda: glance(s))
    with _signals(supervisor, take_signals) as received:
        try:
            ending = supervisor.run()
            screen.update(lambda: glance(supervisor), force=True)
        finally:
            screen.close()
    records = tuple(supervisor.records[n] for n in sorted(supervisor.records))
    return Result(
        supervisor.plan.name,
        ending.why,
        tuple(said),
        ending.trouble,
        records,
        supervisor.plan,
        received[0] if received else None,
        bool(supervisor.ended) or ending.why != "done",
    )


def glance(supervisor: Supervisor) -> Glance:
    running = tuple(
        Slot(number, trial.epoch, r.objective if (r := supervisor.records.get(number)) else None, trial.started_at)
        for number, trial in supervisor.running.items()
    )
    only = supervisor.only
    records = supervisor.records if only is None else {n: r for n, r in supervisor.records.items() if n == only}
    return Glance(
        supervisor.plan,
        records,
        running,
        tuple(supervisor.ended),
        supervisor.slots,
        supervisor.why == "stopped",
        supervisor.tracker.trouble,
    )


@dataclass(frozen=True)
class Forecast:
    """What a study would take. seconds: wall clock for what is left of the budget, nothing pruned. bytes: on disk."""

    points: float
    samples: tuple[dict[str, Any], ...]
    done: int
    slots: int
    seconds: float
    disk_bytes: int
    seconds_an_epoch: float


def forecast(plan: Plan, samples: int = 3) -> Forecast:
    """Measure three epochs of the configuration as written, outside any study, and reckon from there.

    Raises RuntimeError, with the trial's own words, where that configuration does not train.
    """
    settings = plan.settings
    folder = Path(tempfile.mkdtemp(prefix="overnight-"))
    try:
        start_s, epoch_s, weights = supervision.measure(plan, min(3, settings.trainer.max_epochs), folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    seen, _ = view(settings.place, plan.name)
    done = sum(r.done for r in seen.records) if seen is not None else 0
    left, slots = max(settings.study.trials - done, 0), len(supervision.slot_devices(settings.slots))
    epochs = settings.trainer.max_epochs
    # A state holds the weights and, for most optimizers, two more tensors of their size; the one before is kept too.
    states = slots * 2 * 3 * weights
    disk = left * (_BYTES_A_TRIAL + epochs * _BYTES_AN_EPOCH) + settings.study.keep_checkpoints * 2 * weights + states
    rng = random.Random(settings.seed)
    return Forecast(
        plan.space.size(),
        tuple(plan.sample(rng) for _ in range(samples)),
        done,
        slots,
        -(-left // slots) * (start_s + epochs * epoch_s),
        disk,
        epoch_s,
    )


@contextlib.contextmanager
def _signals(supervisor: Supervisor, take: bool) -> Iterator[list[int]]:
    """While the study runs the first signal saves and stops, the second ends running trials as they are."""
    received: list[int] = []
    if not take or threading.current_thread() is not threading.main_thread():
        yield received
        return

    def stop(number: int, _: Any) -> None:
        received.append(number)
        supervisor.stop()

    # What is ignored already stays so: under nohup a closed terminal is none of our business.
    heeded = [s for s in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP) if signal.getsignal(s) is not signal.SIG_IGN]
    before = {s: signal.signal(s, stop) for s in heeded}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _trial(record: TrialRecord) -> Trial:
    return Trial(record.number, record.state, record.objective, dict(record.params))
