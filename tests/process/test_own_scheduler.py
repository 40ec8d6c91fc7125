"""Schedulers that a configuration names by `_target_`: which trial trains next, and how far."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from overnight import api
from overnight.config.paths import StudyLocation
from overnight.config.problems import ConfigError
from overnight.search.build_plan import build_plan
from overnight.study.snapshot import view

OURS = "scheduler._target_=user_package.schedulers."
LINE = ("trainer.max_epochs=4", "slots=1", "preflight=never", "pictures.when=never", "study.confirm.seeds=0")


def states(result: api.Result) -> list[tuple[str, int]]:
    return [(r.state, len(r.history)) for r in result.records]


def test_a_scheduler_of_the_user_starts_pauses_and_resumes_trials(tune: Callable[..., api.Result]) -> None:
    result = tune(*LINE, f"{OURS}OneByOne", "+scheduler.epochs=4")
    assert sorted(states(result)) == [("complete", 4), ("pruned", 1), ("pruned", 1)]
    best_after_one = max(result.records, key=lambda r: r.history[0].metrics["val/accuracy"])
    assert best_after_one.state == "complete"


def test_a_scheduler_of_the_user_pauses_and_stops_running_trials(tune: Callable[..., api.Result]) -> None:
    result = tune(*LINE, f"{OURS}PausesAndStops", "+scheduler.epochs=4")
    assert states(result) == [("pruned", 2), ("pruned", 2), ("complete", 4)]
    assert [r.waits_at_rung for r in result.records] == [True, False, False]


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ("a number", "next must return Start, Resume or None, got 7"),
        ("running", "next may resume paused trials only, got Resume(number=99, until=2) for one that is absent"),
        ("backwards", "until must be above the 1 epochs of trial 0, got Resume(number=0, until=1)"),
        ("too far", "until must be from 1 to trainer.max_epochs, which is 4, got Start(until=1000)"),
        ("an error", "next raised ZeroDivisionError: division by zero"),
    ],
)
def test_a_nonsensical_answer_stops_the_study_and_loses_nothing(
    answer: str, message: str, tune: Callable[..., api.Result], home: Path
) -> None:
    with pytest.raises(ConfigError) as caught:
        tune(*LINE, f"{OURS}Nonsense", f"+scheduler.answer='{answer}'")
    (problem,) = caught.value.problems
    assert problem.startswith("scheduler: user_package.schedulers.Nonsense.")
    assert message in problem
    found, _ = view(StudyLocation(str(home)))
    assert found is not None
    assert [(r.state, len(r.history)) for r in found.records] == [("paused", 1)]


def test_what_is_no_scheduler_is_refused_before_the_study() -> None:
    with pytest.raises(ConfigError) as caught:
        build_plan(["scheduler._target_=collections.OrderedDict"])
    assert "or a class with methods next and report" in caught.value.problems[0]


def test_a_pruner_of_optuna_is_told_from_a_scheduler() -> None:
    assert build_plan(["scheduler._target_=optuna.pruners.NopPruner"]).settings.scheduler.name == "custom"
    assert not build_plan(["scheduler._target_=optuna.pruners.NopPruner"]).pauses
    own = build_plan([f"{OURS}OneByOne", "+scheduler.epochs=4"])
    assert (own.settings.scheduler.name, own.pauses) == ("own", True)
