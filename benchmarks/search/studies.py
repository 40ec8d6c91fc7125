"""`python -m benchmarks.search.studies [--seeds N] [--subset SHARE] [EXPERIMENT ...]`: halving against the median rule.

Real studies: each experiment is tuned by the median rule, as conf/experiment says, and then by halving with at most as
many epochs. The winner of each is confirmed on the same fresh seeds. MNIST and Fashion-MNIST are read from the folder
OVERNIGHT_DATA, as everywhere.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from dataclasses import dataclass

from benchmarks import results

EXPERIMENTS = ("mnist_mlp", "fashion_mlp")
COMMON = ("pictures.when=never", "preflight=never", "study.confirm.top=1", "study.confirm.seeds=3")


@dataclass(frozen=True)
class Study:
    """What a study found.

    Attributes:
        epochs: Trained in the search.
        whole: Epochs of a complete trial.
        configurations: Number of trials.
        values: (epochs trained in all, value) after each epoch of the search, in the order of time.
        confirmed: Mean of the winner over the fresh seeds.
    """

    epochs: int
    whole: int
    configurations: int
    values: list[tuple[int, float]]
    confirmed: float

    @property
    def best(self) -> float:
        return max(value for _, value in self.values)

    def epochs_to(self, value: float) -> int | None:
        """The epochs trained in all when a trial first had this value; None where none had it."""
        return next((epochs for epochs, found in self.values if found >= value), None)


def run(experiment: str, overrides: list[str]) -> Study:
    """Tune an experiment for real, in a new folder."""
    import overnight

    with tempfile.TemporaryDirectory(prefix="overnight-studies-") as home:
        found = overnight.tune([f"+experiment={experiment}", *COMMON, *overrides, f"home={home}"])
    metric = found.plan.settings.study.metric
    epochs = sorted((e.at, e.metrics[metric]) for record in found.records for e in record.history)
    assert found.finding is not None
    assert found.finding.winner is not None
    assert found.finding.winner.estimate is not None
    return Study(
        len(epochs),
        found.plan.settings.trainer.max_epochs,
        len(found.records),
        [(n, value) for n, (_, value) in enumerate(epochs, 1)],
        found.finding.winner.estimate.mean,
    )


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.search.studies", description=__doc__)
    parser.add_argument("experiments", nargs="*", metavar="EXPERIMENT", help=", ".join(EXPERIMENTS))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--subset", type=float, default=1.0, help="share of the training set")
    parser.add_argument("--first-seed", type=int, default=0)
    arguments = parser.parse_args()
    print(results.machine(), flush=True)
    for experiment in arguments.experiments or EXPERIMENTS:
        differences = []
        for seed in range(arguments.first_seed, arguments.first_seed + arguments.seeds):
            fixed = [f"seed={seed}", f"data.subset={arguments.subset}"]
            median = run(experiment, fixed)
            budget = median.epochs / median.whole
            halving = run(experiment, [*fixed, "scheduler=halving", "study.trials=null", f"study.budget={budget}"])
            differences.append(halving.confirmed - median.confirmed)
            print(
                f"{experiment}, seed {seed}: median rule {median.confirmed:.4f} ({median.epochs} epochs, "
                f"{median.configurations} configurations), halving {halving.confirmed:.4f} ({halving.epochs} epochs, "
                f"{halving.configurations} configurations); the best value of the median rule's search, "
                f"{median.best:.4f} after {median.epochs_to(median.best)} epochs, had halving after "
                f"{halving.epochs_to(median.best) or 'none'}",
                flush=True,
            )
        spread = statistics.stdev(differences) / len(differences) ** 0.5 if len(differences) > 1 else float("nan")
        print(
            f"{experiment}: halving - median rule {statistics.mean(differences):+.4f}, standard error {spread:.4f}, "
            f"at least as good in {sum(d >= 0 for d in differences)} of {len(differences)}",
            flush=True,
        )


if __name__ == "__main__":
    main()
