"""The budget of a search: how many trials it may start, and how many epochs they may train together."""

from __future__ import annotations

import math
from dataclasses import dataclass

from overnight.config.settings import Settings

# The budget by default, in whole trainings.
TRAININGS = 30.0


@dataclass(frozen=True)
class Budget:
    """How long a search may be.

    Attributes:
        trainings: In whole trainings. By default it does not limit a search for which study.trials is given.
        epochs: The same as a number of epochs of all trials together, or of validations where they are counted, for a
            scheduler that pauses trials.
        epoch_limit: The number of epochs after which the search ends; None where only its trials are limited.
        trial_limit: The largest number of trials that was given, or that a grid has; None where there is none.
        trials: The largest number of trials, also where only the epochs are limited.
    """

    trainings: float
    epochs: int
    epoch_limit: int | None
    trial_limit: int | None
    trials: int

    @property
    def counts_epochs(self) -> bool:
        """Whether it is spent in epochs: trials are paused, and their number is not limited."""
        return self.epoch_limit is not None and self.trial_limit is None


def budget_of(settings: Settings, pauses: bool, grid_points: float = math.inf) -> Budget:
    """Return the budget of a search.

    Args:
        pauses: Whether the scheduler pauses trials. The budget is then a number of epochs.
        grid_points: The trials of a whole grid; infinite for other samplers.
    """
    study = settings.study
    trainings = study.budget or (TRAININGS if study.trials is None else float(study.trials))
    epochs = math.floor(trainings * (settings.trainer.units or 1))
    is_limit = pauses and (study.budget is not None or study.trials is None)
    limit = min(grid_points, math.inf if study.trials is None else study.trials)
    most = epochs if pauses else math.floor(trainings)
    trials = limit if study.trials is not None else min(limit, most)
    return Budget(
        trainings,
        epochs,
        epochs if is_limit else None,
        None if limit == math.inf else int(limit),
        int(trials),
    )
