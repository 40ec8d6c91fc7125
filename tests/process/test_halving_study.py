"""Studies whose trials are paused and resumed: interrupted, continued with more budget, and changed."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState

from overnight import api
from overnight.cli import doctor
from overnight.cli.manage import mark
from overnight.config.compose import study_location
from overnight.protocol import Progress
from overnight.search.build_plan import build_plan
from overnight.search.plan import Plan
from overnight.search.record import TrialRecord
from overnight.study.open import open_study
from overnight.study.queue import TrialAssignment
from overnight.study.session import StudySession
from overnight.study.snapshot import view
from overnight.study.storage.database import dispose
from support.mlflow_store import assert_equal, runs_of

EPOCHS = 8


def planned(home: Path, *overrides: str) -> Plan:
    halving = [] if "scheduler=median" in overrides else ["scheduler=halving", "scheduler.min_epochs=1"]
    line = [*halving, f"trainer.max_epochs={EPOCHS}", "study.budget=6"]
    return build_plan([f"home={home}", "sampler=random", *line, *overrides])


@contextmanager
def opened(plan: Plan, **options: Any) -> Iterator[StudySession]:
    session, _ = open_study(plan, **options)
    try:
        yield session
    finally:
        session.close()


def curve(number: int, epoch: int) -> float:
    return round(random.Random(number).random() * (1 - 0.5 ** (epoch + 1)), 2)  # equal values occur


def falling(number: int, epoch: int) -> float:
    """Each trial is worse than those before it."""
    return (1 - 0.5 ** (epoch + 1)) / (1 + number)


class Killed(Exception):
    """The process was killed."""


class OneSlot:
    """A supervisor with one slot that is killed now and then. Trials save a state after each epoch.

    Args:
        risk: The probability of a kill at each step.
        finishes_after: The number of epochs after which study.patience ends the search.
    """

    finishes_after = math.inf

    def __init__(
        self, plan: Plan, risk: float = 0.0, seed: int = 0, curve: Callable[[int, int], float] = curve
    ) -> None:
        self.plan, self.risk, self.rng, self.curve = plan, risk, random.Random(seed), curve
        self.epochs = plan.settings.trainer.max_epochs
        self.saved: dict[int, int] = {}  # number of a trial -> epochs that its saved state has
        self.trained: list[tuple[int, int]] = []  # number of a trial, epoch
        self.kills = 0

    def run(self, plan: Plan | None = None, **options: Any) -> list[TrialRecord]:
        self.plan = plan or self.plan
        while True:
            session, _ = open_study(self.plan, **options)
            try:
                self._work(session)
            except Killed:
                self.kills += 1
                dispose(session.storage)
                session.unlock()
                continue
            session.close()
            with opened(self.plan) as session:
                return session.records()

    def _step(self, session: StudySession) -> None:
        if self.rng.random() < self.risk:
            session.storage.write = lambda: None  # type: ignore[method-assign]  # what is unwritten is lost
            raise Killed

    def _work(self, session: StudySession) -> None:
        assert session.schedule is not None
        assignment = session.queue.ask_scheduled(session.schedule)
        while assignment is not None:
            self._step(session)
            is_complete = self._train(session, assignment)
            session.schedule.finishes = len(self.trained) >= self.finishes_after
            with session.writer.batch():  # as the supervisor: the next one is chosen before the end is written
                (session.writer.complete if is_complete else session.writer.pause)(assignment.number)
                self._step(session)
                assignment = session.queue.ask_scheduled(session.schedule)
                self._step(session)
        session.schedule.settle()

    def _train(self, session: StudySession, assignment: TrialAssignment) -> bool:
        number, until = assignment.number, assignment.until
        assert session.schedule is not None
        assert until is not None
        for epoch in range(self.epochs):
            is_saved = epoch < self.saved.get(number, 0)
            session.writer.record(Progress(number, epoch, {"val/accuracy": self.curve(number, epoch)}, 0.0, 0.1))
            if not is_saved:
                self.trained.append((number, epoch))
            self.saved[number] = max(self.saved.get(number, 0), epoch + 1)
            if is_saved and epoch + 1 < self.saved[number]:
                continue  # the trial reports all that its state has before anything is decided
            self._step(session)
            if self.rng.random() < 0.3:
                session.writer.flush()
                self._step(session)
            if epoch + 1 < self.epochs and epoch + 1 >= until:
                if not session.schedule.go_on(number):
                    return False
                until = session.schedule.until(number)
        return True


def facts_of(records: list[TrialRecord]) -> list[tuple[Any, ...]]:
    return [(r.number, r.state, r.until, r.params, [e.metrics for e in r.history]) for r in records]


def test_a_search_that_patience_ends_trains_no_more_than_its_finalists_to_the_end(tmp_path: Path) -> None:
    slot = OneSlot(planned(tmp_path, "study.confirm.top=2", "study.confirm.seeds=2"), curve=falling)
    slot.finishes_after = 12
    records = slot.run()
    assert [r.number for r in records if r.state == "complete"] == [0, 1]
    assert len(slot.trained) < 6 * EPOCHS - EPOCHS, "the rest of the budget is left"


@pytest.mark.parametrize("sampler", ["random", "tpe"])
@pytest.mark.parametrize("seed", range(4))
def test_a_study_that_is_killed_at_random_steps_promotes_as_if_it_had_not_been(
    tmp_path: Path, sampler: str, seed: int
) -> None:
    line = (f"sampler={sampler}", f"seed={seed}", "study.direction=maximize")
    undisturbed = OneSlot(planned(tmp_path / "undisturbed", *line)).run()
    assert {r.state for r in undisturbed} == {"complete", "pruned"}
    killed = OneSlot(planned(tmp_path / "killed", *line), risk=0.1, seed=seed)
    assert facts_of(killed.run()) == facts_of(undisturbed)
    assert killed.kills > 5


@pytest.mark.parametrize("epochs", [1, 2, 3])
@pytest.mark.parametrize("direction", ["maximize", "minimize"])
def test_few_epochs_are_spent_too(tmp_path: Path, epochs: int, direction: str) -> None:
    slot = OneSlot(planned(tmp_path, f"trainer.max_epochs={epochs}", f"study.direction={direction}"))
    records = slot.run()
    assert 5 * epochs <= len(slot.trained) <= 6 * epochs
    assert epochs > 1 or len(records) == 6
    best = (max if direction == "maximize" else min)(r.objective for r in records if r.objective is not None)
    assert best in [r.objective for r in records if r.state == "complete"]


def test_other_clients_of_optuna_see_no_trial_that_waits(tmp_path: Path) -> None:
    records = OneSlot(planned(tmp_path)).run()
    study = optuna.load_study(study_name="digits-mlp", storage=f"sqlite:///{tmp_path / 'optuna.db'}")
    assert {t.state for t in study.trials} == {TrialState.COMPLETE, TrialState.PRUNED}
    assert [t.value for t in study.trials] == [r.objective for r in records]
    assert study.best_value == max(r.objective for r in records if r.state == "complete")  # type: ignore[type-var]


def test_a_larger_budget_goes_on_with_paused_trials_where_they_were(tmp_path: Path) -> None:
    slot = OneSlot(planned(tmp_path), curve=falling)
    before = slot.run()
    after = slot.run(planned(tmp_path, "study.budget=20"))
    assert len(slot.trained) == len(set(slot.trained)), "an epoch was trained twice"
    assert 19 * EPOCHS <= len(slot.trained) <= 20 * EPOCHS
    more = [new.number for old, new in zip(before, after, strict=False) if len(new.history) > len(old.history)]
    assert more, "a trial of the first launch was promoted in the second one"
    assert len(after) > len(before), "new trials were started"
    again = slot.run(planned(tmp_path, "study.budget=20"))
    assert again == after, "the same command again changes nothing"


@pytest.mark.parametrize(
    ("first", "then"),
    [("scheduler.min_epochs=1", "scheduler.min_epochs=4"), ("scheduler.min_epochs=2", "scheduler.min_epochs=null")],
)
def test_another_first_rung_does_not_resume_all_trials(tmp_path: Path, first: str, then: str) -> None:
    slot = OneSlot(planned(tmp_path, first))
    before = slot.run()
    slot.run(planned(tmp_path, then))
    assert len(slot.trained) <= 6 * EPOCHS
    after = slot.run(planned(tmp_path, then, "study.budget=9"))
    assert len(slot.trained) == len(set(slot.trained)) <= 9 * EPOCHS
    assert len(after) > len(before)


def test_an_extended_study_promotes_the_trials_that_it_copied(tmp_path: Path) -> None:
    slot = OneSlot(planned(tmp_path), curve=falling)
    before = slot.run()
    wider = ("study.budget=20", "optimizer.lr=tag(log,interval(1e-6,1))")
    after = slot.run(planned(tmp_path, *wider), extend=True)
    assert len(slot.trained) == len(set(slot.trained))
    assert any(len(new.history) > len(old.history) for old, new in zip(before, after, strict=False))
    assert 19 * EPOCHS <= len(slot.trained) <= 20 * EPOCHS


def test_a_trial_that_is_marked_bad_is_not_promoted(tmp_path: Path) -> None:
    plan = planned(tmp_path)
    slot = OneSlot(plan)
    paused = [r for r in slot.run() if r.state == "pruned"]
    bad = max(paused, key=lambda r: r.objective or 0.0)
    mark(plan.settings.location, plan.name, [bad.number], bad=True)
    after = slot.run(planned(tmp_path, "study.budget=20"))
    assert after[bad.number].state == "failed"
    assert len(after[bad.number].history) == len(bad.history)
    study = optuna.load_study(study_name="digits-mlp", storage=f"sqlite:///{tmp_path / 'optuna.db'}")
    assert not [t for t in study.trials if not t.state.is_finished()]


def test_a_study_changes_from_halving_to_median_and_back(tmp_path: Path) -> None:
    slot = OneSlot(planned(tmp_path), curve=falling)
    before = slot.run()
    median = planned(tmp_path, "scheduler=median", f"study.budget={len(before) + 2}")
    with opened(median) as session:
        asked = []
        while (assignment := session.queue.ask()) is not None:
            asked.append(assignment)
            for epoch in range(EPOCHS):
                slot.trained.append((assignment.number, epoch))
                session.writer.record(
                    Progress(assignment.number, epoch, {"val/accuracy": falling(assignment.number, epoch)}, 0.0, 0.1)
                )
            session.writer.complete(assignment.number)
    assert [a.until for a in asked] == [None, None]
    assert [a.number for a in asked] == [len(before), len(before) + 1], "paused trials stay as they are"
    after = slot.run(planned(tmp_path, "study.budget=20"))
    assert len(slot.trained) == len(set(slot.trained)) <= 20 * EPOCHS
    assert any(len(new.history) > len(old.history) for old, new in zip(before, after, strict=False))


def test_a_trial_that_was_paused_by_halving_trains_to_its_end_under_another_scheduler(tmp_path: Path) -> None:
    with opened(planned(tmp_path)) as session:
        assert session.schedule is not None
        assignment = session.queue.ask_scheduled(session.schedule)
        assert assignment is not None
        assert assignment.until == 1
        session.writer.record(Progress(0, 0, {"val/accuracy": 0.5}, 0.0, 0.1))
        session.writer.pause(0)
        assert session.read(0).waits_at_rung
    with opened(planned(tmp_path, "scheduler=median")) as session:
        assignment = session.queue.ask()
        assert assignment is not None
        assert (assignment.number, assignment.until) == (0, None)
        session.writer.prune(0)
        assert not session.read(0).waits_at_rung, "the pruner has ended it"


def test_equal_values_and_missing_ones_end_a_study_too(tmp_path: Path) -> None:
    records = OneSlot(planned(tmp_path / "equal"), curve=lambda *_: 0.5).run()
    assert next(r.number for r in records if r.state == "complete") == 0
    nothing = OneSlot(planned(tmp_path / "late"), curve=lambda number, epoch: math.nan if epoch < 2 else number / 100)
    assert any(r.state == "complete" for r in nothing.run())


@pytest.mark.parametrize("sampler", ["qmc", "cma_es", "grid"])
def test_each_sampler_spends_the_budget(tmp_path: Path, sampler: str) -> None:
    space = ["search=none", "optimizer.lr=0.1,0.2,0.3,0.4,0.5,0.6,0.7,0.8"]
    slot = OneSlot(planned(tmp_path, f"sampler={sampler}", *(space if sampler == "grid" else [])))
    records = slot.run()
    assert any(r.state == "complete" for r in records)
    if sampler == "grid":
        assert len({r.params["optimizer.lr"] for r in records}) == len(records) <= 9
    else:
        assert len(slot.trained) >= 5 * EPOCHS


# With real processes and MLflow


def counted(marker: Path) -> tuple[str, ...]:
    """Overrides of a network of one parameter that notes each epoch it trains."""
    return (
        "~model.hidden_sizes", "~model.activation", "~model.dropout", "~model.batch_norm", "search=none",
        "model._target_=user_networks.Counted", "+model.lr=tag(log,interval(1e-4,1e-1))", f"+model.marker={marker}",
        "slots=1", f"trainer.max_epochs={EPOCHS}", "scheduler=halving", "scheduler.min_epochs=1",
        "study.confirm.seeds=0",
    )  # fmt: skip


def epochs_in(marker: Path) -> list[tuple[str, str]]:
    return [(line.split()[0], line.split()[1]) for line in marker.read_text().splitlines()]


@pytest.mark.long
@pytest.mark.timeout(600)
def test_two_launches_leave_complete_stores_and_train_each_epoch_once(
    tune: Callable[..., api.Result], home: Path, tmp_path: Path
) -> None:
    line = counted(tmp_path / "marker")
    first = tune(*line, "study.budget=3")
    assert first.stop_reason == "complete"
    location = study_location([f"home={home}"])
    for budget in (3, 6):
        result = tune(*line, f"study.budget={budget}")
        assert result.stop_reason == "complete"
        found, _ = view(location)
        assert found is not None
        assert found.state == "complete"
        assert_equal(home, found)
        assert doctor.find_defects(location, found.name) == []
        runs = {r.data.tags.get("overnight.trial"): r for r in runs_of(home)}
        for r in found.records:
            run = runs[str(r.number)]
            assert run.info.status == "FINISHED"
            assert run.data.tags["overnight.until"] == str(r.until)
    trained = epochs_in(tmp_path / "marker")
    assert len(trained) == len(set(trained))
    assert len(trained) == sum(len(r.history) for r in result.records) <= 6 * EPOCHS


@pytest.mark.long
@pytest.mark.timeout(600)
def test_promoted_trials_whose_states_were_deleted_train_again_and_say_so(
    tune: Callable[..., api.Result], tmp_path: Path
) -> None:
    """They report the same values, and the budget counts their epochs once."""
    line = counted(tmp_path / "marker")
    kept = tune(*line, "study.budget=4")
    (tmp_path / "marker").unlink()
    (tmp_path / "again").mkdir()
    deleted = tune(*line, "study.budget=4", "scheduler.keep_gib=0", f"home={tmp_path / 'again'}")
    assert facts_of(list(deleted.records)) == facts_of(list(kept.records))
    again = [r for r in deleted.records if r.notes]
    assert again
    assert all("trained again from its first epoch" in r.notes[0] for r in again)
    assert len(epochs_in(tmp_path / "marker")) > sum(len(r.history) for r in deleted.records)
