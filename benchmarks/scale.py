"""What a large study costs.

Claim: the thousandth trial starts about as soon as the hundredth, and the commands that show a study of a thousand
trials stay fast.

Workload: an Optuna storage of 1,000 trials of 50 epochs with three metrics each and 5 floating-point parameters, and
the same in MLflow. The first start writes MLflow from the Optuna storage; its time is measured once and reported.
Another Optuna storage has 100 trials. Optuna's add_trial writes both, in our format. Then, on copies:

- ask: `overnight tune` adds 12 trials of 50 epochs of 20 ms that train nothing. The time for which a slot is empty is
  measured as in overhead.py. Before each trial, TPE is fitted to all trials.
- status: `overnight status`. compare: `overnight compare` on two trials. report: `overnight report` with its pictures.
- reconcile: twenty runs get the status RUNNING and lose their metrics, as after a kill. The result is the time of
  `overnight tune` with one more trial, less its time when nothing has to be repaired.
- memory: the peak resident memory of the supervisor's process while it continues the study of 1,000 trials.

Gate: the Optuna storage has 1,012 (112) complete trials after the first part, and MLflow as many complete runs. After
reconciling, every run is FINISHED with 50 values of each metric. status shows the number of trials, and compare names
both trials.

Limit: an empty slot at 1,000 trials at most twice the one at 100 (medians); status at most 2 s; memory at most 600 MiB.
"""

from __future__ import annotations

import contextlib
import shutil
import sqlite3
import statistics
import sys
from functools import partial
from pathlib import Path

from benchmarks.commands import Ran, python
from benchmarks.gaps import gaps_ms
from benchmarks.interleave import Benchmark, Figure, Measured, Round, require
from benchmarks.overhead import METRICS, NOTHING, SLOTS, kept, nothing_overrides, tune_nothing

EPOCHS, ON, BROKEN = 50, 12, 20


def benchmark(quick: bool) -> Benchmark:
    few, many = (6, 12) if quick else (100, 1000)
    on = 4 if quick else ON
    homes: dict[int, Path] = {}
    filled: dict[str, float] = {}

    def prepare(folder: Path) -> None:
        for trials in (few, many):
            homes[trials] = folder / f"home-{trials}"
            homes[trials].mkdir()
            python("-m", "benchmarks.scale", str(homes[trials]), str(trials), folder=homes[trials])
            # One trial is still waiting: the start that runs it also writes MLflow from the Optuna storage.
            filled["s"] = _tune(homes[trials], trials).wall_s

    def asking(trials: int, folder: Path) -> Measured:
        home = _copy(homes[trials], folder)
        ran = _tune(home, trials + on)
        return {
            "gap_ms": statistics.median(gaps_ms(home / "stamps", SLOTS, "last", "first")),
            "peak_mib": ran.peak_mib,
            "filled_s": filled["s"],
            **kept(home, "scale"),
        }

    def reconciling(broken: int, folder: Path) -> Measured:
        home = _copy(homes[many], folder)
        _break(home / "mlflow.db", broken)
        return {"s": _tune(home, many + 1).wall_s, **kept(home, "scale")}

    def showing(*line: str, folder: Path) -> Measured:
        ran = python("-m", "overnight", *line, f"home={homes[many]}", folder=folder)
        return {"s": ran.wall_s, "output": ran.output}

    sides = {
        "ask at few": partial(asking, few),
        "ask at many": partial(asking, many),
        "whole": partial(reconciling, 0),
        "broken": partial(reconciling, BROKEN),
        "status": lambda folder: showing("status", "scale", folder=folder),
        "report": lambda folder: showing("report", "scale", folder=folder),
        "compare": lambda folder: showing("compare", "scale/1", "scale/2", folder=folder),
    }
    return Benchmark(
        "scale",
        __doc__ or "",
        sides,
        partial(gate, few=few, many=many, on=on),
        [
            Figure(
                f"empty slot at {many} trials over one at {few}",
                "",
                lambda r: r["ask at many"]["gap_ms"] / r["ask at few"]["gap_ms"],
                2.0,
            ),
            Figure(f"status of {many} trials", "s", lambda r: r["status"]["s"], 2.0),
            Figure("memory of the supervisor", "MiB", lambda r: r["ask at many"]["peak_mib"], 600),
            Figure(f"empty slot at {few} trials", "ms", lambda r: r["ask at few"]["gap_ms"]),
            Figure(f"empty slot at {many} trials", "ms", lambda r: r["ask at many"]["gap_ms"]),
            Figure(f"reconcile {BROKEN} broken runs", "s", lambda r: r["broken"]["s"] - r["whole"]["s"]),
            Figure(f"tune, one trial more, at {many} trials", "s", lambda r: r["whole"]["s"]),
            Figure(f"write {many} trials into an empty MLflow (once)", "s", lambda r: r["ask at many"]["filled_s"]),
            Figure("compare two trials", "s", lambda r: r["compare"]["s"]),
            Figure(f"report of {many} trials", "s", lambda r: r["report"]["s"]),
        ],
        round_s=60 if quick else 90,
        prepare=prepare,
        prepare_s=45 if quick else 200,
    )


