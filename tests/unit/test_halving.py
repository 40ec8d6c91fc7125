"""Quota halving, driven by a simulated study: trials with given learning curves, several slots, no processes."""

from __future__ import annotations

import itertools
import math
import random
import warnings
from dataclasses import replace

import optuna
import pytest
from hypothesis import given
from hypothesis import strategies as st
from optuna.distributions import CategoricalDistribution, IntDistribution
from optuna.trial import create_trial

from overnight.search.build_plan import build_plan
from overnight.search.schedulers.halving import ETA, LEAST_COMPARED, MOST_COMPARED, Halving, kendall_tau, rungs
from overnight.search.schedulers.interface import Resume, Start, Trial, epochs_left
from overnight.search.schedulers.learned_study import TpeOfRung
from overnight.search.schedulers.learning import ENOUGH, choose, rung_to_learn_from
from overnight.search.schedulers.study import make_scheduler


class Simulation:
    """A study whose trials train one epoch at a time, in an order that `rng` chooses.

    Attributes:
        assignments: what the scheduler answered, with the trials that it saw, the epochs that were left, and the slots
            that were busy.
    """

    def __init__(self, halving: Halving, budget: float, slots: int, rng: random.Random, failing: float = 0.0) -> None:
        self.halving, self.budget, self.slots, self.rng, self.failing = halving, budget, slots, rng, failing
        self.trials: list[Trial] = []
        self.assignments: list[tuple[Start | Resume | None, list[Trial], float, int]] = []

    @property
    def left(self) -> float:
        return epochs_left(self.trials, self.budget)

    def run(self) -> None:
        while True:
            self._fill_slots()
            running = [t for t in self.trials if t.state == "running"]
            if not running:
                return
            self._train_an_epoch(self.rng.choice(running))

    def _fill_slots(self) -> None:
        while (busy := sum(t.state == "running" for t in self.trials)) < self.slots:
            answer = self.halving.next(self.trials, self.left)
            self.assignments.append((answer, list(self.trials), self.left, busy))
            if answer is None:
                return
            if isinstance(answer, Start):
                self.trials.append(Trial(len(self.trials), "running", (), answer.until))
            else:
                trial = self.trials[answer.number]
                self.trials[answer.number] = replace(trial, state="running", until=answer.until)

    def _train_an_epoch(self, trial: Trial) -> None:
        if self.rng.random() < self.failing:
            self.trials[trial.number] = replace(trial, state="failed")
            return
        trained = replace(trial, scores=(*trial.scores, self.score(trial.number, trial.epochs + 1)))
        if trained.epochs == self.halving.max_epochs:
            trained = replace(trained, state="complete")
        elif trained.epochs == trained.until:
            trained = replace(trained, state="paused")
        self.trials[trial.number] = trained

    def score(self, number: int, epochs: int) -> float:  # noqa: ARG002
        return round(self.rng.random(), 1)  # equal values occur


class WithCurves(Simulation):
    """The score of a trial is that of its number, whatever the order."""

    def score(self, number: int, epochs: int) -> float:
        return random.Random(number).random() * (1 - 0.5**epochs)


simulations = st.builds(
    lambda max_epochs, min_epochs, trainings, slots, seed, failing, cap, leaves_out: Simulation(
        Halving(max_epochs, min(min_epochs, max_epochs), cap, leaves_out),
        trainings * max_epochs,
        slots,
        random.Random(seed),
        failing,
    ),
    st.integers(1, 40),
    st.integers(1, 5),
    st.floats(1, 8),
    st.integers(1, 8),
    st.integers(0, 2**32),
    st.sampled_from([0.0, 0.0, 0.02]),
    st.one_of(st.none(), st.integers(1, 20)),
    st.booleans(),
)


def test_rungs_double_up_to_the_last_epoch_and_leave_out_the_one_just_below_it() -> None:
    assert rungs(51) == (1, 2, 4, 8, 16, 32, 51)
    assert rungs(40) == (1, 2, 4, 8, 16, 40)
    assert rungs(20) == (1, 2, 4, 8, 20)
    assert rungs(20, min_epochs=3) == (3, 6, 12, 20)
    assert rungs(1) == (1,)
    assert rungs(2) == (1, 2)
    assert rungs(3) == (1, 2, 3)


@given(simulations)
def test_at_most_half_of_the_trials_at_a_rung_are_sent_beyond_it(simulation: Simulation) -> None:
    simulation.run()
    for answer, trials, left, _ in simulation.assignments:
        if not isinstance(answer, Resume) or simulation.halving.is_ending(trials, left):
            continue
        rung = trials[answer.number].until
        if answer.until == simulation.halving.max_epochs and simulation.halving.max_trials is not None:
            continue  # the cap on trials may have begun the end of the search
        reached = [t for t in trials if t.state != "failed" and t.epochs >= rung]
        assert sum(t.until > rung for t in reached) + 1 <= len(reached) // ETA


