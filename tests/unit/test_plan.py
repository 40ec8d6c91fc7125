"""A plan holds everything that a study depends on, and a plan that could not run is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from overnight.config.compose import compose
from overnight.config.problems import ConfigError, Problems
from overnight.config.settings import build_settings
from overnight.search import validation
from overnight.search.build_plan import build_plan
from overnight.search.grammar import choice
from overnight.search.plan import Plan, config_of_params
from overnight.search.space import SearchSpace


def problems_of(*overrides: str, config_dir: Path | None = None) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        build_plan(overrides, config_dir)
    return caught.value.problems


def test_the_default_space_has_the_keys_in_the_readme() -> None:
    keys = [p.key for p in build_plan().space.parameters]
    assert keys == ["model.hidden_sizes", "model.activation", "optimizer", "optimizer.lr", "optimizer.momentum"]


def test_a_sweep_on_the_command_line_adds_to_the_space_or_replaces_its_key() -> None:
    space = build_plan(["model.dropout=interval(0.0,0.5)", "model.activation=relu,gelu"]).space.describe()
    assert space["model.dropout"] == "0.0 to 0.5"
    assert space["model.activation"] == "choice(relu, gelu)"
    assert "optimizer.lr" in space


def test_a_plain_value_on_the_command_line_takes_its_key_out_of_the_space() -> None:
    study = build_plan(["optimizer.lr=0.02", "optimizer=sgd"])
    assert {"optimizer.lr", "optimizer"}.isdisjoint(study.space.describe())
    assert "optimizer.momentum" in study.space.describe()
    assert study.config({})["optimizer"]["lr"] == 0.02


def test_the_option_of_a_searched_config_group_has_its_own_keys() -> None:
    study = build_plan()
    sgd = study.config({"optimizer": "sgd", "optimizer.momentum": 0.5, "model.hidden_sizes": [8]})
    assert sgd["optimizer"]["_target_"] == "torch.optim.SGD"
    assert sgd["optimizer"]["momentum"] == 0.5
    assert sgd["model"]["hidden_sizes"] == [8]
    assert "momentum" not in study.config({"optimizer": "adam"})["optimizer"]


def test_interpolations_use_sampled_values() -> None:
    study = build_plan(["+model.width=${optimizer.lr}", "search=none", "optimizer.lr=interval(0,1)"])
    assert study.config({"optimizer.lr": 0.25})["model"]["width"] == 0.25


def test_all_mistakes_in_a_space_are_reported_at_once() -> None:
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
        "search.model.hidden_sizes: draws numbers, and the config holds [64]",
        "search.data.batch_size: draws floats, and the config holds 32; take int(interval(LOW, HIGH))",
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
    (problem,) = problems_of("search=odd", config_dir=tmp_path)
    assert problem.startswith("search.model.dropout.when: must name a key that is searched or fixed, got 'model.act")


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
        build_plan(["optimizer.lr=0.1,0.2"], searching=False)


def test_a_plan_survives_a_json_round_trip() -> None:
    study = build_plan(["model.hidden_sizes=[32],[64,64]"])
    assert Plan.from_json(json.loads(json.dumps(study.to_json()))) == study


def test_differences_are_keys_that_scores_depend_on() -> None:
    study = build_plan()
    assert build_plan(["study.trials=99", "slots=1", "scheduler=none", "home=/elsewhere"]).differences(study) == []
    differences = build_plan(
        ["data.split_seed=1", "study.metric=val/loss", "study.direction=minimize", "optimizer.lr=interval(0,1)"]
    ).differences(study)
    assert [d.split(":")[0] for d in differences] == [
        "study.metric",
        "study.direction",
        "data.split_seed",
        "search.optimizer.lr",
    ]


def test_a_change_in_a_searched_option_is_a_difference(tmp_path: Path) -> None:
    (tmp_path / "optimizer").mkdir()
    file = tmp_path / "optimizer" / "mine.yaml"
    made = []
    for decay in (0.0, 0.5):
        file.write_text(f"_target_: torch.optim.SGD\nlr: 0.1\nweight_decay: {decay}\n")
        made.append(build_plan(["optimizer=adam,mine", "search=none"], tmp_path))
    assert made[1].differences(made[0]) == ["[mine] optimizer.weight_decay: was 0.0, is 0.5"]


def test_a_condition_that_can_never_hold_is_a_mistake(tmp_path: Path) -> None:
    (tmp_path / "search").mkdir()
    (tmp_path / "search" / "odd.yaml").write_text(
        "optimizer: choice(adam, sgd)\noptimizer.momentum:\n  when: optimizer=sdg\n  draw: interval(0.0, 0.9)\n"
    )
    problems = problems_of("search=odd", config_dir=tmp_path)
    assert "optimizer is one of adam, adamw, sgd, and never 'sdg'" in problems[0]


def test_a_model_without_a_search_file_is_reported_with_the_remedy(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "mine.yaml").write_text("_target_: a.B\n")
    (problem,) = problems_of("model=mine", config_dir=tmp_path)
    assert problem == "search: there is no search/mine.yaml for model=mine; write one, or take search=none"


def test_the_seed_of_a_trial_depends_only_on_the_study_seed_and_its_number() -> None:
    one, two = build_plan(["seed=1"]), build_plan(["seed=1", "study.trials=5", "model.dropout=0.1"])
    assert [one.trial_seed(n) for n in range(5)] == [two.trial_seed(n) for n in range(5)]
    assert len({one.trial_seed(n) for n in range(500)}) == 500
    assert one.trial_seed(0) != build_plan(["seed=2"]).trial_seed(0)


def test_the_number_of_combinations_of_config_groups_is_limited(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    names = [f"m{i}" for i in range(70)]
    for name in names:
        (tmp_path / "model" / f"{name}.yaml").write_text("_target_: a.B\n")
    (problem,) = problems_of("search=none", f"model=m0,{','.join(names[1:])}", config_dir=tmp_path)
    assert "at most 64 combinations" in problem


def space_file(folder: Path, text: str, group: str = "search", name: str = "odd") -> Path:
    (folder / group).mkdir(exist_ok=True)
    (folder / group / f"{name}.yaml").write_text(text)
    return folder


def test_five_mistakes_in_one_space_are_five_problems(tmp_path: Path) -> None:
    folder = space_file(
        tmp_path,
        """
        optimizer: choice(adam, sdg)
        optimizer.lr: interval(0.1, 0.01)
        optimizer.momentum: {when: model.activation=relu, draw: "interval(0, 1)"}
        model.dropout: {type: float, low: 0.0}
        model.hidden_sizes: interval(1, 2)
        """,
    )
    assert problems_of("search=odd", config_dir=folder) == [
        "search.optimizer.lr: interval needs low < high, got 'interval(0.1, 0.01)'",
        "search.model.dropout: must be a distribution as Optuna writes it: FloatDistribution needs high; got "
        "{'type': 'float', 'low': 0.0}",
        "search.optimizer: must choose among adam, adamw, sgd, got 'sdg'",
        "search.optimizer.momentum.when: must name a key that is searched or fixed, got 'model.activation=relu'; "
        "search model.activation, fix it (model.activation: VALUE), or drop the `when`",
        "search.model.hidden_sizes: draws numbers, and the config holds [64], a list: take length with each, or "
        "choice([32], [64, 64]); got 1.0 to 2.0",
    ]


def test_a_space_may_fix_values_options_and_epochs(tmp_path: Path) -> None:
    folder = space_file(
        tmp_path,
        """
        optimizer: sgd
        optimizer.lr: 0.5
        optimizer.momentum: {when: optimizer=sgd, draw: "interval(0, 1)"}
        model.activation: tanh
        model.dropout: {when: model.activation=tanh, draw: "interval(0, 0.5)"}
        trainer.max_epochs: 7
        """,
    )
    study = build_plan(["search=odd"], folder)
    assert [*study.space.describe()] == ["optimizer.momentum", "model.dropout"]
    config = study.config({})
    assert (config["optimizer"]["_target_"], config["optimizer"]["lr"]) == ("torch.optim.SGD", 0.5)
    assert (config["model"]["activation"], study.settings.trainer.max_epochs) == ("tanh", 7)
    assert build_plan(["search=odd", "optimizer=adam", "optimizer.lr=0.1"], folder).config({})["optimizer"] == {
        "_target_": "torch.optim.Adam",
        "lr": 0.1,
        "weight_decay": 0.0,
        "fused": True,
    }


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("optimizer: sdg", "search.optimizer: must be one of adam, adamw, sgd, got 'sdg'"),
        ("model.dropout: much", "search.model.dropout: must be a number, got 'much'"),
        ("model.colour: red", "search.model.colour: no such key, got 'red'"),
        ("seed: 3", "search.seed: no such key, got 3"),
    ],
)
def test_a_wrong_fixed_value_is_a_mistake(tmp_path: Path, text: str, words: str) -> None:
    (problem,) = problems_of("search=odd", config_dir=space_file(tmp_path, text))
    assert problem.startswith(words)


def test_a_value_for_a_key_of_one_searched_option_applies_to_that_option() -> None:
    study = build_plan(["optimizer.momentum=0.5"])
    assert "optimizer.momentum" not in study.space.describe()
    assert study.config({"optimizer": "sgd"})["optimizer"]["momentum"] == 0.5
    assert "momentum" not in study.config({"optimizer": "adam"})["optimizer"]
    assert problems_of("optimizer.momentum=high") == ["optimizer.momentum: must be a number, got 'high'"]
    assert problems_of("optimizer=adam", "optimizer.momentum=0.5")[0].startswith("optimizer.momentum: no such key")


def test_a_sweep_keeps_the_condition_of_its_key_or_gets_one() -> None:
    swept = "optimizer.momentum=interval(0.5,0.9)"
    for line in ([swept], [swept, "search=none", "optimizer=adam,sgd"]):
        assert build_plan(line).space.describe()["optimizer.momentum"] == "0.5 to 0.9 when optimizer=sgd"


def test_searched_models_have_their_own_spaces(tmp_path: Path) -> None:
    space_file(tmp_path, "_target_: a.B\nwidth: 3\n", "model", "mine")
    space_file(
        tmp_path, "model.width: int(interval(1, 9))\noptimizer.lr: tag(log, interval(1e-4, 1e-1))\n", "search", "mine"
    )
    space = build_plan(["model=mlp,mine"], tmp_path).space.describe()
    assert space["model"] == "choice(mlp, mine)"
    assert space["model.width"] == "1 to 9 when model=mine"
    assert space["model.activation"].endswith("when model=mlp")
    assert space["optimizer.lr"] == "0.0001 to 0.1, log"
    assert space["optimizer.momentum"] == "0.0 to 0.99 when model=mlp and optimizer=sgd"


def test_options_can_draw_the_same_key_from_different_distributions(tmp_path: Path) -> None:
    folder = space_file(
        tmp_path,
        """
        optimizer:
          choice:
            adam: {optimizer.lr: "tag(log, interval(1e-5, 1e-2))"}
            sgd: {optimizer.lr: "tag(log, interval(1e-3, 1))", optimizer.momentum: "interval(0, 0.99)"}
        """,
    )
    study = build_plan(["search=odd"], folder)
    assert study.first_trial({}).point == {"optimizer": "adam", "optimizer.lr@adam": 0.001}
    params = {"optimizer": "sgd", "optimizer.lr": 0.5, "optimizer.momentum": 0.9}
    assert config_of_params(study, params)["optimizer"] == {
        "_target_": "torch.optim.SGD",
        "lr": 0.5,
        "momentum": 0.9,
        "weight_decay": 0.0,
        "fused": True,
    }
    fixed = build_plan(["search=odd", "optimizer=sgd"], folder).space.describe()
    assert fixed == {"optimizer.lr@sgd": "0.001 to 1.0, log", "optimizer.momentum": "0.0 to 0.99"}


def test_grid_needs_a_finite_space_and_cma_es_needs_numbers() -> None:
    (problem,) = problems_of("search=none", "sampler=grid", "optimizer.lr=interval(0.1,1)", "model.dropout=0.0,0.5")
    assert problem == (
        "search.optimizer.lr: sampler=grid needs a countable number of values, got 0.1 to 1.0; take "
        "range(LOW, HIGH, STEP) or choice(A, B), or another sampler"
    )
    (problem,) = problems_of("search=none", "sampler=cma_es", "model.activation=relu,tanh")
    assert problem.startswith("sampler: cma_es needs a number that every trial draws, got model.activation")


def test_all_mistakes_in_enqueue_are_reported() -> None:
    problems = problems_of(
        "study.enqueue=[{optimizer.lr:5},{model.activtion:relu},{optimizer.momentum:0.5},{model.hidden_sizes:[8,wide]}]",
        "study.trials=4",
    )
    assert [p.split(":")[0] for p in problems] == [
        "study.enqueue[0].optimizer.lr",
        "study.enqueue[1].model.activtion",
        "study.enqueue[2].optimizer.momentum",
        "study.enqueue[3].model.hidden_sizes",
        "study.enqueue",
    ]
    assert "did you mean model.activation?" in problems[1]
    assert "is drawn only when optimizer=sgd, which this entry does not have, got 0.5" in problems[2]
    assert "raise study.trials to 5" in problems[4]
    assert problems_of("study.enqueue=[3]")[0].startswith("study.enqueue: must be a list of mappings")


def test_a_pruner_that_could_never_prune_is_a_mistake() -> None:
    (problem,) = problems_of("scheduler=hyperband", "scheduler.min_epochs=50")
    assert problem.startswith("scheduler.min_epochs: must be at most trainer.max_epochs, which is 20, got 50")


def test_the_location_of_files_is_no_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    here, there = build_plan(["data=mnist", "data.root=/here"]), build_plan(["data=mnist", "data.root=/there"])
    assert there.differences(here) == []
    assert build_plan(["data=mnist", "data.split_seed=1"]).differences(here) == ["data.split_seed: was 0, is 1"]
    monkeypatch.setenv("OVERNIGHT_DATA", "/elsewhere")
    assert build_plan(["data=mnist"]).config({})["data"]["root"] == "/elsewhere"
    monkeypatch.delenv("OVERNIGHT_DATA")
    assert build_plan(["data=mnist"]).config({})["data"]["root"] == "./data"


def test_a_searched_schedule_composes_each_option_with_its_keys() -> None:
    study = build_plan(["data=mnist", "model=cnn"])
    targets = {variant["schedule"]["_target_"].rpartition(".")[2] for variant in study.variants.values()}
    assert targets == {"constant", "cosine", "one_cycle"}
    assert study.config({"schedule": "one_cycle"})["schedule"]["warmup"] == 0.3


EPOCHS_RULE = "must be at least 1, or -1 for no limit where trainer.max_steps or trainer.max_time is one"
ANOTHER_LIMIT = (
    "must have another limit beside it where it is -1; add trainer.max_steps=N or trainer.max_time=DD:HH:MM:SS"
)


@pytest.mark.parametrize(
    ("override", "problems"),
    [
        ("trainer.gradient_clip_val=null,0,-1", ["must be positive, got 0.0", "must be positive, got -1.0"]),
        ("trainer.gradient_clip_val=interval(-1.0,2.0)", ["must be positive, got -1.0"]),
        ("trainer.max_epochs=0,5,-1", [f"{EPOCHS_RULE}, got 0", ANOTHER_LIMIT]),
        ("trainer.max_epochs=range(-4,10,2)", [f"{EPOCHS_RULE}, got -4"]),
        ("trainer.max_epochs=2.5,3,null", ["must be a whole number, got 2.5", "must be a whole number, got None"]),
    ],
)
def test_the_rule_of_a_setting_holds_for_every_value_that_is_searched(override: str, problems: list[str]) -> None:
    key = override.partition("=")[0]
    found = problems_of(override, "search=none", "study.trials=0")
    assert found == ["study.trials: must be at least 1, got 0", *(f"{key}: {p}" for p in problems)]


def test_a_rule_between_two_settings_holds_for_every_value_that_is_searched() -> None:
    assert problems_of("trainer.max_epochs=2,50", "search=none", "scheduler=hyperband", "scheduler.min_epochs=5") == [
        "scheduler.min_epochs: must be at most trainer.max_epochs, which is 2, got 5; lower it, or train longer"
    ]


DRAFT = compose(["search=none"])
VARIANTS = {(): DRAFT.variant({})}
epochs = st.one_of(st.integers(-3, 5), st.floats(-2, 3), st.none(), st.booleans())


@given(st.sampled_from(["max_epochs", "gradient_clip_val"]), st.lists(epochs, min_size=2, max_size=5, unique_by=str))
@settings(max_examples=80, deadline=None)
def test_a_choice_is_refused_exactly_if_one_of_its_values_is_refused_when_it_is_fixed(
    name: str, options: list[Any]
) -> None:
    space = SearchSpace((choice(f"trainer.{name}", options),))
    problems = Problems()
    validation.check_keys(space, (), DRAFT.choices, VARIANTS, DRAFT, (), problems)
    refused = []
    for option in options:
        fixed = Problems()
        build_settings({**DRAFT.config, "trainer": {**DRAFT.config["trainer"], name: option}}, DRAFT.choices, fixed)
        refused += fixed
    assert bool(problems) == bool(refused)
    if not problems[:1] or not problems[0].startswith("search."):  # else a value is of another type than the key's
        assert list(problems) == refused


def test_a_searched_key_that_no_command_can_name_is_a_mistake(tmp_path: Path) -> None:
    space_file(tmp_path, "_target_: a.B\n'a b': 1\nc@d: 1\n", "model", "mine")
    folder = space_file(tmp_path, "'model.a b': choice(1, 2)\nmodel.c@d: choice(1, 2)\n", "search", "mine")
    found = problems_of("model=mine", config_dir=folder)
    assert [p.partition(":")[0] for p in found] == ["search.model.a b", "search.model.c@d"]
    assert all("must be a key that a command can name" in p for p in found)
