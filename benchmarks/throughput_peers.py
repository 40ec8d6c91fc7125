"""The peers of the throughput benchmark: `python -m benchmarks.throughput_peers SIDE JSON`.

See throughput.py. Each peer writes answer.json: seconds from its first trial's start to its last one's end, the
validation accuracy of each configuration, and how many optimizer steps each took.
"""

from __future__ import annotations

import json
import multiprocessing
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, Subset, TensorDataset
from torchvision import datasets, transforms

from benchmarks.throughput import BATCH, CONFIGURATIONS, SEED, VALIDATION, name_of
from overnight.models.activations import initialise

CLASSES = 10


@dataclass(frozen=True)
class Options:
    """What to train.

    Args:
        chosen: The indices of the configurations.
        share: The share of the rows to train on.
    """

    root: str
    chosen: list[int]
    epochs: int
    share: float
    folder: str

    def rows(self, count: int) -> tuple[Tensor, Tensor]:
        """Return the indices of the rows to train on and to validate on, the same as our data module's."""
        order = torch.randperm(count, generator=torch.Generator().manual_seed(SEED))
        known = order[VALIDATION:]
        return known[: max(1, round(self.share * len(known)))], order[:VALIDATION]

    @property
    def storage(self) -> str:
        return f"sqlite:///{self.folder}/optuna.db"

    @property
    def tracking(self) -> str:
        return f"sqlite:///{self.folder}/mlflow.db"


Take, Ready, Tell = Callable[[], int | None], Callable[[], Any], Callable[..., None]
Outcome = tuple[str, float, int]  # a configuration's name, its validation accuracy, its optimizer steps


def network(sizes: list[int]) -> nn.Sequential:
    layers: list[nn.Module] = [nn.Flatten()]
    for before, size in zip([784, *sizes], sizes, strict=False):
        layers += [nn.Linear(before, size), nn.ReLU()]
    net = nn.Sequential(*layers, nn.Linear(sizes[-1], CLASSES))
    initialise(net, "relu")  # the initial weights of overnight, so that accuracies are comparable
    return net


def tensors(options: Options) -> dict[str, tuple[Tensor, Tensor]]:
    """Return training and validation data as standardised tensors: (N, 1, 28, 28) and (N,)."""
    known = datasets.FashionMNIST(options.root, train=True)
    train, validation = options.rows(len(known))
    pictures, targets = known.data.unsqueeze(1).float() / 255, known.targets
    mean, deviation = pictures[train].mean(), pictures[train].std()
    pictures = (pictures - mean) / deviation
    return {name: (pictures[rows], targets[rows]) for name, rows in (("train", train), ("validation", validation))}


# ideal ----------------------------------------------------------------------------------------------------------------


def ideal(
    options: Options, take: Callable[[], int | None], ready: Callable[[], Any], tell: Callable[..., None]
) -> None:
    data = tensors(options)
    inputs, targets = data["train"]
    ready()
    while (index := take()) is not None:
        sizes, started = CONFIGURATIONS[index], time.time()
        torch.manual_seed(index)
        net = network(sizes)
        optimizer = torch.optim.Adam(net.parameters(), lr=1e-3, fused=True)
        steps = 0
        for _ in range(options.epochs):
            total = torch.tensor(0.0)
            for rows in torch.randperm(len(inputs)).split(BATCH):
                optimizer.zero_grad()
                loss = cross_entropy(net(inputs[rows]), targets[rows])
                loss.backward()
                optimizer.step()
                total += loss.detach() * len(rows)
                steps += 1
            with torch.no_grad():
                logits = net(data["validation"][0])
                cross_entropy(logits, data["validation"][1])
                accuracy = float((logits.argmax(1) == data["validation"][1]).float().mean())
        tell((name_of(sizes), accuracy, steps), started, time.time())


# strong and stock: the same module, as a user writes one ------------------------------------------------------------


class Classifier(pl.LightningModule):
    def __init__(self, sizes: list[int], fused: bool) -> None:
        super().__init__()
        self.net = network(sizes)
        self.fused = fused

    def training_step(self, batch: tuple[Tensor, Tensor], _: int) -> Tensor:
        inputs, targets = batch
        loss = cross_entropy(self.net(inputs), targets)
        self.log("train/loss", loss, on_step=False, on_epoch=True)
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], _: int) -> None:
        inputs, targets = batch
        logits = self.net(inputs)
        self.log("val/loss", cross_entropy(logits, targets))
        self.log("val/accuracy", (logits.argmax(1) == targets).float().mean())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=1e-3, fused=self.fused or None)


class Report(pl.Callback):
    """Reports each epoch to Optuna."""

    def __init__(self, trial: optuna.Trial) -> None:
        self.trial = trial

    def on_validation_end(self, trainer: pl.Trainer, _: pl.LightningModule) -> None:
        self.trial.report(float(trainer.callback_metrics["val/accuracy"]), trainer.current_epoch)


def outcome(trainer: pl.Trainer, sizes: list[int]) -> Outcome:
    return name_of(sizes), float(trainer.callback_metrics["val/accuracy"]), trainer.global_step


