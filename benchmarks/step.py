"""What a training step costs beyond PyTorch's own.

Claim: our loop, with Lightning's Trainer, adds next to nothing to a bare training step.

Workload: batches of 128 generated pictures of 28x28 pixels in memory; an MLP with one hidden layer of 64, one with 512,
and the CNN with its defaults; on the CPU with one thread, and on a GPU if there is one. The steps run through
`overnight.trial.fit` with callbacks and reports, as in a trial. The result is the time from the start of an epoch to
its last batch, divided by its steps.

Peer: the bare loop, in the same process. Epochs of both sides alternate: pick a batch, zero_grad, forward,
cross_entropy, backward, step, with a copy of the network and an optimizer with the same options. A user's own module
with Lightning's automatic optimisation and self.log in its step is reported too, without a limit; and one that logs two
values and whose data module returns torch's DataLoader over a TensorDataset, with a limit.

Gate: both sides take the same number of optimizer steps. Their training losses in the last epoch differ by less than a
fifth, and are lower than in the first epoch.

Limit: 1.10 times the bare step for MLP-64, 1.05 for MLP-512 and the CNN, 2.0 for the user's module with a DataLoader
(medians over the pairs of a run).
"""

from __future__ import annotations

import json
import statistics
import sys
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.commands import python
from benchmarks.interleave import Benchmark, Figure, Measured, Round, require

BATCH = 128
# name -> class, arguments, steps an epoch, limit
NETS: dict[str, tuple[str, dict[str, Any], int, float | None]] = {
    "MLP-64": ("mlp", {"hidden_sizes": [64]}, 200, 1.10),
    "MLP-512": ("mlp", {"hidden_sizes": [512]}, 100, 1.05),
    "CNN": ("cnn", {}, 40, 1.05),
    "MLP-64 of a user": ("own", {}, 200, None),
    "MLP-64 of a user with a DataLoader": ("loaded", {}, 200, 2.0),
}


def benchmark(quick: bool) -> Benchmark:
    devices = ["cpu", "cuda:0"] if _has_gpu() else ["cpu"]
    sides = {
        name if device == "cpu" else f"{name} on a GPU": partial(_measure, name, device, 3 if quick else 7)
        for device in devices
        for name in NETS
    }
    return Benchmark(
        "step",
        __doc__ or "",
        sides,
        gate,
        [
            *(
                Figure(f"{side}, over bare", "", lambda r, s=side: r[s]["ratio"], NETS[side.split(" on a")[0]][3])
                for side in sides
            ),
            *(
                Figure(f"{side}, a step {whose}", "ms", lambda r, s=side, k=whose: r[s][k])
                for side in sides
                for whose in ("ours", "bare")
            ),
        ],
        round_s=25 if quick else 45,
    )


def gate(measured: Round) -> None:
    for side, found in measured.items():
        require(
            found["steps"] == found["bare_steps"] > 0, f"{side}: {found['steps']} steps, {found['bare_steps']} bare"
        )
        first, last, bare = found["first_loss"], found["loss"], found["bare_loss"]
        require(last < first, f"{side}: the training loss did not fall: {first:.3f}, then {last:.3f}")
        require(abs(last - bare) < 0.2 * bare, f"{side}: the training loss is {last:.3f}, and bare {bare:.3f}")


def _has_gpu() -> bool:
    from overnight.system.devices import slot_devices

    return slot_devices(1)[0] != "cpu"


def _measure(net: str, device: str, pairs: int, folder: Path) -> Measured:
    answer = folder / "answer.json"
    python("-m", "benchmarks.step", net, device, str(pairs), str(answer), folder=folder)
    found: Measured = json.loads(answer.read_text())
    ours, bare = found.pop("ours_s"), found.pop("bare_s")
    return {
        **found,
        "ratio": statistics.median(a / b for a, b in zip(ours, bare, strict=True)),
        "ours": statistics.median(ours) * 1000,
        "bare": statistics.median(bare) * 1000,
    }


# In a process of its own ----------------------------------------------------------------------------------------------


def train(net: str, device: str, pairs: int) -> dict[str, Any]:
    """Train `pairs` epochs, each after a bare one. The first pair is not counted."""
    from benchmarks import stepping
    from overnight.protocol import TrialSpec
    from overnight.search.build_plan import build_plan
    from overnight.trial.fit import fit

    kind, arguments, steps, _ = NETS[net]
    is_own = kind in ("own", "loaded")
    model = "mlp" if is_own else kind
    config = build_plan([f"model={model}", "search=none", f"trainer.max_epochs={pairs}"]).config({})
    rows = "LoadedRows" if kind == "loaded" else "Rows"
    config["data"] = {"_target_": f"benchmarks.stepping.{rows}", "steps": steps, "batch_size": BATCH}
    config["model"] |= arguments
    config["model"]["_target_"] = f"benchmarks.stepping.Timed{kind.capitalize() if is_own else kind.upper()}"
    if is_own:
        config["model"] = {"_target_": config["model"]["_target_"]}
    spec = TrialSpec(
        "step", 0, 0, config, "train/loss", "minimize", "last", Path("never written"), 1e9, device, keep_weights=False
    )
    fit(spec, stepping.NullLink())
    return stepping.found(steps)


if __name__ == "__main__":
    Path(sys.argv[4]).write_text(json.dumps(train(sys.argv[1], sys.argv[2], int(sys.argv[3]))))
