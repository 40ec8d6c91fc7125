"""The arguments of Lightning's Trainer in the configuration."""

from __future__ import annotations

import inspect
from typing import Any

import pytest

from overnight.config.import_allowlist import trainer_problems
from overnight.config.problems import ConfigError
from overnight.config.trainer import ACCEPTED, OURS, REFUSED, default_of, trainer_arguments
from overnight.search.build_plan import build_plan
from overnight.system import devices
from support.trainer_table import PAGE, parts_of_page, table


def problems_of(*overrides: str) -> list[str]:
    with pytest.raises(ConfigError) as raised:
        build_plan(["search=none", *overrides])
    return raised.value.problems


@pytest.mark.parametrize("package", ["pytorch_lightning", "lightning.pytorch"])
def test_each_argument_of_the_installed_trainer_is_taken_ours_or_refused(package: str) -> None:
    trainer = pytest.importorskip(package).Trainer
    signature = inspect.signature(trainer.__init__).parameters
    assert [*ACCEPTED, *OURS, *REFUSED] == list(dict.fromkeys([*ACCEPTED, *OURS, *REFUSED])), "each once"
    assert set(signature) - {"self"} == {*ACCEPTED, *OURS, *REFUSED}
    given = ("max_epochs", "precision", "gradient_clip_val")  # config.yaml has a value
    assert {n: default_of(n) for n in ACCEPTED if n not in given} == {
        n: 0.0 if n == "overfit_batches" else signature[n].default for n in ACCEPTED if n not in given
    }


def test_the_page_has_the_table_of_the_code() -> None:
    assert parts_of_page()[1].strip() == table().strip(), f"run tests/support/trainer_table.py to write {PAGE.name}"


def test_an_argument_needs_no_config_that_names_it() -> None:
    given = ["trainer.limit_train_batches=0.5", "+trainer.min_steps=3", "trainer.max_time={hours: 1}"]
    trainer = build_plan(["search=none", *given]).config({})["trainer"]
    assert trainer_arguments(trainer) == {
        **{"num_sanity_val_steps": 0, "max_epochs": 20, "precision": "32-true"},
        **{"limit_train_batches": 0.5, "min_steps": 3, "max_time": {"hours": 1}},
    }


def test_a_searched_argument_has_lightnings_default_in_the_baseline() -> None:
    plan = build_plan(["search=none", "trainer.accumulate_grad_batches=1,4"])
    assert plan.config({})["trainer"]["accumulate_grad_batches"] == 1
    assert plan.config({"trainer.accumulate_grad_batches": 4})["trainer"]["accumulate_grad_batches"] == 4
    steps = build_plan(["search=none", "trainer.max_epochs=-1", "trainer.max_steps=30,60"])
    assert steps.config({})["trainer"]["max_steps"] == 30, "the baseline must end"
    assert problems_of("trainer.accumulate_grad_batches=0,4") == [
        "trainer.accumulate_grad_batches: must be at least 1, got 0"
    ]


@pytest.mark.parametrize("target", ["pytorch_lightning.Trainer", "lightning.pytorch.trainer.Trainer"])
def test_what_a_template_gives_for_one_device_is_accepted(target: str) -> None:
    given = [f"trainer._target_={target}", "trainer.devices=1", "trainer.strategy=auto", "trainer.logger=null"]
    assert set(build_plan(["search=none", *given]).config({})["trainer"]) == {
        *("max_epochs", "precision", "gradient_clip_val")
    }


@pytest.mark.parametrize(
    ("override", "problem"),
    [
        ("trainer.acumulate_grad_batches=3", "no such key; did you mean trainer.accumulate_grad_batches?"),
        ("trainer.devices=2", "is set by overnight: a trial trains on one device"),
        ("trainer.logger=true", "is set by overnight: each trial's metrics go to its run in MLflow"),
        ("trainer.default_root_dir=/tmp", "is set by overnight: each trial has a folder below home"),
        ("trainer.fast_dev_run=true", "has no place in a trial: it trains a few batches"),
        ("trainer._target_=my.Trainer", "must be Lightning's Trainer, pytorch_lightning.Trainer or"),
        ("trainer.max_epochs=-1", "must have another limit beside it where it is -1; add trainer.max_steps=N"),
        ("trainer.max_epochs=0", "must be at least 1, or -1 for no limit"),
        ("trainer.max_steps=0", "must be at least 1, or -1 for no limit, got 0"),
        ("trainer.min_epochs=30", "must be at most trainer.max_epochs, which is 20, got 30; lower it"),
        ("trainer.limit_train_batches=1.5", "must be a number of batches, or a share of them above 0.0"),
        ("trainer.val_check_interval=0", "must be a number of training batches, a share of an epoch"),
        ("trainer.max_time=8", "must be a time such as '00:08:00:00' (DD:HH:MM:SS)"),
        ("trainer.deterministic=maybe", "must be true, false or warn, got 'maybe'"),
        ("trainer.gradient_clip_algorithm=max", "must be one of norm, value, got 'max'"),
        ("trainer.accelerator=tpu", "must be one of auto, cpu, gpu, cuda, mps, got 'tpu'"),
        ("trainer.precision=33-true", "must be one of 32-true, 16-mixed"),
    ],
)
def test_a_mistake_is_one_line_with_key_rule_and_value(override: str, problem: str) -> None:
    (found,) = problems_of(override)
    assert found.startswith(f"{override.partition('=')[0]}: {problem}")


def test_a_trial_must_have_time_for_a_validation() -> None:
    assert problems_of(
        "trainer.max_steps=10", "trainer.val_check_interval=21", "trainer.accumulate_grad_batches=2"
    ) == ["trainer.val_check_interval: must be at most 20, the batches of trainer.max_steps, got 21; lower it"]


def test_an_accelerator_that_the_machine_lacks_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    (problem,) = problems_of("trainer.accelerator=cuda")
    assert problem.startswith("trainer.accelerator: must be one that this machine has, got cuda; this machine has no")
    (problem,) = problems_of("trainer.accelerator=cpu,cuda")
    assert "can't be searched" in problem


def test_the_accelerator_decides_the_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    assert devices.slot_devices(2, "cpu") == ["cpu", "cpu"]
    assert devices.slot_devices(None, "gpu") == devices.slot_devices(None) == ["cuda:0", "cuda:1"]
    assert devices.slot_devices(None, "mps") == ["mps"]


def test_a_worker_takes_the_same_arguments_as_plain_values() -> None:
    trainer: dict[str, Any] = {"max_steps": 3, "max_time": {"hours": 1}, "callbacks": [], "val_check_interval": [1]}
    assert [p.partition(":")[0] for p in trainer_problems(trainer)] == [
        "trainer.callbacks",
        "trainer.val_check_interval",
    ]


def test_no_argument_that_counts_batches_lets_our_networks_group_them() -> None:
    from overnight.config.trainer import FREE_OF_BATCHES

    assert set(FREE_OF_BATCHES) <= set(ACCEPTED)
    counting = {"max_steps", "min_steps", "max_time", "limit_train_batches", "overfit_batches", "val_check_interval"}
    counting |= {"accumulate_grad_batches", "gradient_clip_algorithm", "reload_dataloaders_every_n_epochs"}
    assert set(ACCEPTED) - set(FREE_OF_BATCHES) == counting | {"log_every_n_steps"}
