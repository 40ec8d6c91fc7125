"""What a trial costs beyond its training.

Claim: a trial of ours, with its own process and a complete record of every epoch, takes no more CPU than calls of
Optuna and MLflow from one loop; and a slot is hardly ever empty between two trials.

Workload: 200 trials that train nothing, 5 floating-point parameters (multivariate, grouped TPE), 10 epochs with three
metrics each. The median pruner decides after each epoch. It prunes nothing, because all trials report the same values.

Sides: ours is `overnight tune` with two slots. The peer is one process that calls study.ask, trial.suggest_float,
trial.report, trial.should_prune and study.tell on SQLite, and MlflowClient.log_metric on SQLite for each metric of each
epoch. The strong peer does the same with one MlflowClient.log_batch an epoch.

The CPU seconds of a trial are what the kernel counts for the command and all processes that it starts (see commands.py)
with the forkserver and its forks. They exclude what a study pays once, its imports and the creation of its stores: a
peer reads its CPU clock before its loop; for ours, a study of 20 trials runs too, and the difference to 200 trials is
divided by 180. The CPU of the whole command divided by 200 is reported too.

A slot is empty from the moment when a trial sends its last message (`Finished`, stamped in the trial's process just
before it is sent) to the first line of user code in the next trial of that slot, which is the constructor of its data
module. A longer interval is reported too: from the end of a trial's last epoch to the first training step of the next
trial. It contains the construction of data, model and Trainer, and the saving of weights.

Gate: each side has 200 complete trials in Optuna's database with 5 parameters and 10 reports each, and 200 FINISHED
runs in MLflow with 5 parameters and 10 values of each of three metrics.

Limit: CPU a trial at most 1.0 times the peer's; an empty slot at most 60 ms, the median over all gaps of a run.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from functools import partial
from pathlib import Path

from benchmarks import stored
from benchmarks.commands import ROOT, Ran, python
from benchmarks.gaps import STAMPS, gaps_ms
from benchmarks.interleave import Benchmark, Figure, Measured, Round, require

EPOCHS, SLOTS = 10, 2
METRICS = ("train/loss", "val/loss", "val/accuracy")
NOTHING = ROOT / "benchmarks" / "conf"
OURS, PEER, STRONG = "ours", "log_metric", "log_batch"


def benchmark(quick: bool) -> Benchmark:
    few, many = (4, 12) if quick else (20, 200)

    def ours(folder: Path) -> Measured:
        short, long = folder / "short", folder / "long"
        short.mkdir()
        long.mkdir()
        less = tune_nothing(short, "overhead", few, EPOCHS)
        ran = tune_nothing(long, "overhead", many, EPOCHS)
        return {
            "cpu_s": (ran.cpu_s - less.cpu_s) / (many - few),
            "whole_cpu_s": ran.cpu_s / many,
            "gap_ms": statistics.median(gaps_ms(long / "stamps", SLOTS, "last", "first")),
            "training_gap_ms": statistics.median(gaps_ms(long / "stamps", SLOTS, "epoch", "step")),
            **kept(long, "overhead"),
        }

    def peer(how: str, folder: Path) -> Measured:
        ran = python("-m", "benchmarks.overhead", how, str(many), str(folder), folder=folder)
        before = json.loads((folder / "before.json").read_text())
        return {
            "cpu_s": (ran.cpu_s - before["cpu_s"]) / many,
            "whole_cpu_s": ran.cpu_s / many,
            **kept(folder, "overhead"),
        }

    return Benchmark(
        "overhead",
        __doc__ or "",
        {OURS: ours, PEER: partial(peer, PEER), STRONG: partial(peer, STRONG)},
        partial(gate, many=many),
        [
            Figure(f"CPU a trial, ours over {PEER}", "", lambda r: r[OURS]["cpu_s"] / r[PEER]["cpu_s"], 1.0),
            Figure(f"CPU a trial, ours over {STRONG}", "", lambda r: r[OURS]["cpu_s"] / r[STRONG]["cpu_s"]),
            Figure("empty slot, last message to first line", "ms", lambda r: r[OURS]["gap_ms"], 60),
            Figure("last epoch to first training step", "ms", lambda r: r[OURS]["training_gap_ms"]),
            *(
                Figure(f"{side}: {what}", unit, lambda r, s=side, k=key, m=times: r[s][k] * m)
                for side in (OURS, PEER, STRONG)
                for what, key, unit, times in (
                    ("CPU a trial", "cpu_s", "ms", 1000),
                    ("CPU a trial, with imports", "whole_cpu_s", "ms", 1000),
                    ("time a trial", "wall_s", "ms", 1000),
                )
            ),
        ],
        round_s=35 if quick else 130,
    )


def gate(measured: Round, many: int) -> None:
    for side, found in measured.items():
        require(found.get("gap_ms", 1) > 0, f"{side}: a trial began before its slot was free")
        trials, runs = found["trials"], found["runs"]
        whole = [t for t in trials if t.state == "COMPLETE" and len(t.params) == 5 and t.reports == EPOCHS]
        require(
            len(whole) == len(trials) == many,
            f"{side}: {len(whole)} of {many} trials are complete in Optuna",
        )
        written = [
            r
            for r in runs
            if r.status == "FINISHED"
            and sum(name.startswith("model.") for name in r.params) == 5
            and all(r.steps.get(metric) == EPOCHS for metric in METRICS)
        ]
        require(len(written) == len(runs) == many, f"{side}: {len(written)} of {many} runs are complete in MLflow")


def kept(home: Path, study: str) -> Measured:
    """Return a study's records and its seconds a trial, from the first start to the last end."""
    trials = stored.trials(home / "optuna.db", study)
    wall_s = (max(t.ended_at for t in trials) - min(t.started_at for t in trials)) / len(trials)
    return {"wall_s": wall_s, "trials": trials, "runs": stored.trial_runs(home / "mlflow.db")}


