"""The benchmark of search quality: the simulated study, its sides, and what counts as found."""

from __future__ import annotations

import itertools
import math
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from optuna.trial import TrialState

from support.paths import ROOT

sys.path.insert(0, str(ROOT))  # the wheel does not contain the benchmarks

from benchmarks.search import make_tables, measure, real, report, sides, tables
from benchmarks.search.asha import Asha, Pasha
from benchmarks.search.compare import Case, Comparison, Goal, Outcome, simulate
from benchmarks.search.optuna_sides import OptunaSide
from benchmarks.search.points import RandomPoints
from benchmarks.search.simulator import Epoch, Run, Side, Simulation
from benchmarks.search.tables import Dimension, Row, Table

from overnight.search.schedulers.interface import Trial

MAX_EPOCHS = 9
OPTUNA = [sides.RANDOM, *sides.OPTUNA]


def a_table(diverging: bool = False) -> Table:
    """Return a table with one best configuration, (5, 2, "y"). Better configurations are better at each epoch.

    Args:
        diverging: Training with "z" diverges in its first epoch.
    """
    dimensions = (
        Dimension("rate", True, (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)),
        Dimension("layers", True, (1, 2, 3, 4)),
        Dimension("activation", False, ("x", "y", "z")),
    )
    rows = []
    for point in itertools.product(*(range(len(d.levels)) for d in dimensions)):
        final = 1 - 0.1 * abs(point[0] - 5) - 0.12 * abs(point[1] - 2) - 0.05 * abs(point[2] - 1)
        curve = [final * (1 - 0.5**epoch) for epoch in range(1, MAX_EPOCHS + 1)]
        if diverging and point[2] == 2:
            curve[:] = [math.nan]
        rows.append(Row(point, (tuple(curve),), 1.0 + point[1]))
    return Table("made-up", "score", MAX_EPOCHS, dimensions, (1, 0, 0), tuple(rows))


def run(name: str, seed: int = 0, budget: int = 90, slots: int = 1, table: Table | None = None) -> tuple[Side, Run]:
    table = table or a_table()
    side = sides.SIDES[name](table, seed)
    return side, Simulation(side, table, budget, slots).run()


# The simulated study


@pytest.mark.parametrize("slots", [1, 4])
@pytest.mark.parametrize("name", OPTUNA)
def test_optunas_sides_spend_exactly_the_epochs_that_they_report(name: str, slots: int) -> None:
    side, done = run(name, slots=slots)
    assert isinstance(side, OptunaSide)
    assert len(done.epochs) == sum(t.epochs for t in done.trials) == 90
    stored_trials = [t for t in side.study.get_trials() if t.state != TrialState.FAIL]
    states = {"complete": TrialState.COMPLETE, "stopped": TrialState.PRUNED, "running": TrialState.RUNNING}
    for trial, point, stored in zip(done.trials, done.points, stored_trials, strict=True):
        assert stored.state == states[trial.state]
        assert list(stored.intermediate_values.values()) == list(trial.scores)
        assert list(stored.intermediate_values) == list(range(1, trial.epochs + 1))
        assert tuple(trial.scores) == a_table().curve(point, 0)[: trial.epochs]


@pytest.mark.parametrize("name", sides.SIDES)
def test_a_search_repeats_itself_with_the_same_seed_alone(name: str) -> None:
    assert run(name, seed=3)[1] == run(name, seed=3)[1]
    assert run(name, seed=3)[1] != run(name, seed=4)[1]


@pytest.mark.parametrize("name", sides.SIDES)
def test_every_side_trains_the_first_configuration_first_and_stays_within_the_budget(name: str) -> None:
    _, done = run(name, slots=4)
    assert done.points[0] == a_table().first
    assert len(done.epochs) <= 90
    assert max(Counter((e.number, e.epoch) for e in done.epochs).values()) == 1, "no epoch is trained twice"


@pytest.mark.parametrize("name", [sides.OURS, "TPE + Hyperband", "TPE + SHA", "ASHA, our points"])
def test_the_best_of_a_simple_table_is_found(name: str) -> None:
    table = a_table()
    _, done = run(name, budget=250)
    assert measure.incumbents(done, table)[-1][1] == table.finals[0]


