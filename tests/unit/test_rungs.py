"""The report of a search that pauses trials: its rungs, its picture, and values that can be compared."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import pytest

from overnight.protocol import Progress
from overnight.report import charts, page, report
from overnight.report.caveats import find_caveats
from overnight.report.finding import from_records
from overnight.report.importance import importances
from overnight.report.rung_chart import _scale
from overnight.report.rungs import ENOUGH, Comparable, Rung, comparable, cost_sentence, find_rungs
from overnight.search.plan import Plan, random_point
from overnight.search.record import State, TrialRecord
from overnight.study.snapshot import StudyView
from support.planted_study import planned, planted

EPOCHS = ("scheduler=halving", "trainer.max_epochs=8", "study.trials=null", "study.budget=30", "study.confirm.seeds=0")


def trial(number: int, values: list[float], until: int, params: dict[str, Any] | None = None) -> TrialRecord:
    """A trial of a study of eight epochs that was trained for as many epochs as it has values."""
    history = tuple(Progress(number, e, {"val/accuracy": v}, 1e9 + e, 0.5) for e, v in enumerate(values))
    state: State = "complete" if len(values) == 8 else "pruned"
    return TrialRecord(number, state, params or {}, history, values[-1], None, "", 1e9, 1e9 + 9, until=until)


def search(trials: int = 64) -> tuple[Plan, list[TrialRecord]]:
    """A search in which the better half goes on after 1, 2 and 4 epochs. A trial gains 0.1 in each epoch."""
    plan, rng = planned(*EPOCHS), random.Random(0)
    points = [random_point(plan, rng) for _ in range(trials)]
    by_value = sorted(range(trials), key=lambda n: -planted(points[n]))
    rank = {number: place for place, number in enumerate(by_value)}
    records = []
    for n, point in enumerate(points):
        length = next(rung for rung in (8, 4, 2, 1) if rank[n] < trials * 2 / rung / (1 if rung > 1 else 0.5) / 2)
        records.append(trial(n, [planted(point) / 2 + 0.1 * e for e in range(length)], length, point))
    return plan, records


def test_each_rung_says_who_reached_it_who_went_on_and_what_it_cost() -> None:
    plan, records = search()
    assert find_rungs(plan, records) == [
        Rung(1, 64, 32, 64),
        Rung(2, 32, 16, 32),
        Rung(4, 16, 8, 32),
        Rung(8, 8, 0, 32),
    ]
    assert cost_sentence(plan, records) == (
        "64 configurations were trained for 160 of 240 epochs; training each to the end would take 512"
    )


def test_a_trial_that_skips_rungs_at_the_end_of_a_search_counts_at_each() -> None:
    plan = planned(*EPOCHS)
    records = [trial(0, [0.5], 1), trial(1, [0.5, 0.6], 2), trial(2, [0.5] * 8, 8)]
    assert [(r.reached, r.sent_on, r.trained) for r in find_rungs(plan, records)] == [(3, 2, 3), (2, 1, 2), (1, 0, 6)]


def test_a_search_with_another_scheduler_has_no_rungs() -> None:
    records = search()[1]
    other = planned(*EPOCHS, "scheduler=median")
    assert find_rungs(other, records) == []
    assert comparable(other, records) == Comparable(tuple(records))


def test_trials_are_compared_at_the_longest_rung_that_enough_of_them_reached() -> None:
    plan, records = search(2 * ENOUGH)
    found = comparable(plan, records)
    assert found.epochs == 2
    assert len(found.records) == ENOUGH
    assert all(r.objective == r.history[1].metrics["val/accuracy"] for r in found.records)
    assert {r.state for r in found.records} == {"complete", "pruned"}


def test_a_small_search_is_compared_at_the_rung_that_most_trials_reached() -> None:
    found = comparable(*search(16))
    assert (found.epochs, len(found.records)) == (1, 16)


def test_complete_trials_are_compared_at_their_end() -> None:
    records = [trial(n, [0.1 * n] * 8, 8) for n in range(4)]
    found = comparable(planned(*EPOCHS), records)
    assert found.epochs is None
    assert [r.objective for r in found.records] == [r.objective for r in records]


def test_the_importance_does_not_mix_values_of_different_rungs() -> None:
    plan = planned(*EPOCHS)
    rng = random.Random(1)
    points = [random_point(plan, rng) for _ in range(60)]
    # Every second trial is trained for longer and so has a higher value. The rate decides at each rung.
    records = [
        trial(n, [p["optimizer.lr"] + (0.5 if e else 0.0) for e in range(2 if n % 2 else 1)], n % 2 + 1, p)
        for n, p in enumerate(points)
    ]
    found = report.build_report(StudyView(plan.name, plan, tuple(records), None, None, None))
    assert found.importances.sentence().startswith("30 trials, compared after 2 epochs, show that optimizer.lr matters")
    mixed = importances(plan, records)
    assert mixed.keys != found.importances.keys


@pytest.fixture(scope="module")
def shown() -> report.Report:
    plan, records = search()
    return report.build_report(StudyView(plan.name, plan, tuple(records), None, None, None))


def test_the_picture_of_the_search_shows_each_trial_as_far_as_it_was_trained(shown: report.Report) -> None:
    picture = next(c for c in charts.charts(shown) if c.title == "The search")
    assert "8 trials were trained to the end, 56 were paused before and not resumed" in picture.caption
    assert all(f">{label}</text>" in picture.svg for label in ("pruned", "complete", "winner", "1", "2", "4", "8"))


def test_the_picture_of_the_search_shows_a_winner_that_the_search_had_paused(shown: report.Report) -> None:
    paused = next(r for r in shown.records if len(r.history) == 2)
    won = replace(shown, finding=replace(shown.finding, search_best=paused))
    picture = next(c for c in charts.charts(won) if c.title == "The search")
    assert f"The winner, trial {paused.number}, was paused after 2 epochs with" in picture.caption
    assert ">winner</text>" in picture.svg


def test_the_page_and_the_cost_say_what_pausing_saved(shown: report.Report) -> None:
    html = page.page(shown)
    assert '<td data-name="trials">64</td>' in html
    assert "training each to the end would take 512" in html
    assert any("training each to the end would take 512" in line for line in report.cost_lines(shown))
    assert "were pruned, which saved" not in html
    assert "after 2 epochs against each of" in html


@pytest.mark.parametrize(
    ("overrides", "remedy"),
    [
        (("study.budget=4",), "resume with study.budget=12."),
        (("study.trials=10", "study.budget=4"), "resume with study.trials=30 study.budget=12."),
        (("study.trials=10", "study.budget=30"), "resume with study.trials=30."),
        (("study.budget=30",), "the rest of the budget adds more."),
        (("scheduler=median", "study.budget=10"), "resume with study.budget=30."),
        (("scheduler=median", "study.trials=10"), "resume with study.trials=30."),
    ],
)
def test_a_search_that_is_too_short_names_the_limit_that_makes_it_longer(
    overrides: tuple[str, ...], remedy: str
) -> None:
    plan = planned(*EPOCHS, *overrides)
    records = [
        trial(n, [0.5] * epochs, epochs) for n, epochs in enumerate((8, 8, 4, 4, 2, 2, 1, 1, 1, 1))
    ]  # 4 trainings
    lines = find_caveats(from_records(plan, records, (), {}), records)
    assert any(line.endswith(f"10 trials are few for 3 searched parameters; {remedy}") for line in lines), lines


def test_a_choice_of_trials_that_wait_at_a_rung_is_not_rarely_tried() -> None:
    plan = planned(*EPOCHS)
    records = [trial(0, [0.9] * 8, 8, {"model.activation": "gelu"})]
    records += [replace(trial(n, [0.5], 1, {"model.activation": "relu"}), state="paused") for n in range(1, 4)]
    lines = find_caveats(from_records(plan, records, (), {}), records)
    assert "model.activation: rarely tried: tanh (0), gelu (1)." in lines


@pytest.mark.parametrize("higher_is_better", [True, False])
def test_the_labels_of_the_scale_are_round_and_lie_on_it(higher_is_better: bool) -> None:
    sign = 1 if higher_is_better else -1
    curves = {n: [(1.0, sign * 0.1 * n), (2.0, sign * (0.9 + 0.01 * n))] for n in range(9)}
    scale = _scale(curves, set(curves), higher_is_better)
    ticks = scale.ticks()
    assert len(ticks) > 3
    assert all(scale.clip(t) == t == round(t, 3) for t in ticks)
    assert scale.value(scale.place(sign * 0.5)) == pytest.approx(sign * 0.5)
    assert float(scale.place(max(ticks))) > float(scale.place(min(ticks)))


def test_equal_values_have_a_picture() -> None:
    plan = planned(*EPOCHS)
    records = [trial(n, [0.5] * 8, 8) for n in range(3)]
    found = report.build_report(StudyView(plan.name, plan, tuple(records), None, None, None))
    assert any(c.title == "The search" for c in charts.charts(found))
