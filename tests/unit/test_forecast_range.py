"""What a forecast is based on: the ends of the search space, the cores, and what the first epochs took."""

from __future__ import annotations

import pytest

from overnight.cli import output
from overnight.protocol import Progress
from overnight.runner import forecast as forecasts
from overnight.runner.forecast import Forecast, Measurement, ends_of_space, measurement_of, seconds_of
from overnight.search.build_plan import build_plan

SMALLEST = Measurement("smallest configuration, width=4", 10, 0.5, 0.1, False, 100)
LARGEST = Measurement("largest configuration, width=512", 10, 0.5, 2.0, False, 9000)


def forecast_of(slots: int = 2, at_once: int = 2, slowest: Measurement = LARGEST) -> Forecast:
    return Forecast(100.0, (), 20, 5, slots, at_once, (20.0, 260.0), 10**6, SMALLEST, slowest)


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
    ("trials", "confirmations", "at_once", "seconds"),
    [
        (20, 0, 2, 10 * 7.0),
        (21, 0, 2, 11 * 7.0),  # the last trial runs alone
        (20, 5, 2, (10 + 3) * 7.0),  # the confirmation starts after the search
        (1, 0, 8, 7.0),
        (0, 0, 2, 0.0),
    ],
)
def test_trials_take_as_many_turns_as_do_not_fit_side_by_side(
    trials: int, confirmations: int, at_once: int, seconds: float
) -> None:
    assert seconds_of(trials, confirmations, at_once, 7.0) == seconds


def test_the_first_epoch_counts_for_the_start_and_not_for_the_others() -> None:
    ends = [Progress(0, 0, {}, 103.0, 2.0), Progress(0, 1, {}, 104.0, 1.0), Progress(0, 2, {}, 105.5, 1.5)]
    measured = measurement_of("largest", 50, 100.0, ends, 7)
    assert measured == Measurement("largest", 50, 1.0, 1.0, False, 7)
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
