"""What fits before a deadline: the functions, and a simulated search with its confirmation."""

from __future__ import annotations

import functools
import itertools
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from overnight.config import clock
from overnight.config.problems import ConfigError
from overnight.protocol import Progress
from overnight.report import confirm
from overnight.search import deadline
from overnight.search.build_plan import build_plan
from overnight.search.deadline import Deadline
from overnight.search.limits import ConfirmationLimits, Launch, SearchLimits, TimeLeft
from overnight.search.plan import Plan
from overnight.search.record import Confirms, TrialRecord
from overnight.search.terminator import Terminator
from overnight.system.forkserver import fork

EPOCHS, NOON = 5, datetime(2026, 11, 24, 12, 0).timestamp()
LENGTHS = st.lists(st.floats(0.1, 500), min_size=1, max_size=20)


@functools.cache
def study(*overrides: str) -> Plan:
    return build_plan(["study.trials=500", f"trainer.max_epochs={EPOCHS}", "pictures.when=never", *overrides])


def record(number: int, epoch_s: float, epochs: int = EPOCHS, state: str = "complete", **more: Any) -> TrialRecord:
    began = NOON + 10.0 * number
    history = tuple(
        Progress(number, e, {"val/accuracy": 0.5 + number / 1000}, began + 1 + (e + 1) * epoch_s, epoch_s)
        for e in range(epochs)
    )
    params = more.pop("params", {"optimizer.lr": 0.001 * (number + 1)})
    value = 0.5 + number / 1000 if history else None
    return TrialRecord(number, state, params, history, value, None, "", began, None, **more)  # type: ignore[arg-type]


def test_a_resumed_trial_does_not_hide_what_a_start_costs() -> None:
    """Its start is its last one, after its first epochs."""
    new, resumed = record(0, 2.0, 1), [replace(record(n, 2.0), started_at=NOON + 1000) for n in (1, 2)]
    assert deadline.overhead_s([new, *resumed]) == pytest.approx(1.0)


# Times of day ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def berlin(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TZ", "Europe/Berlin")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


@pytest.mark.usefixtures("berlin")
def test_a_time_of_day_is_the_next_one_and_daylight_saving_time_counts() -> None:
    evening = datetime(2026, 10, 24, 22, 0).timestamp()
    assert clock.next_time("23:30", evening) - evening == 1.5 * 3600
    assert clock.next_time("07:00", evening) - evening == 10 * 3600, "an hour more than on other nights"
    assert clock.next_time("22:00", evening) - evening == 25 * 3600, "now is not time_plan"
    assert clock.next_time("2026-10-25T07:00", evening) == clock.next_time("07:00", evening)
    assert clock.next_time("2026-10-25T06:00+00:00", evening) == clock.next_time("07:00", evening)
    assert clock.format_time(evening + 10 * 3600, evening) == "07:00"
    assert clock.format_time(evening + 60, evening) == "22:01:00"


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("study.hours=0", "study.hours: must be above 0 hours, or null for no limit, got 0.0"),
        ("study.hours=-1", "study.hours: must be above 0 hours"),
        ("study.until=25:00", "study.until: must be a time of day such as 07:00, or a date with one such as "),
        ("study.until=tomorrow", "got 'tomorrow'"),
        ("study.until=1380", "study.until: must be a text, got 1380; a time in a YAML file needs quotes: '23:00'"),
        ("study.until=2026-02-30T07:00", "got '2026-02-30T07:00'"),
        ("study.until=2020-01-01T07:00", "study.until: must be in the future, got 2020-01-01T07:00; take"),
        ("study.patience=0", "study.patience: must be at least 1, got 0"),
        ("terminator=optuna", "terminator: must be one of emmr, none, regret_bound, stagnation, got 'optuna'"),
        ("terminator.min_trials=1", "terminator.min_trials: must be at least 2, got 1"),
    ],
)
def test_a_wrong_limit_is_reported_with_its_rule(override: str, words: str) -> None:
    with pytest.raises(ConfigError) as error:
        build_plan(["terminator=emmr", override] if "terminator." in override else [override])
    assert words in str(error.value)


def test_a_terminator_without_a_key_to_model_is_refused() -> None:
    with pytest.raises(ConfigError, match="terminator: emmr needs a key that every trial draws, got none"):
        build_plan(["search=none", "terminator=emmr"])


