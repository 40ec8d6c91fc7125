"""How long a command takes to start.

Claim: `overnight tune` trains its first step before a script that only imports the same libraries has finished its
imports.

Workload: `overnight --help`; `overnight status` on a finished study of two trials; `overnight tune` on the digits in an
empty home, until its first training step. A subclass of our MLP, named by model._target_, writes the time of each first
batch. The first one after the start of the first trial counts, because a new study trains one batch as a dry run.
All times begin with the start of the Python interpreter. The time without a dry run (preflight=never) is reported too,
because a study that is resumed has none.

Peer: `python -c "import torch, pytorch_lightning, mlflow, optuna"`, only the imports. Ours and the peer run twice a
round, in the order ours, peer, peer, ours. The time of a side in a round is the mean. One round runs before those that
count, so that all files are in the system's cache for both.

Gate: help names its commands, status reports that the study is complete, the tuned trial is complete in the Optuna
storage and FINISHED in MLflow with its metrics.

Limit: first training step at most 0.8 times the peer's imports; --help at most 0.5 s; status at most 1.5 s.
"""

from __future__ import annotations

from pathlib import Path

from benchmarks import stored
from benchmarks.commands import python
from benchmarks.gaps import STAMPS, first_stamp
from benchmarks.interleave import AGAIN, Benchmark, Figure, Measured, Round, mean, require

HELP, STATUS, TUNE, NO_DRY_RUN, PEER = "help", "status", "tune", "tune without dry run", "imports alone"


def benchmark(quick: bool) -> Benchmark:
    folders: list[Path] = []

    def prepare(kept: Path) -> None:
        folders.append(kept)
        for name in ("seen", "warm"):
            (kept / name).mkdir()
        _tune(kept / "seen", trials=2)
        if not quick:
            _imports(kept / "warm")

    return Benchmark(
        "start",
        __doc__ or "",
        {
            HELP: _help,
            STATUS: lambda folder: _status(folder, folders[0] / "seen"),
            TUNE: _tune,
            PEER: _imports,
            f"{PEER}{AGAIN}": _imports,
            f"{TUNE}{AGAIN}": _tune,
            NO_DRY_RUN: _tune_without_dry_run,
        },
        gate,
        [
            Figure("first training step over the peer's imports", "", lambda r: _step_s(r) / _imports_s(r), 0.8),
            Figure("--help", "s", lambda r: r[HELP]["s"], 0.5),
            Figure("status", "s", lambda r: r[STATUS]["s"], 1.5),
            Figure("tune to the first training step", "s", _step_s),
            Figure("the same without a dry run", "s", lambda r: r[NO_DRY_RUN]["step_s"]),
            Figure("the peer's imports", "s", _imports_s),
        ],
        round_s=55,
        prepare=prepare,
        prepare_s=30,
    )


def _step_s(measured: Round) -> float:
    return mean(measured, TUNE, "step_s")


def _imports_s(measured: Round) -> float:
    return mean(measured, PEER, "s")


def gate(measured: Round) -> None:
    require("tune" in measured[HELP]["output"], "--help does not name its commands")
    require("start: complete" in measured[STATUS]["output"], "status does not show that the study is complete")
    for side in (TUNE, f"{TUNE}{AGAIN}", NO_DRY_RUN):
        require([t.state for t in measured[side]["trials"]] == ["COMPLETE"], f"{side}: the trial is not complete")
        whole = [r for r in measured[side]["runs"] if r.status == "FINISHED" and r.steps.get("val/accuracy") == 1]
        require(len(whole) == 1, f"{side}: the trial is not complete in MLflow")


def _help(folder: Path) -> Measured:
    ran = python("-m", "overnight", "--help", folder=folder)
    return {"s": ran.wall_s, "output": ran.output}


def _status(folder: Path, home: Path) -> Measured:
    ran = python("-m", "overnight", "status", "start", f"home={home}", folder=folder)
    return {"s": ran.wall_s, "output": ran.output}


def _tune_without_dry_run(folder: Path) -> Measured:
    return _tune(folder, 1, "preflight=never")


def _tune(folder: Path, trials: int = 1, *overrides: str) -> Measured:
    stamps = folder / "stamps"
    ran = python(
        *("-m", "overnight", "tune", "study.name=start", f"study.trials={trials}", "trainer.max_epochs=1"),
        *("model._target_=benchmarks.probes.FirstStep", f"home={folder}", *overrides),
        folder=folder,
        environment={STAMPS: str(stamps)},
    )
    ended = stored.trials(folder / "optuna.db", "start")
    return {
        "step_s": first_stamp(stamps, "step", ended[0].started_at) - ran.started_at,
        "trials": ended,
        "runs": stored.trial_runs(folder / "mlflow.db"),
    }


def _imports(folder: Path) -> Measured:
    return {"s": python("-c", "import torch, pytorch_lightning, mlflow, optuna", folder=folder).wall_s}
