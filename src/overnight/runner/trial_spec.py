"""The specification of a trial, built from a plan."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from overnight.protocol import TrialSpec
from overnight.search.plan import Plan
from overnight.search.seeds import derive_seed


def trial_spec(
    plan: Plan,
    number: int,
    config: dict[str, Any],
    seed: int,
    device: str,
    *,
    folder: Path | None = None,
    every_s: float = math.inf,
    keep_weights: bool = True,
    test: bool = False,
) -> TrialSpec:
    """Build what a trial process gets.

    Args:
        folder: for its checkpoints; the trial's own folder in the plan's home by default.
        every_s: seconds between two checkpoints; by default none is written before the end.
        test: evaluate the weights in `folder` on the test set, and train nothing.
    """
    study = plan.settings.study
    return TrialSpec(
        study=plan.name,
        number=number,
        seed=seed,
        config=config,
        metric=study.metric,
        direction=study.direction,
        objective=study.objective,
        checkpoint_folder=plan.paths.checkpoint(number) if folder is None else folder,
        checkpoint_every_s=every_s,
        device=device,
        keep_weights=keep_weights,
        cache=plan.settings.location.paths.cache,
        locks=plan.settings.location.paths.data_locks,
        logged=plan.paths.trial_log(number) if folder is None and not test else None,
        test_only=test,
        fold_seeds=tuple(derive_seed(seed, "fold", fold) for fold in range(study.folds or 0)),
    )