@pytest.mark.long
def test_the_earlier_of_hours_and_until_is_the_deadline() -> None:
    limits = study("study.hours=8", "study.until=2999-01-01T07:00").settings.study
    assert deadline.deadline_of(limits, NOON) == Deadline(NOON, NOON + 8 * 3600, "study.hours=8")
    assert deadline.deadline_of(replace(limits, hours=None, until="12:30"), NOON) == Deadline(
        NOON, NOON + 1800, "study.until=12:30"
    )
    assert deadline.deadline_of(replace(limits, hours=None, until=None), NOON) is None


# The rule -------------------------------------------------------------------------------------------------------------


@given(LENGTHS, st.integers(1, 8))
def test_the_makespan_is_within_the_bounds_of_list_scheduling(lengths: list[float], slots: int) -> None:
    span, work = deadline.makespan_s(lengths, slots), sum(lengths)
    assert max(max(lengths), work / slots) <= span * (1 + 1e-9)
    assert span <= work / slots + max(lengths) + 1e-6


@given(st.integers(1, 6), st.integers(1, 9))
def test_a_confirmation_drops_seeds_first_and_the_best_finalist_last(top: int, seeds: int) -> None:
    sizes = list(deadline.confirmation_sizes(top, seeds))
    assert (sizes[0], sizes[-1]) == ((top, seeds), (1, 1))
    assert len(set(sizes)) == len(sizes)
    for (f, n), (g, m) in itertools.pairwise(sizes):
        assert (f == g and m == n - 1) or (n == m == min(seeds, deadline.MIN_SEEDS) and g == f - 1)
    assert all(n >= min(seeds, deadline.MIN_SEEDS) for f, n in sizes if f > 1)


@given(LENGTHS, st.integers(1, 7), st.floats(0, 3000), st.integers(1, 4))
def test_the_largest_confirmation_that_fits_is_chosen(
    lengths: list[float], seeds: int, available_s: float, slots: int
) -> None:
    def seconds(top: int, n: int) -> float:
        return deadline.confirmation_s(lengths[:top] * n, n, 1.0, slots)

    size = deadline.largest_affordable(len(lengths), seeds, seconds, available_s)
    sizes = list(deadline.confirmation_sizes(len(lengths), seeds))
    refused = sizes[: sizes.index((size.finalists, size.seeds))] if size.seeds else sizes
    assert size.seconds <= available_s
    assert all(seconds(*larger) > available_s for larger in refused)


@pytest.mark.long
@settings(deadline=None)
@given(st.lists(st.floats(0.01, 30), max_size=30), st.floats(10, 40_000), st.integers(1, 4))
def test_a_search_leaves_at_most_a_third_of_the_time_to_its_confirmation(
    paces: list[float], window_s: float, slots: int
) -> None:
    records = [record(n, p) for n, p in enumerate(paces)]
    time_plan = deadline.plan_time(study(), records, Deadline(NOON, NOON + window_s, ""), slots, NOON)
    assert time_plan.search_ends_at + time_plan.confirmation.seconds + deadline.closing_s(len(paces)) < NOON + window_s
    assert time_plan.confirmation.seconds <= window_s / 3
    assert (time_plan.trials_left is None) == (not paces)


def test_the_remaining_time_of_a_trial_uses_its_own_epoch_time() -> None:
    records = [record(0, 1.0), record(1, 2.0), record(2, 9.0, epochs=1, state="paused")]
    time_plan = deadline.plan_time(study(), records, Deadline(NOON, NOON + 3600, ""), 2, NOON)
    assert deadline.remaining_s(records[2], time_plan, EPOCHS) == pytest.approx(1.0 + 4 * 9.0)
    waiting = record(3, 0.0, epochs=0, state="waiting")
    assert deadline.remaining_s(waiting, time_plan, EPOCHS) == pytest.approx(1.0 + 5 * 2.0)


def test_the_time_left_is_that_of_one_slot_and_of_all() -> None:
    launch = Launch(study("study.hours=1"), NOON, lambda _: None, now=lambda: NOON + 60)
    limits = SearchLimits(launch, 3, Terminator(launch.plan, lambda *_: None))
    assert limits.time_left({}) == TimeLeft(), "nothing is measured yet"
    found = limits.time_left({0: record(0, 2.0)})
    assert found is not None
    assert found.all_slots == 3 * found.one_slot
    assert 3000 / 2 / deadline.MARGIN < found.one_slot < 3540 / 2 / deadline.MARGIN
    late = Launch(study("study.hours=1"), NOON, lambda _: None, now=lambda: NOON + 3600)
    assert SearchLimits(late, 3, Terminator(late.plan, lambda *_: None)).time_left({0: record(0, 2.0)}) is None


