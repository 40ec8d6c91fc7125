"""What a forecast is based on: the ends of the search space, the cores, and what the first epochs took."""

from __future__ import annotations

from dataclasses import replace

import pytest

from overnight.cli import output
from overnight.protocol import Progress
from overnight.runner import forecast as forecasts
from overnight.runner.forecast import (
    Forecast,
    Measurement,
    Search,
    ends_of_space,
    measurement_of,
    rest_of_search,
    seconds_of,
)
from overnight.search.build_plan import build_plan
from support.planted_study import record

SMALLEST = Measurement("smallest configuration, width=4", 10, 0.5, 0.1, False, 100)
LARGEST = Measurement("largest configuration, width=512", 10, 0.5, 2.0, False, 9000)


def forecast_of(slots: int = 2, at_once: int = 2, slowest: Measurement = LARGEST) -> Forecast:
    searches = Search(20, 20, 12.0), Search(20, 20, 205.0)
    return Forecast(100.0, (), searches, False, None, 0, 5, "", slots, at_once, (20.0, 260.0), 10**6, SMALLEST, slowest)


def test_the_ends_of_the_space_are_its_cheapest_and_its_dearest_configuration() -> None:
    plan = build_plan(
        ["search=none", "model.hidden_sizes=[8],[512,512]", "data.batch_size=16,256", "optimizer.lr=interval(0.1,0.2)"]
    )
    dearest, cheapest = ends_of_space(plan)
    assert (dearest.values["model.hidden_sizes"], dearest.values["data.batch_size"]) == ([512, 512], 16)
    assert (cheapest.values["model.hidden_sizes"], cheapest.values["data.batch_size"]) == ([8], 256)
    assert dearest.name.startswith("largest configuration")


def test_every_searched_model_is_measured_at_both_ends() -> None:
    plan = build_plan(["model=mlp,cnn", "data=digits"])
    measured = ends_of_space(plan)
    assert [(d.name.split()[0], d.values["model"]) for d in measured] == [
        ("largest", "mlp"), ("largest", "cnn"), ("smallest", "mlp"), ("smallest", "cnn"),
    ]  # fmt: skip


def test_a_study_that_searches_nothing_is_measured_at_its_only_point() -> None:
    assert [d.values for d in ends_of_space(build_plan(["search=none"]))] == [{}]


@pytest.mark.parametrize(
    ("trials", "at_once", "seconds"),
    [
        (20, 2, 10 * 7.0),
        (21, 2, 11 * 7.0),  # the last trial runs alone
        (1, 8, 7.0),
        (0, 2, 0.0),
    ],
)
def test_trials_take_as_many_turns_as_do_not_fit_side_by_side(trials: int, at_once: int, seconds: float) -> None:
    assert seconds_of(trials, at_once, 7.0) == seconds


def test_a_search_that_pauses_trials_takes_the_time_of_its_epochs_and_of_every_start() -> None:
    plan = build_plan(["scheduler=halving", "study.budget=20", "trainer.max_epochs=16", "scheduler.min_epochs=4"])
    found = rest_of_search(plan, [], Measurement("largest", 16, 0.3, 2.0, False, 100, first_extra_s=0.2), 2, 2)
    assert found.epochs is not None
    assert 300 <= found.epochs <= 320
    assert found.complete < 20 < found.trials
    starts = (found.seconds * 2 - found.epochs * 2.0) / 0.5
    assert found.trials <= starts <= 2 * found.trials, "some trials are resumed in a process of their own"


def test_short_epochs_lead_to_a_later_first_pause_and_fewer_configurations() -> None:
    plan = build_plan(["scheduler=halving", "trainer.max_epochs=32"])
    slow, fast = (
        rest_of_search(plan, [], Measurement("one", 32, 0.1, epoch_s, False, 100), 2, 2) for epoch_s in (2.0, 0.01)
    )
    assert fast.trials < slow.trials
    lines = output._time_lines(
        replace(forecast_of(), searches=(fast, slow), pauses=True, epoch_limit=plan.budget.epoch_limit)
    )
    assert lines[0].startswith(
        f"search: 960 epochs, for about {fast.trials} to {slow.trials} configurations, of which "
    )
    assert lines[1].startswith("time: 20 s to 4:20 for the search and 5 confirmations in 2 slots, ")
    assert "pruning" not in lines[1]


