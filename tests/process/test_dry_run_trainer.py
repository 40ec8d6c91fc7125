"""A dry run sees the Trainer as the trial will: it accepts what trains and refuses what does not."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from overnight.protocol import Decision, DryRunResult, TrialSpec
from overnight.trial import checkpoint
from overnight.trial.dry_run import dry_run_batch
from overnight.trial.fit import fit
from overnight.trial.state import identity_of
from support.trial_links import ListLink
from support.user_trials import HABITS, USER_PACKAGE, spec_for

OPTIONS = "user_package.trainer_options."
STREAM = f"{OPTIONS}StreamedData"
BATCHES = 10  # of 48 rows each, in an epoch of the 480 training rows
# Lightning's warning for a schedule that monitors a metric which no epoch has logged yet.
UNAVAILABLE = pytest.mark.filterwarnings("ignore:ReduceLROnPlateau conditioned on metric:RuntimeWarning")


def dry_run(spec: TrialSpec) -> DryRunResult:
    return dry_run_batch(replace(spec, keep_weights=False), [])


def tried(options: dict[str, Any], folder: Path = Path("/nonexistent"), **spec: Any) -> DryRunResult:
    model = {"arguments": {"options": options}, "of_data": {"batch_size": 48}}
    return dry_run(spec_for(folder, f"{OPTIONS}Sets", **model, **spec))


def trains(options: dict[str, Any], folder: Path, **spec: Any) -> bool:
    """Return whether a trial trains to its end and logs the metric."""
    model = {"arguments": {"options": options}, "of_data": {"batch_size": 48}}
    link = ListLink()
    try:
        fit(spec_for(folder, f"{OPTIONS}Sets", **model, **spec), link)
    except Exception:
        return False
    return any("val/accuracy" in e.metrics for e in link.epochs)


@UNAVAILABLE
def test_a_network_that_validates_in_some_epochs_only_is_accepted(tmp_path: Path) -> None:
    result = dry_run(spec_for(tmp_path, f"{HABITS}ValidatesEverySecondEpoch"))
    assert result.problems == ()
    assert result.metrics is not None
    assert "val/accuracy" in result.metrics
    assert not list(tmp_path.iterdir())


@pytest.mark.long
def test_a_network_whose_first_validation_comes_late_is_accepted() -> None:
    result = tried({"check_val_every_n_epoch": 30}, epochs=30)
    assert result.problems == ()
    assert "val/accuracy" in (result.metrics or ())


def test_a_network_that_never_validates_in_its_epochs_is_refused() -> None:
    result = tried({"check_val_every_n_epoch": 3}, epochs=2)
    assert result.problems == ()
    assert "val/accuracy" not in (result.metrics or ()), "which the preflight reports"


def test_an_interval_of_validation_that_exceeds_the_epoch_is_refused_as_in_the_trial() -> None:
    (problem,) = tried({"val_check_interval": BATCHES + 1}).problems
    assert "`val_check_interval` (11) must be less than or equal to the number of the training batches (10)" in problem


@pytest.mark.long
@settings(max_examples=30, deadline=None)
@given(
    every=st.sampled_from([None, 1, 2, 3]),
    interval=st.one_of(st.integers(1, 3 * BATCHES), st.sampled_from([0.1, 0.25, 0.99, 1.0])),
    epochs=st.integers(1, 3),
    data=st.sampled_from([f"{USER_PACKAGE}DigitsData", STREAM]),
    reload=st.sampled_from([0, 1]),
)
def test_a_dry_run_accepts_exactly_the_trainers_that_train(
    tmp_path_factory: pytest.TempPathFactory,
    every: int | None,
    interval: float,
    epochs: int,
    data: str,
    reload: int,
) -> None:
    options = {
        "check_val_every_n_epoch": every,
        "val_check_interval": interval,
        "reload_dataloaders_every_n_epochs": reload,
    }
    result = tried(options, data=data, epochs=epochs)
    accepted = result.problems == () and "val/accuracy" in (result.metrics or ())
    if data == STREAM and isinstance(interval, int) and (every is None or interval > BATCHES):
        return  # how many batches a stream has is not known before it ends
    assert accepted == trains(options, tmp_path_factory.mktemp("trial"), data=data, epochs=epochs)


def test_a_dry_run_trains_and_validates_one_batch_and_announces_all() -> None:
    from user_package.trainer_options import CountsBatches

    CountsBatches.seen.clear()
    spec = spec_for(Path("/nonexistent"), f"{OPTIONS}CountsBatches", of_data={"batch_size": 48})
    assert dry_run(spec).problems == ()
    assert CountsBatches.seen == [("announced", BATCHES), ("train", 0), ("validate", 0)]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("ReadsItsCheckpointCallback", {"own_callbacks": 1.0, "monitored": 1.0}),
        ("HasNoCheckpointCallback", {"own_callbacks": 0.0, "none": 1.0}),
    ],
)
def test_a_network_finds_its_own_checkpoint_callback_and_not_ours(
    tmp_path: Path, name: str, expected: dict[str, float]
) -> None:
    link = ListLink()
    assert fit(spec_for(tmp_path, f"{OPTIONS}{name}", epochs=2), link).outcome == "complete"
    for epoch in link.epochs:
        assert {key: epoch.metrics[key] for key in expected} == expected
    assert dry_run(spec_for(tmp_path / "dry", f"{OPTIONS}{name}")).problems == ()


def test_the_state_of_an_epoch_holds_what_the_checkpoint_callback_of_the_user_saw(tmp_path: Path) -> None:
    spec = spec_for(tmp_path, f"{OPTIONS}ReadsItsCheckpointCallback", epochs=3)
    link = ListLink({0: Decision.SAVE_AND_STOP})
    assert fit(spec, link).outcome == "saved"
    state, _ = checkpoint.load(tmp_path, identity_of(spec))
    assert state is not None
    (callback,) = [v for k, v in state["callbacks"].items() if k.startswith("ModelCheckpoint")]
    assert float(callback["current_score"]) == pytest.approx(link.epochs[0].metrics["val/loss"])