# On a simulated clock ------------------------------------------------------------------------------------------------


class SimulatedLaunch:
    """A launch with its own clock, whose slots train what the limits allow. paces: seconds of an epoch, by trial."""

    def __init__(self, home: Path, paces: list[float], window_s: float, slots: int) -> None:
        self.now, self.paces, self.slots = NOON, paces, slots
        self.records: dict[int, TrialRecord] = {}
        given = study().settings
        given = replace(given, home=str(home), study=replace(given.study, hours=window_s / 3600))
        self.plan = replace(study(), settings=given)
        self.launch = Launch(self.plan, NOON, lambda _: None, now=lambda: self.now)
        self.cut: list[int] = []

    def work(self, limits: Any, records: dict[int, TrialRecord], new: bool) -> None:
        started: dict[int, float] = {}
        while True:
            for number in list(started):
                if self.now >= started[number] + self._takes(records[number]):
                    records[number] = self._trained(records[number], started.pop(number), EPOCHS)
            while len(started) < self.slots and (which := limits.next_trial(records, started)) is not None:
                number = which if isinstance(which, int) else len(records)
                if number not in records:
                    assert new
                    records[number] = TrialRecord(number, "running", {"optimizer.lr": 0.001 * (number + 1)}, (), None,
                                                  None, "", self.now, None)  # fmt: skip
                started[number] = self.now
                records[number] = replace(records[number], state="running", started_at=self.now)
            if limits.time_is_up(records):
                for number, since in started.items():
                    epochs = int((self.now - since - 1) / self._pace(records[number]))
                    records[number] = self._trained(records[number], since, max(epochs, 0))
                    self.cut.append(number)
                return
            if not started:
                return
            self.now += 0.5

    def _pace(self, r: TrialRecord) -> float:
        return self.paces[(r.confirms.trial if r.confirms else r.number) % len(self.paces)]

    def _takes(self, r: TrialRecord) -> float:
        return 1.0 + EPOCHS * self._pace(r)

    def _trained(self, r: TrialRecord, started_at: float, epochs: int) -> TrialRecord:
        pace = self._pace(r)
        history = tuple(
            Progress(r.number, e, {"val/accuracy": 0.5 + r.number / 1e4}, started_at + 1 + (e + 1) * pace, pace)
            for e in range(epochs)
        )
        whole = epochs == EPOCHS
        return replace(
            r,
            state="complete" if whole else "paused",
            history=history,
            objective=0.5 + r.number / 1e4 if history else None,
            started_at=started_at,
            ended_at=self.now if whole else None,
        )


@settings(deadline=None, max_examples=15)
@given(st.lists(st.floats(0.2, 10), min_size=1, max_size=12), st.floats(60, 400), st.integers(1, 4))
@example([0.5, 3.0, 3.0, 5.0], 60.0, 4)  # where two seeds would fit if the switch and the stop took no time
def test_search_and_confirmation_end_in_time_for_all_trial_lengths(
    tmp_path_factory: pytest.TempPathFactory, paces: list[float], window_s: float, slots: int
) -> None:
    simulation = SimulatedLaunch(tmp_path_factory.getbasetemp(), paces, window_s, slots)
    launch, ends_at = simulation.launch, NOON + window_s
    terminator = Terminator(simulation.plan, fork)
    simulation.work(SearchLimits(launch, slots, terminator), simulation.records, new=True)
    searched = list(simulation.records.values())
    assert simulation.now < ends_at - deadline.closing_s(len(searched)) + 1
    assert all(r.state in ("complete", "paused") for r in searched)
    complete = [r for r in searched if r.state == "complete"]
    if complete:  # the confirmation uses the time that remains after the search
        available_s = launch.answer_due_at(len(searched)) - deadline.SWITCH_S - simulation.now
        size = confirm.affordable_size(simulation.plan, searched, [], available_s, slots)
        finalists = confirm.finalists(simulation.plan, searched)[: size.finalists]
        pairs = [(r.number, n) for n in range(1, 6) for r in finalists]
        confirmations = {
            i: replace(record(i, 1.0, 0, "waiting"), confirms=Confirms(t, n, n), started_at=None)
            for i, (t, n) in enumerate(pairs)
        }
        limits = ConfirmationLimits(launch, searched, pairs, deadline.test_set_s(searched))
        simulation.work(limits, confirmations, new=False)
        assert sum(r.state == "complete" for r in confirmations.values()) >= size.finalists * size.seeds
    assert simulation.now <= ends_at - deadline.closing_s(len(searched)) + 1
