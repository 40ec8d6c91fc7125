"""How many trials a study completes in a given time.

Claim: a study is nearly as fast as two bare training loops that store nothing, and several times as fast as the same
libraries combined as their documentation shows.

Workload: Fashion-MNIST (55,000 pictures to train on, 5,000 to validate, the same rows on every side), 12 fixed
configurations of an MLP with one or two hidden layers of 32 to 256, ReLU, Adam at 1e-3, batch 128, 3 epochs,
standardised pixels, the same distribution of initial weights. Two slots, no GPU. If Fashion-MNIST is not available (in
the folder OVERNIGHT_DATA, or in shared/data beside the checkout), scikit-learn's digits replace it, enlarged to 28x28,
shifted at random and repeated to the same number of pictures. The output then names them.

Sides, all but ours in throughput_peers.py:
- ours: `overnight tune` with the configurations in study.enqueue, one process a trial.
- ideal: two processes of one thread, the data as tensors in memory, fused Adam, a bare PyTorch loop. It stores nothing.
- strong: two warm processes of one thread, the data as tensors in a TensorDataset and a DataLoader, fused Adam,
  Lightning's Trainer without progress bar, summary, checkpoints and sanity check, self.log once an epoch, MLFlowLogger
  on SQLite, Optuna on SQLite with one report an epoch.
- stock: one process with torch's default number of threads, Lightning's Trainer with its defaults, torchvision with
  ToTensor and Normalize in a DataLoader, Optuna with MLflowCallback. It takes minutes. It therefore runs in the first
  three rounds only, with another one of the twelve configurations in each, and its time is that trial's times twelve.

Ours and ideal run twice a round, in the order ours, ideal, ideal, ours. The time of a side in a round is the mean.

The time of a side is that from the start of its first trial to the end of its last one, without imports, loading data
and opening stores. The peers have loaded their data before; a trial of ours finds its data within its time. A study of
less than half a minute draws its pictures after its last trial, outside of that time. The whole time of the command of
ours and of the strong peer is reported too, from its start to its end, with pictures and report.

Gate: each configuration trains for the same number of optimizer steps (a subclass of our MLP counts them). Its
validation accuracy is within 0.03 of ideal's, and the mean is within 0.01. On ours and on the strong side, every trial
is complete in Optuna and FINISHED in MLflow, with train/loss, val/loss and val/accuracy of each epoch. MLflowCallback
stores one value a trial, and this value exists.

Limit, in trials a second: at least 0.85 of ideal, 1.6 times strong, 8 times stock.
"""

from __future__ import annotations

import itertools
import json
import math
import os
from functools import partial
from pathlib import Path

from benchmarks import stored
from benchmarks.commands import ROOT, python
from benchmarks.gaps import STAMPS, counts
from benchmarks.interleave import AGAIN, Benchmark, Figure, Measured, Round, mean, require

# The first one is that of conf/model/mlp.yaml, which is trial 0 of a study.
CONFIGURATIONS = (
    *([64], [32], [128], [256], [32, 32], [64, 64], [128, 128], [256, 256], [64, 32], [128, 64], [256, 128], [256, 64]),
)
METRICS = ("train/loss", "val/loss", "val/accuracy")
SEED = 0  # of the split, the default of data.split_seed
VALIDATION, BATCH = 5_000, 128
COUNTED = "model._target_=benchmarks.probes.FirstStep"  # the bundled MLP, which counts its training batches
STOCK_ROUNDS = 3
CPU = {"CUDA_VISIBLE_DEVICES": ""}
ONE_THREAD = {**CPU, "OMP_NUM_THREADS": "1"}  # for each process, as overnight does by default


def benchmark(quick: bool) -> Benchmark:
    configurations, epochs, share = (4, 1, 0.2) if quick else (12, 3, 1.0)
    steps = epochs * math.ceil(round(share * 55_000) / BATCH)
    turns = itertools.count()
    root: list[Path] = []

    def prepare(kept: Path) -> None:
        root.append(pictures(kept))

    def ours(folder: Path) -> Measured:
        return _ours(folder, root[0], configurations, epochs, share)

    def peer(side: str, folder: Path) -> Measured:
        chosen = list(range(configurations))
        if side == "stock":
            chosen = [chosen[5 * next(turns) % configurations]]  # small and large ones alternate
        options = {"root": str(root[0]), "chosen": chosen, "epochs": epochs, "share": share, "folder": str(folder)}
        how = CPU if side == "stock" else ONE_THREAD
        ran = python("-m", "benchmarks.throughput_peers", side, json.dumps(options), folder=folder, environment=how)
        found = json.loads((folder / "answer.json").read_text())
        runs = stored.runs(folder / "mlflow.db") if (folder / "mlflow.db").exists() else []
        return {**found, "runs": runs, "command_s": ran.wall_s, "a_trial_s": found["seconds"] / len(chosen)}

    def faster(side: str, key: str = "a_trial_s"):
        return lambda r: mean(r, side, key) / mean(r, "ours", key)

    ideal, strong, stock = (partial(peer, side) for side in ("ideal", "strong", "stock"))
    twice = {"ours": ours, "ideal": ideal, f"ideal{AGAIN}": ideal, f"ours{AGAIN}": ours}
    sides = {**twice, "strong": strong, "stock": stock}

    return Benchmark(
        "throughput",
        __doc__ or "",
        sides,
        partial(gate, configurations=configurations, epochs=epochs, steps=steps, quick=quick),
        [
            Figure("ours over ideal", "times", faster("ideal"), 0.85, least=True),
            Figure("ours over strong", "times", faster("strong"), 1.6, least=True),
            Figure("ours over stock", "times", faster("stock"), 8.0, least=True, needs=("stock",)),
            *(
                Figure(
                    f"{side}: {configurations} trials",
                    "s",
                    lambda r, s=side: mean(r, s, "a_trial_s") * configurations,
                    needs=(side,),
                )
                for side in ("ours", "ideal", "strong", "stock")
            ),
            Figure("ours over strong, whole command", "times", faster("strong", "command_s")),
            Figure("ours, whole command", "s", lambda r: mean(r, "ours", "command_s")),
            Figure(
                "accuracy: ours less ideal, mean over configurations",
                "",
                lambda r: _mean_difference(r["ours"]["accuracies"], r["ideal"]["accuracies"]),
            ),
        ],
        prepare=prepare,
        round_s=90 if quick else 220,
        seldom={"stock": STOCK_ROUNDS},
    )


