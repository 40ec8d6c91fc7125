"""Axes of the report's charts: round marks, one axis for each key, and a range that the worst trial does not decide."""

from __future__ import annotations

import pytest
from optuna.distributions import FloatDistribution, IntDistribution

from overnight.report import report
from overnight.report.axes import axis_of, tick_values
from overnight.report.figures import shown_range
from overnight.search.build_plan import build_plan
from support.planted_study import planned, record, search_records, view_of


@pytest.mark.parametrize(
    ("dist", "marks"),
    [
        (FloatDistribution(1e-4, 1e-1, log=True), [0.0001, 0.001, 0.01, 0.1]),
        (IntDistribution(16, 256, log=True), [16, 32, 64, 128, 256]),
        (IntDistribution(20, 300, log=True), [30, 100, 300]),
        (FloatDistribution(2e-3, 9e-3, log=True), [0.002, 0.005]),
        (FloatDistribution(0.5, 0.6, log=True), [0.5, 0.6]),
        (FloatDistribution(0.0, 0.5), [0.0, 0.2, 0.4]),
        (IntDistribution(1, 3), [1, 2, 3]),
        (IntDistribution(7, 7), [7]),
    ],
    ids=str,
)
def test_marks_are_round(dist: FloatDistribution | IntDistribution, marks: list[float]) -> None:
    assert tick_values(dist) == pytest.approx(marks)


def test_a_list_has_one_axis_with_a_band_for_each_length() -> None:
    axis = axis_of("model.hidden_sizes", build_plan([]).space)
    assert [text for _, text in axis.ticks] == ["1", "2", "3"]
    smallest, largest = axis.position_of([16]), axis.position_of([256])
    assert smallest is not None
    assert largest is not None
    assert 0 < smallest < largest < axis.borders[0] == pytest.approx(1 / 3)
    assert axis.position_of([16, 256]) == pytest.approx(0.5), "the mean of both ends, on the scale of sampling"
    assert axis.position_of([16] * 4) is None
    assert axis.position_of([1000]) is None


def test_trials_with_the_same_choice_lie_apart_but_nearer_to_it_than_to_others() -> None:
    axis = axis_of("model.activation", planned().space)
    ats = [axis.spread_position("tanh", number) for number in range(20)]
    assert len(set(ats)) == 20
    assert all(at is not None and abs(at - 0.5) < 0.2 for at in ats)


def test_a_key_has_one_axis_over_the_ranges_of_all_its_conditions() -> None:
    study = build_plan(["model=mlp,cnn"])
    axis = axis_of("optimizer.lr", study.space)
    assert axis.position_of(1e-4) == pytest.approx(0)
    assert axis.position_of(1e-1) == pytest.approx(1)


def test_one_terrible_trial_does_not_compress_the_others() -> None:
    good = search_records(planned(), 20)
    terrible = record(20, good[0].params, -1e6)
    shown = shown_range(report.build_report(view_of([*good, terrible])))
    assert shown.best == max(r.objective or 0 for r in good)
    assert shown.high - shown.low < 1
    assert terrible in shown.beyond
    assert "beyond the lower edge, as triangles, the farthest with -1e+06 (trial 20)" in shown.words()


def test_pruned_trials_do_not_widen_the_range() -> None:
    complete = [record(i, {"optimizer.lr": 0.001}, 0.9 + i / 1000) for i in range(5)]
    pruned = record(5, {"optimizer.lr": 0.001}, 0.1, "pruned")
    shown = shown_range(report.build_report(view_of([*complete, pruned])))
    assert (shown.low, shown.high) == (0.9, 0.904)
    assert shown.beyond == (pruned,)


def test_a_range_for_a_minimization_is_cut_at_its_upper_edge() -> None:
    values = [*(0.1 + i / 100 for i in range(9)), 50.0]
    losses = [record(i, {"optimizer.lr": 0.001}, value, metric="val/loss") for i, value in enumerate(values)]
    view = view_of(losses, "study.metric=val/loss", "study.direction=minimize")
    shown = shown_range(report.build_report(view))
    assert shown.best == 0.1
    assert shown.high < 1
    assert "upper edge" in shown.words()
    assert shown.share(0.1) == 1
    assert shown.share(50.0) == 0
