"""Which parameters matter, and that few trials cannot tell."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest

from overnight.report.importance import Importances, importances
from overnight.search.build_plan import build_plan
from overnight.search.plan import Plan, random_point
from support.planted_study import planned, record, search_records


def found_in(study: Plan, trials: int, value: Callable[[dict[str, Any]], float], seed: int = 0) -> Importances:
    """Return the importances of random trials of a study with these values."""
    rng = random.Random(seed)
    records = []
    for number in range(trials):
        point = random_point(study, rng)
        records.append(record(number, {}, value(point), values=point))
    return importances(study, records)


def test_the_parameters_that_matter_exceed_chance_and_a_useless_one_does_not() -> None:
    found = importances(planned(), search_records(planned(), 60))
    assert {i.key for i in found.certain} == {"optimizer.lr", "model.activation"}
    assert [i.key for i in found.uncertain] == ["model.dropout"]
    assert sum(i.share for i in found.keys) == pytest.approx(1)
    assert found.sentence() in (
        "60 trials show that optimizer.lr and model.activation matter; they cannot tell whether model.dropout does.",
        "60 trials show that model.activation and optimizer.lr matter; they cannot tell whether model.dropout does.",
    )


@pytest.mark.long
def test_values_without_a_cause_exceed_chance_in_few_studies() -> None:
    rng = random.Random(0)
    studies = [found_in(planned(), 20, lambda _: rng.random(), seed) for seed in range(12)]
    assert all(s.keys for s in studies)
    assert sum(bool(s.certain) for s in studies) <= 2
    silent = next(s for s in studies if not s.certain)
    assert silent.sentence().startswith("20 trials cannot tell which parameters matter")


@pytest.mark.parametrize("trials", [0, 1, 3, 9])
def test_a_handful_of_trials_cannot_tell(trials: int) -> None:
    found = importances(planned(), search_records(planned(), trials))
    assert found.keys == ()
    assert f"{trials} trial" in found.sentence()
    assert "cannot tell which parameters matter" in found.sentence()


def test_equal_values_tell_nothing() -> None:
    found = found_in(planned(), 20, lambda _: 0.5)
    assert found.keys == ()
    assert "too many have the same value" in found.sentence()


@pytest.mark.long
def test_a_list_is_one_parameter() -> None:
    study = build_plan(["study.trials=60"])
    found = found_in(study, 60, lambda p: len(p["model.hidden_sizes"]))
    assert found.certain[0].key == "model.hidden_sizes"
    assert {i.key for i in found.keys} == {p.key for p in study.space.parameters}


def test_a_parameter_with_a_condition_counts_where_it_is_drawn() -> None:
    study, momentum = build_plan([]), "optimizer.momentum"

    def value(point: dict[str, Any]) -> float:
        return 0.5 if momentum not in point else float(point[momentum])

    found = found_in(study, 80, value)
    assert momentum in {i.key for i in found.certain}


def test_importances_do_not_depend_on_the_order_of_sets() -> None:
    records = search_records(planned(), 20)
    assert importances(planned(), records) == importances(planned(), records)


def test_a_range_below_single_precision_has_its_importance() -> None:
    study = build_plan(["search=none", "optimizer.lr=interval(1e-9,1e-8)", "study.trials=12"])
    records = [record(i, {"optimizer.lr": 1e-9 * (i + 1) * 0.75}, 0.05 + i / 100) for i in range(12)]
    assert [i.key for i in importances(study, records).certain] == ["optimizer.lr"]
