"""Schedulers that a configuration names by `_target_`: which trial trains next, and how far."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from user_package import schedulers

from overnight import api
from overnight.config.paths import StudyLocation
from overnight.config.problems import ConfigError
from overnight.protocol import Decision, Progress, Resumed, TrialMessage
from overnight.runner.message_handler import MessageHandler
from overnight.runner.trial_outcomes import Outcomes
from overnight.runner.trial_process import TrialProcess
from overnight.runner.trial_spec import trial_spec
from overnight.runner.watchdog import Watchdog
from overnight.search.build_plan import build_plan
from overnight.study.open import open_study
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


def test_a_scheduler_of_the_user_stops_a_trial_that_has_just_been_resumed(tune: Callable[..., api.Result]) -> None:
    result = tune(*LINE, f"{OURS}StopsWhatItResumes", "+scheduler.epochs=4")
    assert states(result) == [("pruned", 1)] * 3
    assert [r.waits_at_rung for r in result.records].count(False) == 1, "one was stopped, and the others wait"


def test_an_epoch_that_a_resumed_trial_trains_again_is_judged_once_and_the_last_one_again(tmp_path: Path) -> None:
    asked = schedulers.StopsAfterTwo.asked
    plan = build_plan([f"home={tmp_path}", "search=none", *LINE, f"{OURS}StopsAfterTwo", "+scheduler.epochs=4"])
    session, _ = open_study(plan)
    assert session.schedule is not None
    assignment = session.queue.ask_scheduled(session.schedule)
    assert assignment is not None
    supervisors, trials = multiprocessing.Pipe()
    spec = trial_spec(plan, 0, assignment.config, assignment.seed, "cpu", every_s=1e9)
    process: Any = SimpleNamespace(pid=0)
    trial = TrialProcess(spec, process, supervisors, supervisors, tmp_path / "log", until=assignment.until)
    handler = MessageHandler(
        session, Watchdog(plan.settings.trial, 1, 1 << 30), Outcomes(session), lambda: True, lambda: None
    )

    def answers(*messages: TrialMessage) -> list[Decision]:
        for message in messages:
            trials.send(message)
        handler.handle_all(trial)
        found = []
        while trials.poll():
            found.append(trials.recv())
        return found

    epochs = [Progress(0, e, {"val/accuracy": 0.5}, 1000.0 + e, 0.1) for e in range(4)]
    for done in epochs[:2]:
        session.writer.record(done)  # before a kill; its last state on disk is older
    asked.clear()
    assert answers(Resumed(0, (epochs[0],))) == []
    assert asked == [], "the first epoch was judged before the kill"
    assert answers(epochs[1], epochs[2]) == [Decision.STOP, Decision.STOP]
    assert (asked, trial.pruned, trial.index) == ([(0, 2)], True, 1)

    trial.pruned = False
    assert answers(Resumed(0, tuple(epochs[:2]))) == [Decision.SAVE_AND_STOP]
    assert (asked, trial.pruned) == ([(0, 2)] * 2, True)
    session.close()


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ("a number", "next must return Start, Resume or None, got 7"),
        ("running", "next may resume paused trials only, got Resume(number=99, until=2) for one that is absent"),
        ("backwards", "until must be above the 1 epochs of trial 0, got Resume(number=0, until=1)"),
        ("too far", "until must be from 1 to 4, the epochs of a whole trial, got Start(until=1000)"),
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


def test_a_scheduler_that_pauses_trials_is_refused_where_it_cannot() -> None:
    with pytest.raises(ConfigError) as caught:
        build_plan([f"{OURS}OneByOne", "+scheduler.epochs=4", "trainer.max_epochs=4,8"])
    (problem,) = caught.value.problems
    assert problem == (
        "scheduler: must not pause trials here: trainer.max_epochs is searched, got "
        "'user_package.schedulers.OneByOne'; change that, or take scheduler=median"
    )