@pytest.mark.parametrize("name", sides.SIDES)
def test_a_training_that_diverges_fails_at_that_epoch(name: str) -> None:
    table = a_table(diverging=True)
    _, done = run(name, table=table)
    failed = [n for n, trial in enumerate(done.trials) if trial.state == "failed"]
    assert failed
    assert all(done.points[n][2] == 2 and done.trials[n].epochs == 1 for n in failed)
    assert table.final(done.points[failed[0]]) == -math.inf


def test_no_slot_is_idle_and_an_epoch_may_take_the_seconds_of_its_configuration() -> None:
    table = a_table()
    done = Simulation(sides.SIDES["random"](table, 0), table, 90, slots=3, in_seconds=True).run()
    assert [e.at for e in done.epochs] == sorted(e.at for e in done.epochs)
    seconds = sum(table.by_point[done.points[e.number]].epoch_s for e in done.epochs)
    assert 3 * done.epochs[-1].at - 3 * 4 < seconds <= 3 * done.epochs[-1].at


def test_a_point_that_was_tried_is_drawn_again_until_all_were_tried() -> None:
    table = a_table()
    for name in ("random", "halving", "halving, random points"):
        _, done = run(name, budget=2000)
        count = min(len(done.points), len(table.rows))
        assert len(set(done.points[:count])) > 0.9 * count
    draws = [RandomPoints(table, 0)([], [])(attempt) for attempt in range(5)]
    assert len(set(draws)) > 1


def test_asha_promotes_about_a_third_and_pasha_stops_where_the_order_is_settled() -> None:
    _, asha = run("ASHA", budget=300)
    reached = {rung: sum(t.epochs >= rung for t in asha.trials) for rung in Asha(MAX_EPOCHS).rungs}
    assert list(reached) == [1, 3, 9]
    assert reached[1] / 4 < reached[3] < reached[1] / 2
    assert reached[3] / 4 < reached[9] < reached[3] / 2
    _, pasha = run("PASHA", budget=300)
    assert max(t.epochs for t in pasha.trials) == 3, "the order of these curves never changes"
    crossing = [Trial(0, "paused", (0.1, 0.2, 0.3), 3), Trial(1, "paused", (0.2, 0.2, 0.1), 3)]
    assert Pasha(MAX_EPOCHS).usable_rungs(crossing) == (1, 3, 9)


# What counts as found


def test_the_incumbent_is_the_trial_with_the_best_latest_value_and_counts_with_its_final_one() -> None:
    table = a_table()
    good, better = (4, 2, 1), (5, 2, 1)
    done = Run(
        points=[good, better],
        epochs=[
            Epoch(1, 0, 1, 0.5),
            Epoch(2, 1, 1, 0.6),
            Epoch(3, 0, 2, 0.6),
            Epoch(4, 0, 3, 0.1),
            Epoch(5, 1, 2, math.nan),
        ],
    )
    finals = [table.final(good), table.final(better)]
    assert measure.incumbents(done, table) == [
        (1, finals[0]),
        (2, finals[1]),
        (3, finals[0]),
        (4, finals[1]),
        (5, finals[0]),
    ]
    assert measure.strict_incumbents(done, table) == []


def test_only_a_complete_trial_counts_where_the_goal_is_strict() -> None:
    table = a_table()
    epochs = [Epoch(e, 0, e, table.curve((5, 2, 1), 0)[e - 1]) for e in range(1, MAX_EPOCHS + 1)]
    done = Run(points=[(5, 2, 1)], epochs=epochs)
    assert measure.epochs_until(measure.incumbents(done, table), table.finals[0]) == 1
    assert measure.epochs_until(measure.strict_incumbents(done, table), table.finals[0]) == MAX_EPOCHS
    assert measure.epochs_until(measure.incumbents(done, table), 2.0) == math.inf


def test_the_incumbent_at_a_time_is_the_last_one_before_it() -> None:
    trace = [(3, 0.1), (7, 0.2)]
    assert [measure.final_at(trace, spent) for spent in (1, 3, 6, 7, 100)] == [-math.inf, 0.1, 0.1, 0.2, 0.2]


def test_a_goal_is_kept_from_when_no_later_incumbent_falls_short_of_it() -> None:
    trace = [(3, 0.5), (7, 0.2), (9, 0.4), (12, 0.6)]
    assert measure.epochs_until(trace, 0.4) == 3
    assert measure.epochs_until_kept(trace, 0.4) == 9
    assert measure.epochs_until_kept(trace, 0.1) == 3
    assert measure.epochs_until_kept(trace, 0.7) == math.inf