def strong(
    options: Options, take: Callable[[], int | None], ready: Callable[[], Any], tell: Callable[..., None]
) -> None:
    import mlflow
    from pytorch_lightning.loggers import MLFlowLogger

    data = {name: TensorDataset(*pair) for name, pair in tensors(options).items()}
    study = optuna.load_study(study_name="throughput", storage=options.storage)
    mlflow.MlflowClient(options.tracking).get_experiment_by_name("throughput")  # the store is open
    ready()
    while (index := take()) is not None:
        sizes, started = CONFIGURATIONS[index], time.time()
        trial = study.ask()
        for layer, size in enumerate(sizes):
            trial.suggest_int(f"hidden_size_{layer}", size, size)
        torch.manual_seed(index)
        logger = MLFlowLogger("throughput", tracking_uri=options.tracking, run_name=f"trial-{trial.number}")
        logger.log_hyperparams(trial.params)
        trainer = pl.Trainer(
            max_epochs=options.epochs,
            accelerator="cpu",
            devices=1,
            logger=logger,
            callbacks=[Report(trial)],
            enable_progress_bar=False,
            enable_model_summary=False,
            enable_checkpointing=False,
            num_sanity_val_steps=0,
        )
        trainer.fit(
            Classifier(sizes, fused=True),
            DataLoader(data["train"], batch_size=BATCH, shuffle=True),
            DataLoader(data["validation"], batch_size=1024),
        )
        name, accuracy, steps = outcome(trainer, sizes)
        study.tell(trial, accuracy)
        tell((name, accuracy, steps), started, time.time())


def stock(options: Options) -> None:
    from optuna_integration.mlflow import MLflowCallback

    known = datasets.FashionMNIST(options.root, train=True)
    train, validation = options.rows(len(known))
    shades = known.data[train].float() / 255
    known.transform = transforms.Compose(
        [transforms.ToTensor(), transforms.Normalize((float(shades.mean()),), (float(shades.std()),))]
    )
    done: list[Outcome] = []

    def objective(trial: optuna.Trial) -> float:
        index = options.chosen[trial.number]
        sizes = CONFIGURATIONS[index]
        for layer, size in enumerate(sizes):
            trial.suggest_int(f"hidden_size_{layer}", size, size)
        torch.manual_seed(index)
        trainer = pl.Trainer(max_epochs=options.epochs, default_root_dir=options.folder)
        trainer.fit(
            Classifier(sizes, fused=False),
            DataLoader(Subset(known, train.tolist()), batch_size=BATCH, shuffle=True),
            DataLoader(Subset(known, validation.tolist()), batch_size=BATCH),
        )
        done.append(outcome(trainer, sizes))
        return done[-1][1]

    study = optuna.create_study(study_name="throughput", direction="maximize")
    callback = MLflowCallback(tracking_uri=options.tracking, metric_name="val/accuracy")
    study.optimize(objective, n_trials=len(options.chosen), callbacks=[callback])
    times = [(t.datetime_start.timestamp(), t.datetime_complete.timestamp()) for t in study.trials]
    answer(options, done, times)


# Two processes side by side -------------------------------------------------------------------------------------------


def side_by_side(work: Callable[..., None], options: Options) -> None:
    """Run `work` in two processes, which take the next configuration after each one."""
    context = multiprocessing.get_context("spawn")
    queue, answers, barrier = context.Queue(), context.Queue(), context.Barrier(2)
    for index in [*options.chosen, None, None]:
        queue.put(index)
    workers = [context.Process(target=_work, args=(work.__name__, options, queue, answers, barrier)) for _ in range(2)]
    for worker in workers:
        worker.start()
    received = [answers.get(timeout=800) for _ in options.chosen]
    for worker in workers:
        worker.join()
    answer(options, [one for one, _, _ in received], [(started, ended) for _, started, ended in received])


def _work(name: str, options: Options, queue: Any, answers: Any, barrier: Any) -> None:
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    work = {"ideal": ideal, "strong": strong}[name]
    work(options, queue.get, barrier.wait, lambda *one: answers.put(one))


def answer(options: Options, done: list[Outcome], times: list[tuple[float, float]]) -> None:
    found = {
        "seconds": max(ended for _, ended in times) - min(started for started, _ in times),
        "accuracies": {name: accuracy for name, accuracy, _ in done},
        "steps": [steps for _, _, steps in done],
    }
    Path(options.folder, "answer.json").write_text(json.dumps(found))


# Preparation, not measured --------------------------------------------------------------------------------------------


def enlarged_digits(folder: str) -> None:
    """Write FashionMNIST's four files, filled with digits of 28x28 pixels."""
    import numpy as np
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    chance = np.random.default_rng(0)
    raw = Path(folder, "FashionMNIST", "raw")
    raw.mkdir(parents=True)
    for part, count in (("train", 60_000), ("t10k", 10_000)):
        rows = chance.integers(0, len(labels), count)
        large = images[rows].reshape(-1, 8, 8).repeat(3, 1).repeat(3, 2) * 15.9  # (N, 24, 24) of 0 to 254
        canvas = np.zeros((count, 28, 28), np.uint8)
        for down, right in np.ndindex(5, 5):
            mine = np.arange(count) % 25 == 5 * down + right  # shifted by up to four pixels in each direction
            canvas[mine, down : down + 24, right : right + 24] = large[mine]
        for kind, array in (("images-idx3", canvas), ("labels-idx1", labels[rows].astype(np.uint8))):
            head = bytes([0, 0, 8, array.ndim]) + b"".join(n.to_bytes(4, "big") for n in array.shape)
            (raw / f"{part}-{kind}-ubyte").write_bytes(head + array.tobytes())


def main(side: str, given: Any) -> None:
    if side == "digits":
        enlarged_digits(given)
    elif side == "stock":
        stock(Options(**given))
    else:
        options = Options(**given)
        if side == "strong":
            import mlflow

            client = mlflow.MlflowClient(options.tracking)
            client.create_experiment("throughput", artifact_location=f"{options.folder}/artifacts")
            optuna.create_study(study_name="throughput", storage=options.storage, direction="maximize")
        side_by_side({"ideal": ideal, "strong": strong}[side], options)


if __name__ == "__main__":
    main(sys.argv[1], json.loads(sys.argv[2]))
