"""What `overnight status` prints of a study that runs."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import pytest

from overnight.cli import watch
from overnight.cli.output import print_status, status_object
from overnight.protocol import Progress
from overnight.search import deadline
from overnight.search.build_plan import build_plan
from overnight.search.formatting import format_duration
from overnight.search.record import Confirms
from overnight.search.schedulers.study import progress_text, share_spent
from overnight.study.snapshot import StudyView
from support.planted_study import record


def running_view(tmp_path: Path, *overrides: str) -> StudyView:
    plan, now = build_plan([f"home={tmp_path}", *overrides]), time.time()
    ends = {"started_at": now, "ends_at": now + 3600, "setting": "study.hours=1"}
    holder = {"pid": 1, "host": "here"}
    return StudyView(plan.name, plan, (), holder, None, None, launch={"deadline": ends, "startup_s": 5.0})


@pytest.mark.parametrize("scheduler", ["halving", "median"])
def test_a_running_study_with_a_deadline_says_when_it_ends(
    scheduler: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = running_view(tmp_path, "study.hours=1", f"scheduler={scheduler}")
    print_status(found)
    assert "ends by" in capsys.readouterr().out
    assert "ends by" in status_object(found)["forecast"]


def test_the_budget_is_told_in_epochs_where_trials_are_paused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = running_view(tmp_path, "scheduler=halving", "study.budget=30", "trainer.max_epochs=20")
    print_status(found)
    assert "0 of 600 epochs done" in capsys.readouterr().out
    status = status_object(found)
    assert (status["budget"], status["epochs"]) == (None, {"trained": 0, "budget": 600})


@pytest.mark.parametrize(
    ("given", "trainings", "limit"),
    [
        ((), 30, 600),
        (("study.budget=2.5",), 2.5, 50),
        (("study.trials=100",), 100, None),
        (("study.trials=100", "study.budget=10"), 10, 200),
        (("scheduler=none",), 30, None),
        (("scheduler=none", "study.trials=100"), 100, None),
    ],
)
def test_a_number_of_trials_takes_the_place_of_the_default_budget(
    given: tuple[str, ...], trainings: float, limit: int | None, tmp_path: Path
) -> None:
    budget = running_view(tmp_path, "trainer.max_epochs=20", *given).plan.budget
    assert (budget.trainings, budget.epoch_limit) == (trainings, limit)


def test_the_time_left_of_a_number_of_trials_counts_their_promotions(tmp_path: Path) -> None:
    """All ten configurations wait at the first rung: 25 of 35 epochs are still to come."""
    plan = running_view(tmp_path, "study.trials=10", "scheduler.min_epochs=1").plan
    waiting = [
        replace(record(n, {}, 0.5), state="paused", history=(Progress(n, 0, {"val/accuracy": 0.5}, 1e9, 1.0),), until=1)
        for n in range(10)
    ]
    assert progress_text(waiting, plan) == "10 of 10 trials"
    assert share_spent(waiting, plan) == pytest.approx(10 / 35)


@pytest.mark.parametrize(
    "given", [("study.trials=1000", "study.budget=30"), ("sampler=grid", "optimizer.lr=range(0.001,1,0.001)")]
)
def test_progress_is_in_epochs_where_they_end_before_the_trials_do(given: tuple[str, ...], tmp_path: Path) -> None:
    search = ("search=none",) if "sampler=grid" in given else ()
    plan = running_view(tmp_path, "trainer.max_epochs=20", "scheduler.min_epochs=1", *search, *given).plan
    assert plan.budget.trial_limit is not None
    trained = tuple(Progress(0, e, {"val/accuracy": 0.5}, 1e9 + e, 1.0) for e in range(20))
    assert progress_text([replace(record(0, {}, 0.5), history=trained, until=20)], plan) == "20 of 600 epochs"


def test_trials_that_were_paused_when_a_watched_search_ended_are_no_news(tmp_path: Path) -> None:
    view = running_view(tmp_path, "trainer.max_epochs=20")
    history = (Progress(1, 0, {"val/accuracy": 0.5}, 1e9, 1.0),)
    settled = replace(record(1, {}, 0.5, "pruned"), history=history, until=1, max_epochs=20)
    stopped = replace(settled, number=2, until=2)
    found = replace(view, records=(record(0, {}, 0.5), settled, stopped))
    assert [r.number for r in watch.progress(found).ended] == [0, 2]


@pytest.mark.parametrize("screen", ["status", "watch"])
def test_once_patience_is_used_up_only_the_best_trials_are_still_to_come(
    screen: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Eight trials wait after ten epochs of one second, and two of them are to be finalists."""
    given = ("trainer.max_epochs=20", "study.patience=2", "study.confirm.top=2", "study.confirm.seeds=1", "slots=2")
    view = running_view(tmp_path, *given, "scheduler.min_epochs=10")
    histories = [tuple(Progress(n, e, {"val/accuracy": 0.5}, 1e9 + e, 1.0) for e in range(10)) for n in range(8)]
    waiting = tuple(
        replace(record(n, {}, 0.5), state="paused", ended_at=None, history=h, until=10, max_epochs=20)
        for n, h in enumerate(histories)
    )
    view = replace(view, records=waiting, launch={})
    confirmation_s = 3 * 20
    if screen == "status":
        print_status(view)
        seconds = deadline.MARGIN * 2 * 10 + confirmation_s  # no trial is running now
        assert f"about {format_duration(seconds)} left" in capsys.readouterr().out
    else:
        snapshot = watch.progress(view)
        assert snapshot.seconds_left() == pytest.approx((deadline.MARGIN * 2 * 10 + confirmation_s) / 2)
        assert snapshot.share_done == pytest.approx(80 / 100)