def gate(measured: Round, few: int, many: int, on: int) -> None:
    wanted = {"ask at few": few + on, "ask at many": many + on, "whole": many + 1, "broken": many + 1}
    for side, trials in wanted.items():
        found = measured[side]
        whole = [t for t in found["trials"] if t.state == "COMPLETE" and t.reports == EPOCHS]
        require(len(whole) == trials, f"{side}: {len(whole)} of {trials} trials are complete in the Optuna storage")
        runs = [
            r
            for r in found["runs"]
            if r.status == "FINISHED" and all(r.steps.get(metric) == EPOCHS for metric in METRICS)
        ]
        require(
            len(runs) == len(found["runs"]) == trials, f"{side}: {len(runs)} of {trials} runs are complete in MLflow"
        )
    output = measured["status"]["output"]
    require(f"{many} of {many} trials done" in output, f"status does not show that {many} trials are done: {output}")
    output = measured["compare"]["output"]
    require("1" in output and "2" in output, f"compare does not name both trials: {output}")
    output = measured["report"]["output"]
    require(f"{many} trials ({many} complete)" in output, f"report does not show {many} complete trials: {output}")


def _tune(home: Path, trials: int) -> Ran:
    # A trial is long enough to prepare the next one while it trains.
    return tune_nothing(home, "scale", trials, EPOCHS, "model.epoch_s=0.02")


def _copy(home: Path, folder: Path) -> Path:
    """Copy the databases of a home. They contain the location of the artifacts, which are not copied."""
    copied = folder / "home"
    copied.mkdir()
    for file in home.glob("*.db*"):
        shutil.copy(file, copied)
    return copied


def _break(database: Path, runs: int) -> None:
    """Put runs into the state after a kill: RUNNING and without metrics."""
    with contextlib.closing(sqlite3.connect(database)) as db, db:
        rows = db.execute("select run_uuid from tags where key = 'overnight.trial' order by run_uuid limit ?", (runs,))
        for (run,) in rows.fetchall():
            db.execute("update runs set status = 'RUNNING', end_time = null where run_uuid = ?", (run,))
            for table in ("metrics", "latest_metrics"):
                db.execute(f"delete from {table} where run_uuid = ?", (run,))


def fill(home: Path, trials: int) -> None:
    """Create an Optuna storage with this number of trials. The first one is waiting."""
    import random
    import time

    from optuna.trial import TrialState, create_trial

    from overnight.protocol import Progress
    from overnight.search.attributes import HISTORY
    from overnight.search.build_plan import build_plan
    from overnight.search.history import pack_history
    from overnight.study.open import open_study

    plan = build_plan(nothing_overrides(home, "scale", trials, EPOCHS, "model.epoch_s=0.02"), NOTHING)
    session, _ = open_study(plan)
    chance = random.Random(0)
    with session.writer.batch():  # in one transaction
        for number in range(1, trials):
            reached = (
                EPOCHS / 100 * chance.random()
            )  # below the values of the trials that follow, so that none is pruned
            history = [
                Progress(number, epoch, dict(zip(METRICS, (1 - v, 2 - v, v), strict=True)), time.time(), 0.02)
                for epoch in range(EPOCHS)
                for v in [reached * (epoch + 1) / EPOCHS]
            ]
            session.study.add_trial(
                create_trial(
                    state=TrialState.COMPLETE,
                    value=reached,
                    params={name: chance.random() for name in plan.space.names()},
                    distributions=plan.space.names(),
                    user_attrs={HISTORY: pack_history(history)},
                    intermediate_values={e.index: e.metrics["val/accuracy"] for e in history},
                )
            )
    session.close()


if __name__ == "__main__":
    fill(Path(sys.argv[1]), int(sys.argv[2]))
