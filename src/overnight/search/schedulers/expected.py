"""What a search is expected to train, before it starts: a simulation of quota halving with random scores."""

from __future__ import annotations

import heapq
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

from overnight.search.schedulers.halving import ETA, Halving, rungs
from overnight.search.schedulers.interface import Resume, Start, Trial, epochs_left

# A larger search is simulated with about so many trials, and its numbers are multiplied.
_MOST_TRIALS = 300


@dataclass(frozen=True)
class ExpectedSearch:
    """The size of a search.

    Attributes:
        trials: Configurations that are trained for at least one rung.
        complete: Those of them that are trained to the last epoch.
        processes: How often a process starts: for each new trial, and for each one that is resumed later.
        epochs: All trained epochs.
    """

    trials: int
    complete: int
    processes: int
    epochs: int


def expected_search(
    max_epochs: int,
    min_epochs: int,
    budget_epochs: int,
    slots: int,
    max_trials: int | None = None,
    finalists: int = 1,
    seed: int = 0,
) -> ExpectedSearch:
    """Simulate a search once, in which each configuration has a random score that does not change with the epochs.

    Args:
        max_epochs, min_epochs, max_trials, finalists: As for `Halving`.
        budget_epochs: Epochs that all trials may train together.
        slots: Trials at a time.
    """
    simulated = budget_epochs
    if max_trials is None or max_trials > _MOST_TRIALS:
        most_epochs = max(_MOST_TRIALS * _epochs_per_trial(max_epochs, min_epochs), 2 * max_epochs)
        simulated = min(budget_epochs, math.ceil(most_epochs))
    factor = budget_epochs / simulated
    most = None if max_trials is None else math.ceil(max_trials / factor)
    halving = Halving(max_epochs, min_epochs, most, finalists=finalists)
    found = _simulate(halving, simulated, slots, random.Random(seed))
    trials = round(factor * found.trials)
    return ExpectedSearch(
        trials if max_trials is None else min(trials, max_trials),
        round(factor * found.complete),
        round(factor * found.processes),
        round(factor * found.epochs),
    )


def epochs_of_trials(trials: int, max_epochs: int, min_epochs: int, finalists: int = 1) -> int:
    """The epochs that so many trials need, if each rung sends on the share that it may and all finalists are complete.

    A simulation gives more exact numbers and takes longer. From ten trials on they differ by less than a fifth.
    """
    ends = rungs(max_epochs, min_epochs)
    segments = enumerate(zip((0, *ends), ends, strict=False))
    return sum((end - begin) * max(trials // ETA**i, min(finalists, trials)) for i, (begin, end) in segments)


def epochs_to_finish(halving: Halving, trials: Sequence[Trial], budget_epochs: int) -> int:
    """The epochs that a search still trains once it starts no more trials, if no trial changes its score."""
    found = {t.number: _trained(t, halving.max_epochs) if t.state == "running" else t for t in trials}
    while True:
        answer = halving.finish([*found.values()], epochs_left(found.values(), budget_epochs))
        if answer is None:
            return sum(t.epochs for t in found.values()) - sum(t.epochs for t in trials)
        number = answer.number if isinstance(answer, Resume) else max(found, default=-1) + 1
        trial = found.get(number, Trial(number, "running", (), answer.until))
        found[number] = _trained(replace(trial, until=answer.until), halving.max_epochs)


def _trained(trial: Trial, max_epochs: int) -> Trial:
    """A trial that has trained as far as it may, with its last score."""
    scores = (*trial.scores, *[trial.latest] * (trial.until - trial.epochs))
    return replace(trial, state="complete" if trial.until == max_epochs else "paused", scores=scores)


def trials_of_epochs(epochs: int, max_epochs: int, min_epochs: int) -> int:
    """About how many trials so many epochs are for, if each rung sends on the share that it may."""
    return max(round(epochs / _epochs_per_trial(max_epochs, min_epochs)), 1)


def _epochs_per_trial(max_epochs: int, min_epochs: int) -> float:
    """The mean number of epochs of a trial where each rung sends on the share that it may."""
    ends = rungs(max_epochs, min_epochs)
    return sum((end - begin) / ETA**i for i, (begin, end) in enumerate(zip((0, *ends), ends, strict=False)))


def _simulate(halving: Halving, budget_epochs: int, slots: int, rng: random.Random) -> ExpectedSearch:
    """Run a search in which all epochs take the same time. A trial that is promoted at once keeps its process."""
    trials: list[Trial] = []
    running: list[tuple[int, int]] = []  # (when it ends, in epochs; number)
    scores: list[float] = []
    now = processes = 0

    def send(number: int, until: int) -> None:
        heapq.heappush(running, (now + until - trials[number].epochs, number))
        trials[number] = replace(trials[number], state="running", until=until)

    while True:
        while len(running) < slots:
            answer = halving.next(trials, epochs_left(trials, budget_epochs))
            if answer is None:
                break
            if isinstance(answer, Start):
                trials.append(Trial(len(trials), "running", (), answer.until))
                scores.append(rng.random())
            send(answer.number if isinstance(answer, Resume) else len(trials) - 1, answer.until)
            processes += 1
        if not running:
            break
        now, number = heapq.heappop(running)
        trial = trials[number]
        is_complete = trial.until == halving.max_epochs
        trials[number] = replace(
            trial, state="complete" if is_complete else "paused", scores=(scores[number],) * trial.until
        )
        if not is_complete:
            answer = halving.next(trials, epochs_left(trials, budget_epochs))
            if isinstance(answer, Resume) and answer.number == number:
                send(number, answer.until)
    complete = sum(t.state == "complete" for t in trials)
    return ExpectedSearch(len(trials), complete, processes, sum(t.epochs for t in trials))
