"""What cross-validation changes on a small data set: the winner's test score, and the optimism of its estimate.

    python -m benchmarks.cross_validation --seeds 20

For each seed, random configurations of the MLP's space train on diabetes, whose split depends on the seed as well: each
configuration once on one split, and once on each of five folds. With --equal-time, five times as many configurations
train on one split too. 20 seeds took half an hour on a core with other work. The winner of each has the best
val/r2. Its network (with folds that of fold 0) is evaluated on the 89 test rows. The optimism is the estimate of the
winner, val/r2 of the search, minus test/r2. Everything trains in this process, with the functions that the process of
a trial calls.
"""

from __future__ import annotations

import argparse
import gc
import math
import random
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from overnight.protocol import Decision, FoldEnded, Progress, Tested, TrialMessage
from overnight.runner.trial_spec import trial_spec
from overnight.search.build_plan import build_plan
from overnight.search.history import objective_of
from overnight.search.plan import Plan, random_point
from overnight.trial.evaluate import evaluate
from overnight.trial.fit import fit
from overnight.trial.folds import fit_folds

FOLDS = 5


class Reports:
    """A link that keeps what a trial reports."""

    def __init__(self) -> None:
        self.messages: list[TrialMessage] = []

    def send(self, message: TrialMessage) -> None:
        self.messages.append(message)

    def ask(self, message: Progress | FoldEnded) -> Decision:
        self.messages.append(message)
        return Decision.CONTINUE

    def stop_wanted(self) -> bool:
        return False


def search(seed: int, epochs: int, trials: int, folds: int | None) -> tuple[float, float]:
    """Return the winner's estimate and its score on the test set."""
    plan = build_plan(
        ["data=diabetes", f"seed={seed}", f"data.split_seed={seed}", f"trainer.max_epochs={epochs}",
         f"study.folds={folds or 'null'}"]
    )  # fmt: skip
    rng = random.Random(seed)
    values = [random_point(plan, rng) for _ in range(trials)]
    with tempfile.TemporaryDirectory() as folder:
        scores = [_score(plan, number, plan.config(v), Path(folder, str(number))) for number, v in enumerate(values)]
        winner = max(range(trials), key=lambda number: scores[number])
        spec = trial_spec(
            plan, winner, plan.config(values[winner]), plan.trial_seed(winner), "cpu", folder=Path(folder, str(winner))
        )
        reports = Reports()
        evaluate(spec.of_fold(0), reports)
    tested = next(m for m in reports.messages if isinstance(m, Tested))
    return scores[winner], tested.metrics["test/r2"]


def _score(plan: Plan, number: int, config: dict[str, object], folder: Path) -> float:
    spec, reports = trial_spec(plan, number, config, plan.trial_seed(number), "cpu", folder=folder), Reports()
    _ = fit_folds(spec, reports) if spec.fold_seeds else fit(spec, reports)
    value = objective_of([m for m in reports.messages if isinstance(m, Progress)], plan.settings)
    return value if value is not None else -math.inf


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    for option, default in (("--seeds", 20), ("--first-seed", 0), ("--trials", 8), ("--epochs", 10)):
        parser.add_argument(option, type=int, default=default)
    parser.add_argument("--equal-time", action="store_true")
    given = parser.parse_args()
    gc.freeze()  # as in the process of a trial, which collects after each fold
    arms = {
        f"one split, {given.trials} trials": (given.trials, None),
        f"{FOLDS} folds, {given.trials} trials": (given.trials, FOLDS),
    }
    if given.equal_time:
        arms[f"one split, {FOLDS * given.trials} trials"] = FOLDS * given.trials, None
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in arms}
    for seed in range(given.first_seed, given.first_seed + given.seeds):
        for name, (trials, folds) in arms.items():
            began = time.monotonic()
            estimate, test = search(seed, given.epochs, trials, folds)
            found[name].append((estimate, test))
            print(f"seed {seed}: {name}: {estimate:.4f} {test:.4f} ({time.monotonic() - began:.1f} s)", flush=True)
    print(
        f"\n{given.seeds} seeds, {given.epochs} epochs: mean ± standard error, and standard deviation of the optimism"
    )
    for name, pairs in found.items():
        optimism = [estimate - test for estimate, test in pairs]
        print(
            f"{name:24}  estimate {_shown([e for e, _ in pairs])}  test {_shown([t for _, t in pairs])}  "
            f"optimism {_shown(optimism)}, sd {statistics.stdev(optimism) if len(optimism) > 1 else 0:.3f}"
        )


def _shown(values: Sequence[float]) -> str:
    error = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else 0.0
    return f"{statistics.fmean(values):.3f} ± {error:.3f}"


if __name__ == "__main__":
    main()