def nothing_overrides(home: Path, study: str, trials: int, epochs: int, *more: str) -> list[str]:
    return [
        *(
            "model=nothing",
            "data=nothing",
            "scheduler=median",
            "preflight=never",
            "study.confirm.seeds=0",  # only the search is measured
            f"slots={SLOTS}",
            "study.metric=val/accuracy",
            "study.direction=maximize",
        ),
        *(f"study.name={study}", f"study.trials={trials}", f"trainer.max_epochs={epochs}", f"home={home}", *more),
    ]


def tune_nothing(home: Path, study: str, trials: int, epochs: int, *more: str) -> Ran:
    """Run `overnight tune` on trials that train nothing."""
    line = nothing_overrides(home, study, trials, epochs, *more)
    stamps = {STAMPS: str(home / "stamps")}
    return python("-m", "overnight", "tune", "--config-dir", str(NOTHING), *line, folder=home, environment=stamps)


def call_directly(how: str, trials: int, folder: Path) -> None:
    """Run Optuna and MLflow on SQLite in one loop. Writes the CPU time before the loop to before.json."""
    import warnings

    import optuna
    from mlflow import MlflowClient
    from mlflow.entities import Metric, Param

    warnings.simplefilter("ignore")
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(
        study_name="overhead",
        storage=f"sqlite:///{folder}/optuna.db",
        direction="maximize",
        sampler=optuna.samplers.TPESampler(multivariate=True, group=True, constant_liar=True, seed=0),
        pruner=optuna.pruners.MedianPruner(n_startup_trials=5, n_warmup_steps=5),
    )
    client = MlflowClient(f"sqlite:///{folder}/mlflow.db")
    experiment = client.create_experiment("overhead", artifact_location=str(folder / "artifacts"))
    (folder / "before.json").write_text(json.dumps({"cpu_s": time.process_time()}))
    for _ in range(trials):
        trial = study.ask()
        params = {f"model.{name}": trial.suggest_float(f"model.{name}", 0.0, 1.0) for name in "abcde"}
        run = client.create_run(experiment, tags={"overnight.trial": str(trial.number)}).info.run_id
        client.log_batch(run, params=[Param(key, str(value)) for key, value in params.items()])
        for epoch in range(EPOCHS):
            done = (epoch + 1) / 100
            values = dict(zip(METRICS, (1 - done, 2 - done, done), strict=True))
            now = round(time.time() * 1000)
            if how == STRONG:
                client.log_batch(run, [Metric(name, value, now, epoch) for name, value in values.items()])
            else:
                for name, value in values.items():
                    client.log_metric(run, name, value, now, epoch)
            trial.report(done, epoch)
            if trial.should_prune():
                raise RuntimeError("trials that all report the same can't be pruned")
        study.tell(trial, done)
        client.set_terminated(run)


if __name__ == "__main__":
    call_directly(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]))