def test_a_threshold_counts_rows_of_equal_final_values_in() -> None:
    table = a_table()
    assert table.threshold(0.01) == table.finals[0]
    tied = replace(table, rows=tuple(replace(r, curves=((0.5,) * MAX_EPOCHS,)) for r in table.rows))
    assert sum(final >= tied.threshold(0.01) for final in tied.finals) == len(tied.rows)


def a_comparison(ours: list[float], optunas: list[float]) -> Comparison:
    """Return a comparison whose searches reached the best final value after the given epochs."""
    best = a_table().finals[0]
    found = {
        ("made-up", 1, side): [
            Outcome([(1, 0.0), (int(e), best)] if e < math.inf else [(1, 0.0)], [], 1)
            for e in (ours if side == sides.OURS else optunas)
        ]
        for side in sides.SIDES
    }
    return Comparison([a_table()], [1], len(ours), found)


def test_ratios_are_of_means_cut_at_the_budget_and_never_reached_is_the_budget() -> None:
    found = a_comparison([10.0, 20.0], [math.inf, 75.0])
    ratio = found.ratio(found.tables, 1, Goal(0.01))
    assert ratio.value == 30 / (25 * MAX_EPOCHS + 75)
    assert ratio.low <= ratio.value <= ratio.high
    assert "met" in report.verdict(found)
    assert "missed" in report.verdict(a_comparison([75.0, 75.0], [75.0, 75.0]))


def test_luck_may_lead_once_everything_is_trained() -> None:
    table = a_table()
    assert table.lasting(0.01) == 1.0, "one training each, so there is no luck"
    best = max(table.rows, key=lambda row: table.final(row.point))
    curve = best.curves[0]
    unlucky = replace(best, curves=(curve, (*curve[:-1], -1.0), (*curve[:-1], 3 * curve[-1])))
    table = replace(table, rows=tuple(unlucky if row is best else row for row in table.rows))
    assert table.final(best.point) == table.threshold(0.01), "its mean is still the best"
    assert 0.5 < table.lasting(0.01, seeds=300) < 0.8  # it leads unless its second training is the one that is seen


def test_chosen_sides_are_compared_alone() -> None:
    found, chosen = a_comparison([10.0], [75.0]), [sides.OURS, "TPE + SHA"]
    found = replace(found, outcomes={key: o for key, o in found.outcomes.items() if key[2] in chosen})
    assert (found.sides, found.of_optuna) == (chosen, ["TPE + SHA"])
    assert "| TPE + SHA " in report.ratios(found, Goal(0.01))
    assert "TPE + median" not in report.ratios(found, Goal(0.01)) + report.sides(found, found.tables[0])


def test_the_best_combination_is_the_one_that_is_best_over_all_tables() -> None:
    found, other = a_comparison([10.0], [75.0]), replace(a_table(), name="other")
    found = replace(found, tables=[*found.tables, other])
    best = a_table().finals[0]
    needed = {"TPE": (20, 100), "TPE + median": (30, 30), "TPE + Hyperband": (100, 20), "TPE + SHA": (90, 90)}
    for side in sides.SIDES:
        for name, epochs in zip(("made-up", "other"), needed.get(side, (15, 15)), strict=True):
            found.outcomes[name, 1, side] = [Outcome([(epochs, best)], [], 1)]
    assert found.best_of_optuna(found.tables, 1, Goal(0.01)) == "TPE + median"
    assert found.ratio(found.tables, 1, Goal(0.01), other="TPE + median").value == 0.5
    assert found.ratio(found.tables, 1, Goal(0.01)).value == 0.75, "on each table, another one is the best"


def test_a_goal_that_most_seeds_do_not_reach_is_shown_as_not_within_the_budget() -> None:
    found = a_comparison([10.0, 20.0, 30.0], [math.inf, math.inf, 75.0])
    shown = report.sides(found, found.tables[0])
    assert "not within 225" in shown
    assert "1 of 3" in shown
    assert "3 of 3" in shown


