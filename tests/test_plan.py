"""A plan holds all that a study is, and refuses what could not run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from overnight import plan
from overnight.plan import Plan
from overnight.settings import ConfigError


def problems_of(*overrides: str, config_dir: Path | None = None) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        plan.make(overrides, config_dir)
    return caught.value.problems


def test_the_default_space_searches_what_the_readme_says() -> None:
    keys = [p.key for p in plan.make().space.parameters]
    assert keys == ["model.hidden_sizes", "model.activation", "optimizer", "optimizer.lr", "optimizer.momentum"]


def test_a_sweep_on_the_command_line_adds_to_the_space_or_replaces_its_key() -> None:
    space = plan.make(["model.dropout=interval(0.0,0.5)", "model.activation=relu,gelu"]).space.describe()
    assert space["model.dropout"] == "0.0 to 0.5"
    assert space["model.activation"] == "choice(relu, gelu)"
    assert "optimizer.lr" in space


def test_a_plain_value_on_the_command_line_takes_its_key_out_of_the_space() -> None:
    study = plan.make(["optimizer.lr=0.02", "optimizer=sgd"])
    assert {"optimizer.lr", "optimizer"}.isdisjoint(study.space.describe())
    assert "optimizer.momentum" in study.space.describe()
    assert study.config({})["optimizer"]["lr"] == 0.02


def test_a_config_group_that_is_drawn_brings_its_own_keys() -> None:
    study = plan.make()
    sgd = study.config({"optimizer": "sgd", "optimizer.momentum": 0.5, "model.hidden_sizes": [8]})
    assert sgd["optimizer"]["_target_"] == "torch.optim.SGD"
    assert sgd["optimizer"]["momentum"] == 0.5
    assert sgd["model"]["hidden_sizes"] == [8]
    assert "momentum" not in study.config({"optimizer": "adam"})["optimizer"]


def test_an_interpolation_follows_what_is_drawn() -> None:
    study = plan.make(["+model.width=${optimizer.lr}", "search=none", "optimizer.lr=interval(0,1)"])
    assert study.config({"optimizer.lr": 0.25})["model"]["width"] == 0.25


def test_mistakes_in_the_space_are_all_named_together() -> None:
    problems = problems_of(
        "model.activation=tag(log,choice(relu,tanh))",
        "optimizer.lr=interval(0.1,0.01)",
        "optimizer=adam,sdg",
        "model.hidden_sizes=interval(1,2)",
        "data.batch_size=interval(1,2)",
        "model.foo=1,2",
        "model.dropout=a,b",
    )
    words = [
        "search.model.activation: log has no meaning",
        "search.optimizer.lr: interval needs low < high",
        "search.optimizer: must choose among adam, adamw, sgd, got 'sdg'",
        "search.model.hidden_sizes: draws numbers, and [64] is written there",
        "search.data.batch_size: draws floats, and 32 is written there: take int(interval(LOW, HIGH))",
        "search.model.foo: no such key",
        "search.model.dropout: must be a number, got 'a'",
    ]
    for word in words:
        assert any(p.startswith(word) for p in problems), (word, problems)
    assert len(problems) == len(words)


def test_a_when_on_a_key_that_is_not_searched_is_a_mistake(tmp_path: Path) -> None:
    (tmp_path / "search").mkdir()
    (tmp_path / "search" / "odd.yaml").write_text(
        "model.dropout:\n  when: model.activation=relu\n  draw: interval(0.0, 0.5)\n"
    )
    assert "must look at a searched key, got 'model.activation'" in problems_of("search=odd", config_dir=tmp_path)[0]


def test_a_key_that_only_one_option_has_needs_a_when(tmp_path: Path) -> None:
    (tmp_path / "search").mkdir()
    (tmp_path / "search" / "odd.yaml").write_text(
        "optimizer: choice(adam, sgd)\noptimizer.momentum: interval(0.0, 0.9)\n"
    )
    (problem,) = problems_of("search=odd", config_dir=tmp_path)
    assert problem.startswith("search.optimizer.momentum: no such key")
    assert "with optimizer=adam" in problem


def test_train_takes_no_sweep() -> None:
    with pytest.raises(ConfigError, match="`train` takes one value"):
        plan.make(["optimizer.lr=0.1,0.2"], searching=False)


def test_a_plan_survives_being_frozen_and_thawed() -> None:
    study = plan.make(["model.hidden_sizes=[32],[64,64]"])
    assert Plan.from_json(json.loads(json.dumps(study.to_json()))) == study


def test_budget_slots_and_pruner_may_change_and_what_moves_a_score_may_not() -> None:
    study = plan.make()
    assert plan.make(["study.trials=99", "slots=1", "pruner=none", "home=/elsewhere"]).differences(study) == []
    differences = plan.make(
        ["data.split_seed=1", "study.metric=val/loss", "study.direction=minimize", "optimizer.lr=interval(0,1)"]
    ).differences(study)
    assert [d.split(":")[0] for d in differences] == [
        "study.metric",
        "study.direction",
        "data.split_seed",
        "search.optimizer.lr",
    ]


def test_a_change_in_another_options_config_moves_scores_too(tmp_path: Path) -> None:
    (tmp_path / "optimizer").mkdir()
    file = tmp_path / "optimizer" / "mine.yaml"
    made = []
    for decay in (0.0, 0.5):
        file.write_text(f"_target_: torch.optim.SGD\nlr: 0.1\nweight_decay: {decay}\n")
        made.append(plan.make(["optimizer=adam,mine", "search=none"], tmp_path))
    assert made[1].differences(made[0]) == ["[mine] optimizer.weight_decay: was 0.0, is 0.5"]


def test_a_condition_that_can_never_hold_is_a_mistake(tmp_path: Path) -> None:
    (tmp_path / "search").mkdir()
    (tmp_path / "search" / "odd.yaml").write_text(
        "optimizer: choice(adam, sgd)\noptimizer.momentum:\n  when: optimizer=sdg\n  draw: interval(0.0, 0.9)\n"
    )
    problems = problems_of("search=odd", config_dir=tmp_path)
    assert "optimizer is one of adam, adamw, sgd, and never 'sdg'" in problems[0]


def test_a_model_without_a_search_file_is_told_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "mine.yaml").write_text("_target_: a.B\n")
    (problem,) = problems_of("model=mine", config_dir=tmp_path)
    assert problem == "search: there is no search/mine.yaml for model=mine; write one, or take search=none"


def test_the_seed_of_a_trial_depends_on_the_studys_seed_and_its_number_alone() -> None:
    one, two = plan.make(["seed=1"]), plan.make(["seed=1", "study.trials=5", "model.dropout=0.1"])
    assert [one.trial_seed(n) for n in range(5)] == [two.trial_seed(n) for n in range(5)]
    assert len({one.trial_seed(n) for n in range(500)}) == 500
    assert one.trial_seed(0) != plan.make(["seed=2"]).trial_seed(0)


def test_a_study_searches_over_a_bounded_number_of_group_combinations(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    names = [f"m{i}" for i in range(70)]
    for name in names:
        (tmp_path / "model" / f"{name}.yaml").write_text("_target_: a.B\n")
    (problem,) = problems_of("search=none", f"model=m0,{','.join(names[1:])}", config_dir=tmp_path)
    assert "at most 64 combinations" in problem
