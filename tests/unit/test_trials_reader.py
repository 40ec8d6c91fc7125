"""Trials in the study storage as a scheduler sees them."""

from __future__ import annotations

from pathlib import Path

import pytest
from optuna.trial import FrozenTrial, TrialState, create_trial

from overnight.protocol import Progress
from overnight.search.attributes import HISTORY, UNTIL
from overnight.search.build_plan import build_plan
from overnight.search.history import pack_history
from overnight.search.schedulers.study import TrialsReader


@pytest.mark.parametrize(
    ("stored", "epochs", "until", "state"),
    [
        (TrialState.WAITING, 2, 2, "paused"),
        (TrialState.WAITING, 1, 2, "running"),  # it was interrupted, and resumes before anything else
        (TrialState.WAITING, 4, 4, "running"),  # killed after its last epoch: its end is not written yet
        (TrialState.WAITING, 3, 2, "running"),  # killed after a promotion that is not written yet
        (TrialState.PRUNED, 2, 2, "paused"),  # a larger budget resumes it
        (TrialState.PRUNED, 1, 2, "stopped"),
    ],
)
def test_a_stored_trial_is_paused_only_where_it_has_trained_to_its_rung(
    stored: TrialState, epochs: int, until: int, state: str, tmp_path: Path
) -> None:
    plan = build_plan([f"home={tmp_path}", "scheduler=halving", "trainer.max_epochs=4"])
    history = pack_history(Progress(0, e, {"val/accuracy": 0.1 * e}, 1e9 + e, 1.0) for e in range(epochs))
    trial = create_trial(state=stored, user_attrs={UNTIL: until, HISTORY: history})
    (seen,) = TrialsReader(plan).read([trial], {})
    assert (seen.state, seen.epochs, seen.until) == (state, epochs, until)


def test_trials_of_a_length_that_only_the_data_tell_are_never_paused(tmp_path: Path) -> None:
    """The sampler of any study reads its trials so, without a scheduler that pauses them as well."""
    plan = build_plan([f"home={tmp_path}", "trainer.val_check_interval=20"])
    history = pack_history([Progress(0, 0, {"val/accuracy": 0.1}, 1e9, 1.0, 19, None)])
    seen = TrialsReader(plan).read([create_trial(state=TrialState.PRUNED, user_attrs={HISTORY: history})], {})
    assert [(t.state, t.epochs) for t in seen] == [("stopped", 1)]


def test_the_pace_of_a_trial_is_that_of_its_epochs_over_that_of_all(tmp_path: Path) -> None:
    plan = build_plan([f"home={tmp_path}", "scheduler=halving", "trainer.max_epochs=4"])

    def stored(number: int, epoch_s: float, epochs: int) -> FrozenTrial:
        history = [Progress(number, e, {"val/accuracy": 0.1}, 1e9 + e, epoch_s) for e in range(epochs)]
        trial = create_trial(state=TrialState.WAITING, user_attrs={UNTIL: 2, HISTORY: pack_history(history)})
        trial.number = number
        return trial

    trials = [stored(0, 1.0, 2), stored(1, 4.0, 1), stored(2, 1.0, 0)]
    newer = {1: [Progress(1, e, {"val/accuracy": 0.1}, 1e9 + e, 4.0) for e in range(2)]}
    mean_s = (1.0 + 1.0 + 4.0 + 4.0) / 4
    assert [t.pace for t in TrialsReader(plan).read(trials, newer, with_pace=True)] == [1 / mean_s, 4 / mean_s, 1.0]
    assert {t.pace for t in TrialsReader(plan).read(trials, newer)} == {1.0}, (
        "without a deadline nothing depends on time"
    )