@given(simulations)
def test_only_paused_trials_are_resumed_and_each_is_sent_further_than_before(simulation: Simulation) -> None:
    simulation.run()
    for answer, trials, _, _ in simulation.assignments:
        if isinstance(answer, Resume):
            assert trials[answer.number].state == "paused"
            assert answer.until > trials[answer.number].until


@given(simulations)
def test_the_budget_is_never_overspent(simulation: Simulation) -> None:
    simulation.run()
    for answer, trials, left, _ in simulation.assignments:
        if isinstance(answer, Resume):
            assert answer.until - trials[answer.number].epochs <= left
        elif answer is not None:
            assert answer.until <= left
    assert sum(t.epochs for t in simulation.trials) <= simulation.budget


@given(simulations)
def test_no_slot_is_idle_while_more_than_one_training_is_left(simulation: Simulation) -> None:
    simulation.run()
    for answer, _, left, _ in simulation.assignments:
        if left > simulation.halving.max_epochs and simulation.halving.max_trials is None:
            assert answer is not None


@given(simulations)
def test_a_budget_of_one_training_gives_a_complete_trial(simulation: Simulation) -> None:
    simulation.failing = 0.0
    simulation.run()
    assert any(t.state == "complete" for t in simulation.trials)


@given(simulations)
def test_the_rest_of_the_budget_is_spent_on_paused_trials_the_best_first(simulation: Simulation) -> None:
    simulation.run()
    max_epochs = simulation.halving.max_epochs
    for answer, trials, left, _ in simulation.assignments:
        if simulation.halving.is_ending(trials, left):
            fitting = [t for t in trials if t.state == "paused" and max_epochs - t.epochs <= left]
            if fitting:
                assert answer == Resume(max(fitting, key=lambda t: t.latest).number, max_epochs)


@given(simulations, st.integers(1, 4))
def test_a_search_that_ends_before_its_budget_trains_those_to_the_end_that_may_win(
    simulation: Simulation, finalists: int
) -> None:
    """As study.patience ends it: at some moment, no new trial starts."""
    simulation.run()
    halving, max_epochs = simulation.halving, simulation.halving.max_epochs
    halving.finalists = finalists
    for _, trials, left, _ in simulation.assignments:
        answer = halving.finish(trials, left)
        fitting = [t for t in trials if t.state == "paused" and max_epochs - t.epochs <= left]
        if any(t.state == "running" and t.until < max_epochs for t in trials):
            assert answer is None, "it may be the best"
            continue
        if not fitting:
            assert answer is None or isinstance(answer, Start)
            continue
        best = max(fitting, key=lambda t: t.latest)
        last = [t for t in trials if t.state == "complete" or (t.state == "running" and t.until == max_epochs)]
        is_sent = len(last) < finalists or best.latest > max(t.latest for t in last)
        assert answer == (Resume(best.number, max_epochs) if is_sent else None)


@pytest.mark.parametrize("finalists", [1, 3])
@pytest.mark.parametrize("slots", [1, 8])
def test_a_cap_on_trials_promotes_until_no_quota_is_open_and_then_completes_the_finalists(
    finalists: int, slots: int
) -> None:
    halving = Halving(8, max_trials=8, finalists=finalists)
    simulation = WithCurves(halving, 1_000, slots, random.Random(0))
    simulation.run()
    assert len(simulation.trials) == 8
    best = max(simulation.trials, key=lambda t: random.Random(t.number).random())
    assert best.state == "complete"
    complete = sum(t.state == "complete" for t in simulation.trials)
    assert finalists <= complete <= finalists + 1, "a promotion may have completed a worse one before"
    assert sum(t.epochs for t in simulation.trials) < 8 * 8 / 2


@pytest.mark.parametrize(("trainings", "ending"), [(1, 1), (1.5, 1), (2, 1), (2.5, 1.25), (3, 1.5), (30, 1.5)])
def test_a_search_begins_to_end_with_one_and_a_half_trainings_or_half_of_a_small_budget(
    trainings: float, ending: float
) -> None:
    halving = Halving(40)
    trained = [Trial(n, "paused", (0.5,) * 10, 10) for n in range(round(4 * (trainings - ending)))]
    left = epochs_left(trained, trainings * 40)
    assert left == ending * 40
    assert halving.is_ending(trained, left)
    assert not halving.is_ending(trained[:-1], left + 10)
    assert not Halving(1).is_ending([], 1), "there is nothing to pause"


def test_a_budget_of_three_trainings_completes_two_trials() -> None:
    simulation = WithCurves(Halving(27), 3 * 27, 1, random.Random(0))
    simulation.run()
    assert sum(t.state == "complete" for t in simulation.trials) == 2