def test_one_search_is_simulated_and_measured() -> None:
    outcome = simulate(Case(a_table(), 1, sides.OURS, 0))
    assert outcome.trials > 25, "more trials than trainings in the budget"
    assert outcome.trace


# The tables


def a_noisy_table() -> Table:
    """Return the table with two seeds; the second one adds 1 to the curve of the worst configuration."""
    table = a_table()
    worst = min(table.rows, key=lambda row: row.curves[0][-1]).point
    rows = (replace(r, curves=(r.curves[0], tuple(v + (r.point == worst) for v in r.curves[0]))) for r in table.rows)
    return replace(table, rows=tuple(rows))


def test_the_quality_of_a_configuration_is_the_mean_over_its_seeds() -> None:
    table, plain = a_noisy_table(), a_table()
    (lucky,) = [r.point for r in table.rows if r.curves[0] != r.curves[1]]
    assert table.final(lucky) == pytest.approx(plain.final(lucky) + 0.5)
    assert table.final((5, 2, 1)) == plain.final((5, 2, 1))
    assert table.spread(1) == pytest.approx(math.sqrt(0.5 / len(table.rows)))


def test_a_search_sees_one_training_of_each_configuration_and_the_quality_is_not_what_it_saw() -> None:
    table = a_noisy_table()
    (lucky,) = [r.point for r in table.rows if r.curves[0] != r.curves[1]]
    seen = {table.curve(lucky, seed) for seed in range(20)}
    assert seen == set(table.by_point[lucky].curves)
    epochs = [Epoch(e, 0, e, table.by_point[lucky].curves[1][e - 1]) for e in range(1, MAX_EPOCHS + 1)]
    ((_, quality),) = measure.strict_incumbents(Run(points=[lucky], epochs=epochs), table)
    assert quality == table.final(lucky) < epochs[-1].score


def test_a_configuration_that_diverged_with_one_seed_is_the_worst() -> None:
    table = a_table()
    broken = replace(table.rows[0], curves=(table.rows[0].curves[0], (0.9, math.nan)))
    assert replace(table, rows=(broken, *table.rows[1:])).final(broken.point) == -math.inf


def test_a_table_is_read_as_it_was_written(tmp_path: Path) -> None:
    table = replace(a_table(), made={"command": "by hand"})
    table.write(tmp_path / "made-up.json")
    assert tables.read(tmp_path / "made-up.json") == table
    for row in table.rows:
        assert table.point_of(table.params_of(row.point)) == row.point


@pytest.mark.parametrize("path", sorted(tables.FOLDER.glob("*.json")), ids=lambda path: path.stem)
def test_the_tables_have_each_configuration_of_their_grid_once(path: Path) -> None:
    table = tables.read(path)
    assert sorted(table.by_point) == sorted(itertools.product(*(range(len(d.levels)) for d in table.dimensions)))
    assert len(table.rows) == len(table.by_point)
    assert all(len(curve) == table.max_epochs for row in table.rows for curve in row.curves)
    assert {len(row.curves) for row in table.rows} == {3}
    assert table.final(table.first) < table.threshold(0.05), "the first configuration leaves something to find"


# Real studies


def test_the_table_of_a_real_study_has_the_same_curves_with_choices_as_dimensions() -> None:
    table = tables.read(tables.FOLDER / f"{real.TABLE}.json")
    grid = make_tables.GRIDS[real.TABLE]
    flat = real.as_choices(table, grid)
    assert sorted(flat.finals) == sorted(table.finals)
    assert sorted(flat.by_point) == sorted(itertools.product(*(range(len(d.levels)) for d in flat.dimensions)))
    for row in table.rows[::50]:
        values = {d.name: d.levels[i] for d, i in zip(table.dimensions, row.point, strict=True)}
        drawn = {key: values[name] for key, name in grid.keys.items()}
        drawn[grid.lists] = str([values["width"]] * values["layers"])
        assert flat.by_point[flat.point_of(drawn)].curves == row.curves


def test_a_difference_is_in_standard_errors() -> None:
    assert real.Quantity("epochs", [1.0, 3.0], [1.0, 3.0]).difference == 0
    assert real.Quantity("epochs", [11.0, 13.0], [1.0, 3.0]).difference == pytest.approx(10 / math.sqrt(2))
    assert real.Quantity("epochs", [1.0, 1.0], [2.0, 2.0]).difference == -math.inf