def test_a_search_whose_deadline_left_no_confirmation_shows_none(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    view = running_view(tmp_path, "study.budget=1")
    print_status(replace(view, confirmation=replace(view, name=f"{view.name}.confirm", records=())))
    assert "confirmation" not in capsys.readouterr().out


@pytest.mark.parametrize("screen", ["status", "watch"])
def test_the_wait_of_a_paused_trial_is_no_time_of_a_confirmation(
    screen: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The search took eight hours. At its end a trial became pruned that had waited since its first epoch."""
    view = running_view(tmp_path, "study.budget=1.5", "study.confirm.seeds=1", "slots=2")
    paused = replace(record(0, {}, 0.5, "pruned"), ended_at=1e9 + 8 * 3600, until=1)
    complete = replace(record(1, {}, 0.6), history=record(1, {}, 0.6).history * 4, until=20)
    runs = tuple(
        replace(record(n, {}, None, "waiting"), started_at=None, ended_at=None, confirms=Confirms(1, 1, n))
        for n in range(4)
    )
    confirmation = replace(view, name=f"{view.name}.confirm", plan=replace(view.plan), records=runs)
    view = replace(view, records=(paused, complete), confirmation=confirmation, launch={})
    if screen == "status":
        print_status(view)
        assert "about 40 s left" in capsys.readouterr().out
    else:
        plan = build_plan([f"home={tmp_path}", "scheduler=none", "study.trials=4", "study.confirm.seeds=0"])
        left = watch.progress(replace(view, confirmation=replace(confirmation, plan=plan))).seconds_left()
        assert left == pytest.approx(4 * 10 / 2)


def test_the_budget_is_a_number_of_trials_where_none_is_paused(tmp_path: Path) -> None:
    status = status_object(running_view(tmp_path, "scheduler=none", "study.trials=7"))
    assert (status["budget"], status["epochs"]) == (7, {"trained": 0, "budget": None})


def test_trials_that_wait_at_a_rung_are_counted_and_others_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lengths = [(1, 1)] * 40 + [(4, 4)] * 3 + [(2, 4)]  # epochs, and those to which it was sent
    paused = tuple(
        replace(
            record(n, {"optimizer.lr": 0.001}, 0.5, "paused"), history=record(n, {}, 0.5).history[:epochs], until=until
        )
        for n, (epochs, until) in enumerate(lengths)
    )
    print_status(replace(running_view(tmp_path), records=paused))
    lines = capsys.readouterr().out.splitlines()
    assert "  43 paused at a rung: 40 after 1 epoch, 3 after 4 epochs" in lines
    assert [line for line in lines if line.startswith("  trial-")] == [
        "  trial-0043 (lr=0.001): paused, 2 of 20 epochs"
    ]