def test_the_last_training_is_for_a_new_trial_where_none_is_paused() -> None:
    """A study of two trials, with study.trials raised to three."""
    trials = [Trial(n, "complete", (0.5, 0.6), 2) for n in range(2)]
    assert Halving(2, max_trials=3).next(trials, 2) == Start(2)
    assert Halving(2, max_trials=2).next(trials, 2) is None
    assert Halving(2).next([*trials, Trial(2, "running", (), 1)], 2) is None
    assert Halving(2).finish(trials, 2) is None, "the search ends before its budget"


def test_a_trial_without_a_value_is_trained_to_the_end_where_no_other_is_there() -> None:
    trials = [Trial(0, "paused", (math.nan,), 1)]
    assert Halving(8).next(trials, 7) == Resume(0, 8)
    assert Halving(8).next(trials, 6) is None


class WithRandomStart(WithCurves):
    """The scores of the first epoch say nothing about the later ones."""

    def score(self, number: int, epochs: int) -> float:
        return self.rng.random() if epochs == 1 else super().score(number, epochs)


def first_targets(simulation: Simulation) -> list[int]:
    simulation.run()
    return [answer.until for answer, *_ in simulation.assignments if isinstance(answer, Start)]


@given(st.integers(0, 2**32))
def test_a_first_rung_that_says_nothing_about_the_next_one_is_left_out(seed: int) -> None:
    targets = first_targets(WithRandomStart(Halving(16, leaves_out=True), 30 * 16, 1, random.Random(seed)))
    begin = 2 * LEAST_COMPARED  # so many trials have started when enough were promoted
    assert targets[:begin] == [1] * begin
    assert targets.count(2) > targets.count(1), "the rung is left out once enough trials were compared"
    assert set(targets) == {1, 2}, "and no other one"


@pytest.mark.parametrize("slots", [1, 4])
def test_a_first_rung_that_orders_trials_as_the_next_one_does_is_kept(slots: int) -> None:
    assert set(first_targets(WithCurves(Halving(16, leaves_out=True), 30 * 16, slots, random.Random(0)))) == {1}


def test_a_first_rung_that_was_asked_for_is_kept_whatever_it_says() -> None:
    assert set(first_targets(WithRandomStart(Halving(16), 30 * 16, 1, random.Random(0)))) == {1}
    given = make_scheduler(build_plan(["scheduler=halving", "scheduler.min_epochs=1"]), 1)
    found = make_scheduler(build_plan(["scheduler=halving"]), 1)
    trials = [Trial(n, "paused", (float(n), -float(n)), 2) for n in range(LEAST_COMPARED)]  # the order turns round
    assert isinstance(given, Halving)
    assert isinstance(found, Halving)
    assert given.used_rungs(trials) == (1, 2, 4, 8, 20)
    assert found.used_rungs(trials) == (2, 4, 8, 20)


def test_the_last_rung_before_the_end_is_never_left_out() -> None:
    orders = [(float(n), -float(n), 0.0, float(n)) for n in range(LEAST_COMPARED)]  # no rung agrees with the next
    trials = [Trial(n, "complete", scores, 4) for n, scores in enumerate(orders)]
    assert Halving(4, leaves_out=True).used_rungs(trials) == (2, 4)


def test_the_first_trials_decide_whether_a_rung_is_left_out_and_failed_ones_are_no_evidence() -> None:
    agree = [Trial(n, "paused", (float(n), float(n)), 2) for n in range(MOST_COMPARED)]
    turned = [Trial(n, "paused", (float(n), -float(n)), 2) for n in range(MOST_COMPARED, 3 * MOST_COMPARED)]
    failed = [replace(t, state="failed") for t in turned]
    halving = Halving(8, leaves_out=True)
    assert halving.used_rungs([*agree, *turned])[0] == 1
    assert halving.used_rungs(turned)[0] == 2
    assert halving.used_rungs(failed)[0] == 1


def test_kendalls_tau_counts_pairs_in_the_same_order_less_those_in_the_other() -> None:
    assert kendall_tau([1, 2, 3], [10, 20, 30]) == 1
    assert kendall_tau([1, 2, 3], [3, 2, 1]) == -1
    assert kendall_tau([1, 2, 3], [1, 3, 2]) == pytest.approx(1 / 3)
    assert kendall_tau([1, 1, 1], [1, 2, 3]) == 0, "equal values agree with no order"


def test_a_trial_without_a_score_is_promoted_last() -> None:
    trials = [Trial(0, "paused", (math.nan,), 1), Trial(1, "paused", (-5.0,), 1)]
    assert Halving(8).next(trials, 100) == Resume(1, 2)