def test_the_epochs_are_an_estimate_where_only_the_number_of_configurations_is_limited() -> None:
    plan = build_plan(["study.trials=20", "trainer.max_epochs=32"])
    slow, fast = (
        rest_of_search(plan, [], Measurement("one", 32, 0.1, epoch_s, False, 100), 2, 2) for epoch_s in (2.0, 0.01)
    )
    assert slow.trials == fast.trials == 20
    assert slow.epochs is not None
    assert fast.epochs is not None
    assert slow.epochs < fast.epochs < 20 * 32
    lines = output._time_lines(
        replace(forecast_of(), searches=(fast, slow), pauses=True, epoch_limit=plan.budget.epoch_limit)
    )
    assert lines[0].startswith(f"search: about {slow.epochs} to {fast.epochs} epochs, for 20 configurations, of which ")


def test_the_number_of_configurations_is_not_told_of_a_class_of_the_user() -> None:
    own = replace(forecast_of(), pauses=True, epoch_limit=600, scheduler="mine.Scheduler")
    assert output._time_lines(own)[0] == "search: 600 epochs; mine.Scheduler decides for how many configurations"


def test_what_is_trained_already_takes_no_more_time() -> None:
    plan = build_plan(["scheduler=halving", "study.budget=20", "trainer.max_epochs=5", "scheduler.min_epochs=1"])
    measured = Measurement("one", 5, 0.5, 2.0, False, 100)
    trained = [replace(record(n, {}, 0.5), until=1 if n == 0 else 5) for n in range(10)]
    fresh, resumed = (rest_of_search(plan, records, measured, 2, 2) for records in ([], trained))
    assert fresh.epochs is not None
    assert resumed.seconds == pytest.approx(fresh.seconds * (1 - 50 / fresh.epochs))


def test_the_first_epoch_counts_for_the_start_and_not_for_the_others() -> None:
    ends = [Progress(0, 0, {}, 103.0, 2.0), Progress(0, 1, {}, 104.0, 1.0), Progress(0, 2, {}, 105.5, 1.5)]
    measured = measurement_of("largest", 50, 100.0, ends, 7)
    assert measured == Measurement("largest", 50, 1.0, 1.0, False, 7, first_extra_s=1.0)
    assert measured.trial_s == 51.0


def test_an_epoch_that_does_not_end_in_time_is_a_lower_bound() -> None:
    measured = measurement_of("largest", 50, 100.0, [], 0)
    assert measured.is_cut
    assert measured.trial_s == 50 * forecasts._MEASURE_S
    lines = output._time_lines(forecast_of(slowest=measured))
    assert lines[0].startswith("time: 20 s to more than 4:20 for 20 trials and 5 confirmations in 2 slots, ")
    assert lines[2] == "  measured: more than 30 s per epoch, 50 epochs per trial (largest)"


def test_the_time_is_a_range_with_its_basis() -> None:
    assert output._time_lines(forecast_of()) == [
        "time: 20 s to 4:20 for 20 trials and 5 confirmations in 2 slots, from the start to the report, without "
        "pruning",
        "  measured: 0.1 s per epoch, 10 epochs per trial (smallest configuration, width=4)",
        "  measured: 2 s per epoch, 10 epochs per trial (largest configuration, width=512)",
    ]


def test_slots_that_have_no_core_are_not_counted_on() -> None:
    line = output._time_lines(forecast_of(slots=64))[0]
    assert "in 64 slots, of which 2 train at once, because there are 2 cores, " in line
    assert len(output._time_lines(forecast_of(slowest=SMALLEST))) == 2, "one configuration is told once"
