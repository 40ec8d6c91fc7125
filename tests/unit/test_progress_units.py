"""Progress that is counted in epochs or in validations, as the supervisor sees it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from optuna.pruners import HyperbandPruner

from overnight.config.trainer import unit_of, units_of
from overnight.protocol import Progress
from overnight.search.build_plan import build_plan
from overnight.search.history import pack_history, unpack_history
from overnight.search.plan import Plan
from overnight.search.record import TrialRecord, typical_units, units_of_trial
from overnight.search.schedulers.pruners import make_pruner, scheduler_notes
from overnight.tracking.run_update import metrics_of
from overnight.trial.state import history_of

STEPS = ("trainer.max_epochs=-1", "trainer.max_steps=100", "trainer.val_check_interval=20")


def plan_of(*overrides: str) -> Plan:
    return build_plan(["search=none", "optimizer.lr=0.1,0.2", *overrides])


def record(plan: Plan, state: Any, done: int, total: int | None) -> TrialRecord:
    history = tuple(Progress(0, i, {"val/accuracy": 0.5}, 1e9, 1.0, 20 * i + 19, total) for i in range(done))
    return TrialRecord(0, state, {}, history, 0.5, None, "", 1e9, 2e9, config=plan.config({}))


@pytest.mark.parametrize(
    ("trainer", "unit"),
    [
        ({"max_epochs": 20}, "epoch"),
        ({"max_epochs": 20, "max_steps": -1, "val_check_interval": 1.0}, "epoch"),
        ({"max_epochs": 20, "check_val_every_n_epoch": 2, "max_time": "00:01:00:00"}, "epoch"),
        ({"max_epochs": 20, "val_check_interval": 0.25}, "validation"),
        ({"max_epochs": 20, "val_check_interval": 1}, "validation"),
        ({"max_epochs": 20, "max_steps": 100}, "validation"),
        ({"max_epochs": -1, "max_time": "00:01:00:00"}, "validation"),
    ],
)
def test_the_unit_follows_from_the_arguments_of_the_trainer(trainer: dict[str, Any], unit: str) -> None:
    assert unit_of(trainer) == unit


@pytest.mark.parametrize(
    ("trainer", "units"),
    [
        ({"max_epochs": 20}, 20),
        ({"max_epochs": 20, "val_check_interval": 0.25}, 80),
        ({"max_epochs": 20, "val_check_interval": 0.3}, 60),  # a fourth one would come after the epoch's end
        ({"max_epochs": 20, "val_check_interval": 0.1, "check_val_every_n_epoch": 3}, 60),
        ({"max_epochs": -1, "max_steps": 100, "val_check_interval": 7, "check_val_every_n_epoch": None}, 14),
        (
            {
                "max_epochs": -1,
                "max_steps": 100,
                "val_check_interval": 7,
                "check_val_every_n_epoch": None,
                "accumulate_grad_batches": 2,
            },
            28,
        ),
        ({"max_epochs": 20, "val_check_interval": 7}, None),  # the number of batches decides, and so on
        ({"max_epochs": 20, "max_steps": 100, "val_check_interval": 0.5}, None),
        ({"max_epochs": 20, "max_steps": 100, "val_check_interval": 7, "check_val_every_n_epoch": None}, None),
        ({"max_epochs": -1, "max_steps": 100, "val_check_interval": 7}, None),
        ({"max_epochs": -1, "max_steps": 5, "val_check_interval": 7, "check_val_every_n_epoch": None}, None),
        ({"max_epochs": -1, "max_time": "00:01:00:00"}, None),
    ],
)
def test_the_length_of_a_trial_is_known_where_the_data_do_not_decide_it(
    trainer: dict[str, Any], units: int | None
) -> None:
    assert units_of(trainer) == units


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ((), None),
        (("trainer.val_check_interval=0.25",), None),
        (("trainer.val_check_interval=0.25", "trainer.accumulate_grad_batches=1,2"), "accumulate_grad_batches is sea"),
        (("trainer.accumulate_grad_batches=1,2",), None),
        (("trainer.max_epochs=4,8",), "trainer.max_epochs is searched"),
        (("trainer.max_steps=20,40", "trainer.val_check_interval=0.5,0.25"), "trainer.val_check_interval are searched"),
        (("trainer.val_check_interval=20",), "only the data tell how many validations a trial has"),
        (("study.folds=4", "data=mnist"), "study.folds=4 trains a trial in parts"),
    ],
)
def test_trials_are_paused_where_all_of_them_are_known_to_have_the_same_length(
    line: tuple[str, ...], why: str | None
) -> None:
    plan = plan_of(*line)
    assert plan.pauses == (why is None)
    assert (why is None) == (plan.obstacle_to_pauses is None) == (not scheduler_notes(plan))
    assert why is None or why in scheduler_notes(plan)[0]


def test_a_history_of_validations_is_stored_with_steps_and_one_of_epochs_as_before() -> None:
    of_epochs = tuple(Progress(0, e, {"loss": 1.0}, 1000.0, 0.1) for e in range(2))
    assert set(pack_history(of_epochs)) == {"epoch", "at", "seconds", "metrics"}
    of_validations = tuple(replace(e, step=10 * e.index, total=5) for e in of_epochs)
    for history in (of_epochs, of_validations):
        assert unpack_history(0, pack_history(history)) == history


def test_a_checkpoint_of_an_earlier_version_has_epochs() -> None:
    saved = {"number": 0, "epoch": 3, "metrics": {}, "at": 1.0, "seconds": 2.0}
    assert history_of([saved]) == (Progress(0, 3, {}, 1.0, 2.0),)


def test_the_number_of_validations_comes_from_the_trials() -> None:
    plan = plan_of(*STEPS)
    running, complete, silent = (
        record(plan, "running", 2, 5),
        record(plan, "complete", 4, 5),
        record(plan, "running", 3, None),
    )
    assert [units_of_trial(r, plan) for r in (running, complete, silent)] == [5, 4, None]
    assert [typical_units(r, plan) for r in ([], [silent], [running, silent], [complete])] == [1, 4, 5, 4]
    assert typical_units([], plan_of("trainer.max_epochs=7")) == 7


def test_the_steps_in_mlflow_are_those_of_lightning() -> None:
    of_validations = [m.step for m in metrics_of(record(plan_of(*STEPS), "running", 3, 5))]
    assert of_validations == [19, 39, 59]


def test_hyperband_learns_the_resource_from_the_first_complete_trial() -> None:
    resources = [make_pruner(plan_of(*line, "scheduler=hyperband")) for line in (("trainer.max_epochs=9",), (*STEPS,))]
    assert all(isinstance(pruner, HyperbandPruner) for pruner in resources)
    assert [vars(pruner)["_max_resource"] for pruner in resources] == [9, "auto"]