def gate(measured: Round, configurations: int, epochs: int, steps: int, quick: bool) -> None:
    ideal = measured["ideal"]["accuracies"]
    one, all_together = (0.08, 0.04) if quick else (0.03, 0.01)  # a short training has more noise
    for side, found in measured.items():
        wanted = configurations if side != "stock" else len(found["accuracies"])
        require(len(found["accuracies"]) == wanted > 0, f"{side}: {len(found['accuracies'])} of {wanted} trials")
        require(found["steps"] == [steps] * wanted, f"{side}: trained for {found['steps']} steps instead of {steps}")
        for name, accuracy in found["accuracies"].items():
            apart = abs(accuracy - ideal[name])
            require(apart < one, f"{side} {name}: accuracy {accuracy:.3f}, ideal {ideal[name]:.3f}")
        apart = abs(_mean_difference(found["accuracies"], ideal))
        allowed = all_together * math.sqrt(configurations / wanted)
        require(apart < allowed, f"{side}: accuracies are {apart:.3f} from ideal's on average, allowed {allowed:.3f}")
    for side in ("ours", f"ours{AGAIN}", "strong"):
        whole = [
            r
            for r in measured[side]["runs"]
            if r.status == "FINISHED" and all(r.steps.get(metric) == epochs for metric in METRICS) and r.params
        ]
        runs = len(measured[side]["runs"])
        require(len(whole) == runs == configurations, f"{side}: {len(whole)} of {runs} runs are complete in MLflow")
    if "stock" not in measured:
        return
    runs = [r for r in measured["stock"]["runs"] if r.status == "FINISHED" and r.steps.get("val/accuracy")]
    require(len(runs) == len(measured["stock"]["accuracies"]), f"stock: {len(runs)} runs in MLflow")


def _mean_difference(mine: dict[str, float], other: dict[str, float]) -> float:
    return sum(mine[name] - other[name] for name in mine) / len(mine)


def _ours(home: Path, root: Path, configurations: int, epochs: int, share: float) -> Measured:
    enqueued = [f"{{model.hidden_sizes:{sizes}}}" for sizes in CONFIGURATIONS[1:configurations]]
    overrides = [
        *("data=fashion_mnist", f"data.root={root}", f"data.subset={share}", f"data.batch_size={BATCH}"),
        *("data.normalise=standard", "model=mlp", COUNTED, "search=hidden_sizes"),
        *("optimizer=adam", "optimizer.lr=1e-3"),
        f"study.enqueue=[{','.join(enqueued)}]",
        *("scheduler=none", "slots=2", "study.name=throughput", f"study.trials={configurations}"),
        *("study.metric=val/accuracy", "study.direction=maximize", f"trainer.max_epochs={epochs}", f"home={home}"),
    ]
    conf = str(ROOT / "benchmarks" / "conf")
    stamps = home / "stamps"
    how = {**CPU, STAMPS: str(stamps)}
    ran = python("-m", "overnight", "tune", "--config-dir", conf, *overrides, folder=home, environment=how)
    trials = [t for t in stored.trials(home / "optuna.db", "throughput") if t.state == "COMPLETE"]
    seconds = max(t.ended_at for t in trials) - min(t.started_at for t in trials)
    return {
        "seconds": seconds,
        "a_trial_s": seconds / len(trials),
        "command_s": ran.wall_s,
        "accuracies": {_sizes(t): t.value for t in trials},
        "steps": counts(stamps, "fed"),
        "runs": stored.trial_runs(home / "mlflow.db"),
    }


def _sizes(trial: stored.Trial) -> str:
    name, params = "model.hidden_sizes", trial.params
    return name_of([int(params[f"{name}.{i}"]) for i in range(int(params[f"{name}.length"]))])


def name_of(sizes: list[int]) -> str:
    return "-".join(map(str, sizes))


def pictures(kept: Path) -> Path:
    """Return the folder that contains FashionMNIST/raw: the real data, or enlarged digits."""
    for folder in (os.environ.get("OVERNIGHT_DATA"), ROOT.parent / "shared" / "data"):
        if folder and (Path(folder) / "FashionMNIST" / "raw" / "train-images-idx3-ubyte").exists():
            return Path(folder).absolute()
    print("  Fashion-MNIST is not available; enlarged digits replace it", flush=True)
    python("-m", "benchmarks.throughput_peers", "digits", json.dumps(str(kept)), folder=kept)
    return kept