def test_a_failed_trial_opens_no_quota() -> None:
    trials = [Trial(0, "failed", (0.5,), 1), Trial(1, "paused", (0.1,), 1)]
    assert Halving(8).next(trials, 100) == Start(1)


def test_a_trial_that_still_runs_at_its_rung_is_not_promoted_by_another_slot() -> None:
    trials = [Trial(0, "running", (0.9,), 1), Trial(1, "paused", (0.1,), 1)]
    assert Halving(8).next(trials, 100) == Start(1)


def test_a_sampler_learns_the_value_at_the_rung_and_not_a_later_one() -> None:
    trials = [Trial(n, "paused", (0.1, 0.9) if n < 5 else (0.1,), 2) for n in range(10)]
    assert rung_to_learn_from(trials, (1, 2)) == 1
    assert set(choose(trials, 1, random.Random(0)).values()) == {0.1}


def test_of_equal_trials_the_earlier_one_is_promoted() -> None:
    trials = [Trial(0, "paused", (0.5,), 1), Trial(1, "paused", (0.5,), 1)]
    assert Halving(8).next(trials, 100) == Resume(0, 2)


def test_the_highest_rung_promotes_first() -> None:
    trials = [Trial(n, "paused", (0.1 * n,), 1) for n in range(4)]
    trials += [Trial(4, "paused", (0.9, 0.9), 2), Trial(5, "paused", (0.8, 0.8), 2)]
    assert Halving(8).next(trials, 100) == Resume(4, 4)


@given(simulations)
def test_a_trial_that_was_interrupted_changes_no_later_decision(simulation: Simulation) -> None:
    """A restart shows the scheduler the same trials: one that was interrupted counts as running."""
    simulation.run()
    for answer, trials, left, _ in simulation.assignments:
        first = simulation.halving
        again = Halving(first.max_epochs, first.rungs[0], first.max_trials, first.leaves_out, first.finalists)
        assert again.next(trials, left) == answer


# What samplers learn from


@given(st.lists(st.integers(0, 8), min_size=8, max_size=40), st.integers(0, 2**32))
def test_a_sampler_learns_from_the_values_of_one_rung(epochs: list[int], seed: int) -> None:
    trials = [Trial(n, "paused", [n + e / 10 for e in range(1, count + 1)], 8) for n, count in enumerate(epochs)]
    rung = rung_to_learn_from(trials, (1, 2, 4, 8))
    reached = {r: sum(t.epochs >= r for t in trials) for r in (1, 2, 4, 8)}
    if rung is None:
        assert reached[1] < ENOUGH
        return
    assert reached[rung] >= ENOUGH
    assert all(reached[longer] < ENOUGH for longer in (2, 4, 8) if longer > rung)
    chosen = choose(trials, rung, random.Random(seed))
    assert chosen
    assert all(score == trials[n].scores[rung - 1] for n, score in chosen.items())


def test_failed_trials_and_trials_without_a_score_are_not_learned_from() -> None:
    trials = [Trial(n, "failed", (0.5,), 1) for n in range(20)] + [Trial(20, "paused", (math.nan,), 1)]
    assert rung_to_learn_from(trials, (1, 2)) is None


def test_suggestions_at_the_same_time_learn_from_different_trials() -> None:
    trials = [Trial(n, "paused", (float(n),), 1) for n in range(20)]
    assert choose(trials, 1, random.Random(1)) != choose(trials, 1, random.Random(2))
    assert choose(trials, 1, random.Random(1)) == choose(trials, 1, random.Random(1))


@pytest.mark.parametrize("tried", [set(), {0}, {0, 1, 2}])
def test_tpe_passes_over_points_that_were_tried_as_long_as_one_candidate_was_not(tried: set[int]) -> None:
    space = {"x": IntDistribution(0, 5), "kind": CategoricalDistribution(["a", "b"])}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        sampler = TpeOfRung(0, lambda params: params["kind"] == "a" and params["x"] in tried)
    study = optuna.create_study(direction="maximize", sampler=sampler)
    for x, kind in itertools.product(range(6), ["a", "b"]):
        value = -x if kind == "a" else -10 - x
        study.add_trial(create_trial(params={"x": x, "kind": kind}, distributions=space, value=value))
    for _ in range(10):
        params = study.ask(space).params
        assert params["kind"] == "b" or params["x"] not in tried


@pytest.mark.parametrize("slots", [1, 4])
def test_halving_completes_the_best_of_many_with_a_fraction_of_their_epochs(slots: int) -> None:
    simulation = WithCurves(Halving(32), 10 * 32, slots, random.Random(0))
    simulation.run()
    assert len(simulation.trials) > 40, "ten trainings start more than four times as many trials"
    best = max(simulation.trials, key=lambda t: random.Random(t.number).random())
    assert best.state == "complete"
