"""The size of a search, from a simulation of quota halving."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from overnight.search.build_plan import build_plan
from overnight.search.sampler import sampler_notes
from overnight.search.schedulers.expected import epochs_of_trials, epochs_to_finish, expected_search
from overnight.search.schedulers.halving import Halving
from overnight.search.schedulers.interface import State, Trial


def test_half_of_the_trials_of_each_rung_are_sent_on() -> None:
    found = expected_search(max_epochs=4, min_epochs=1, budget_epochs=400, slots=1)
    # 1 epoch each, 1 more for half of them, 2 more for a quarter: 2 epochs a trial.
    assert found.trials == pytest.approx(200, rel=0.1)
    assert found.complete == pytest.approx(50, rel=0.1)
    assert found.trials < found.processes < 2 * found.trials
    assert found.epochs <= 400


def test_trials_that_have_no_rung_to_pause_at_train_to_the_end() -> None:
    found = expected_search(max_epochs=20, min_epochs=16, budget_epochs=600, slots=1)
    assert found.trials == found.complete == found.processes == found.epochs / 20


@pytest.mark.parametrize("max_trials", [10, 2000])
def test_the_number_of_configurations_may_be_limited(max_trials: int) -> None:
    found = expected_search(max_epochs=20, min_epochs=1, budget_epochs=60_000, slots=2, max_trials=max_trials)
    assert found.trials == max_trials
    assert found.complete < max_trials
    assert found.epochs < 20 * max_trials


@given(st.integers(2, 60), st.integers(1, 4), st.integers(10, 120), st.integers(1, 4), st.sampled_from([1, 2, 8]))
def test_the_epochs_of_a_number_of_trials_are_about_those_of_a_simulation(
    max_epochs: int, min_epochs: int, trials: int, finalists: int, slots: int
) -> None:
    min_epochs = min(min_epochs, max_epochs)
    simulated = expected_search(max_epochs, min_epochs, trials * max_epochs, slots, trials, finalists)
    assert simulated.trials == trials
    estimated = epochs_of_trials(trials, max_epochs, min_epochs, finalists)
    assert estimated == pytest.approx(simulated.epochs, rel=0.2)


def test_three_trials_of_a_study_with_three_finalists_are_all_trained_to_the_end() -> None:
    found = expected_search(max_epochs=20, min_epochs=1, budget_epochs=60, slots=2, max_trials=3, finalists=3)
    assert (found.trials, found.complete, found.epochs) == (3, 3, 60)
    assert epochs_of_trials(3, max_epochs=20, min_epochs=1, finalists=3) == 60


def waiting(number: int, epochs: int, score: float, state: State = "paused", until: int | None = None) -> Trial:
    return Trial(number, state, (score,) * epochs, epochs if until is None else until)


@pytest.mark.parametrize(
    ("trials", "finalists", "left"),
    [
        ([waiting(n, 4, n / 10) for n in range(5)], 2, 2 * 16),
        (
            [*(waiting(n, 4, n / 10) for n in range(5)), waiting(5, 20, 0.2, "complete")],
            1,
            16,
        ),  # after the best of two better ones
        ([waiting(0, 1, 0.5), waiting(1, 3, 0.9, "running", until=4)], 1, 1 + 16),  # the running one is the best
        ([waiting(0, 20, 0.5, "complete")], 3, 0),
        ([waiting(0, 2, 0.5, "failed")], 1, 20),  # a trial of its own
        ([waiting(n, 4, n / 10) for n in range(5)], 5, 48),  # the budget is enough for three more
    ],
)
def test_the_end_of_a_search_completes_the_finalists_and_what_is_better(
    trials: list[Trial], finalists: int, left: int
) -> None:
    assert epochs_to_finish(Halving(20, finalists=finalists), trials, 20 + 3 * 16) == left


def test_a_large_search_is_a_multiple_of_a_smaller_one() -> None:
    small, large = (expected_search(20, 1, budget, slots=2) for budget in (1_000, 100_000))
    assert large.trials == pytest.approx(100 * small.trials, rel=0.1)
    assert large.epochs <= 100_000


def test_the_same_search_is_expected_each_time() -> None:
    assert expected_search(20, 1, 600, 2) == expected_search(20, 1, 600, 2)


@pytest.mark.parametrize(
    ("given", "note"),
    [
        (("sampler=random",), "search: there are 90 points for about 185 trials; once each has been tried, "),
        (("sampler=grid", "study.budget=2"), "sampler: grid will try about 12 of 90 points; study.trials=90 without "),
        (("sampler=grid", "study.trials=7"), "sampler: grid will try 7 of 90 points; study.trials=90 tries them all"),
        (("sampler=grid",), None),
        (("sampler=random", "study.budget=2"), None),
    ],
)
def test_a_finite_space_is_compared_with_the_trials_that_a_budget_of_epochs_is_for(
    given: tuple[str, ...], note: str | None
) -> None:
    space = ("search=none", "model.dropout=range(0,0.9,0.01)", "trainer.max_epochs=20")
    notes = sampler_notes(build_plan([*space, *given]))
    assert notes == [] if note is None else notes[0].startswith(note)
