"""Overrides are composed and checked, and every mistake is reported at once."""

from __future__ import annotations

from pathlib import Path

import pytest
from omegaconf import OmegaConf

from overnight.config.compose import compose
from overnight.config.problems import ConfigError
from overnight.config.search_path import ConfigSearchPath
from overnight.config.settings import from_json, to_json
from overnight.config.trees import to_yaml, type_problem
from overnight.search.build_plan import build_plan


def test_a_config_file_that_changes_is_read_again(tmp_path: Path) -> None:
    file = tmp_path / "conf" / "model" / "mine.yaml"
    file.parent.mkdir(parents=True)
    widths = []
    for width in (8, 9):
        file.write_text(f"_target_: somewhere.Net\nwidth: {width}\n")
        composed = ConfigSearchPath((tmp_path / "conf",)).compose(["model=mine", "search=none"])
        widths.append(composed.config.model.width)
        composed.config.model.width = 99  # a change of one composition is none of the next
    assert widths == [8, 9]


@pytest.mark.parametrize("name", ["scheduler" * 60, "..", "", "/", "a\0b", "nothing"])
def test_a_name_that_is_no_config_group_has_no_options(name: str) -> None:
    assert ConfigSearchPath().options(name) == []


@pytest.mark.parametrize("override", [f"{'x' * 300}=1", f"~{'x' * 300}", f"{'x' * 300}.y=1", f"+model/{'x' * 300}=1"])
def test_a_key_that_is_too_long_for_a_file_is_no_such_key(override: str) -> None:
    assert "no such key" in str(compose([override]).problems)


@pytest.mark.parametrize("value", ["[16,choice(32,64)]", "[int(interval(16,64)),32]", "{a: interval(0,1)}"])
def test_a_draw_within_a_value_is_refused_with_a_remedy(value: str) -> None:
    (problem,) = compose([f"model.hidden_sizes={value}"]).problems
    assert problem.startswith(f"model.hidden_sizes={value}: a draw can't be an entry of a list")


def test_the_defaults_compose_without_a_problem() -> None:
    draft = compose([])
    assert not draft.problems
    assert draft.settings is not None
    assert draft.settings.study_name == "digits-mlp"


@pytest.mark.parametrize(
    ("overrides", "metric", "direction"),
    [
        ([], "val/accuracy", "maximize"),
        (["data=purchase"], "val/accuracy", "maximize"),
        (["data=diabetes"], "val/r2", "maximize"),
        (["~data.task"], "val/accuracy", "maximize"),
        (["study.metric=val/loss"], "val/loss", "minimize"),
        (["study.metric=val_rmse"], "val_rmse", "minimize"),
        (["data=diabetes", "study.metric=val/mae"], "val/mae", "minimize"),
        (["study.metric=val/auroc"], "val/auroc", "maximize"),
        (["study.metric=val/score", "study.direction=minimize"], "val/score", "minimize"),
        (["study.metric=val/loss", "study.direction=maximize"], "val/loss", "maximize"),
    ],
)
def test_metric_and_direction_default_to_those_of_the_task(overrides: list[str], metric: str, direction: str) -> None:
    draft = compose(overrides)
    assert not draft.problems
    assert draft.settings is not None
    assert (draft.settings.study.metric, draft.settings.study.direction) == (metric, direction)


def test_all_mistakes_are_reported_at_once_with_the_nearest_key() -> None:
    problems = compose(["model.hiden_sizes=3", "optimizer.lr=fast", "study.trials=-1"]).problems
    assert len(problems) == 3
    assert problems[0].startswith("model.hiden_sizes: no such key; did you mean model.hidden_sizes?")
    assert problems[1] == "optimizer.lr: must be a number, got 'fast'"
    assert problems[2] == "study.trials: must be at least 1, got -1"


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("study.direction=upwards", "study.direction: must be one of maximize, minimize, got 'upwards'"),
        ("study.metric=val/score", "study.direction: must be given where the metric's name does not tell which way"),
        ("data.task=ranking", "data.task: must be one of binary, multiclass, regression, got 'ranking'"),
        ("study.name=a/b", "study.name: must be 1 to 100 letters"),
        ("study.trials=2.5", "study.trials: must be a whole number, got 2.5"),
        ("study.trials=true", "study.trials: must be a whole number, got True"),
        ("seed=-1", "seed: must be from 0 to 4294967295, got -1"),
        ("checkpoint.every_s=nan", "checkpoint.every_s: must be finite, got nan"),
        ("model=cmm", "model: must be one of cnn, mlp, got 'cmm'"),
        ("sampler.name=tpee", "did you mean tpe?"),
        ("model.hidden_sizes=32", "model.hidden_sizes: must be a list, got 32"),
        ("model.dropout=[1]", "model.dropout: must be a number, got [1]"),
        (
            "search.model.dropout=interval(0,1)",
            "only keys of data, model, optimizer, schedule, callbacks, trainer can be searched",
        ),
        ("search.model.dropout=1", "sweep the key itself"),
        ("study.trials=1,2", "can be searched, got a sweep"),
        ("nonsense", "nonsense: must be KEY=VALUE, and has no '='"),
        ("20", "20: must be KEY=VALUE, and has no '='"),
        ("model.dropout=tag(log", "must be KEY=VALUE in Hydra's grammar"),
        ("trials=5", "trials: no such key; did you mean study.trials?"),
        ("lr=0.1", "lr: no such key; did you mean optimizer.lr?"),
        ("model.dropout=chioce(0,1)", "Unknown function 'chioce'"),
        ("tracking.uri=mlruns", "must be a sqlite, postgresql or http address"),
        ("~model._target_", "model: must be a mapping with a _target_"),
        ("model.channels=[8]", "model.channels: no such key with the model that is chosen; it is one of model=cnn"),
        (
            "scheduler.reduction_factor=2",
            "scheduler.reduction_factor: no such key with the scheduler that is chosen; it is one of "
            "scheduler=hyperband",
        ),
    ],
)
def test_a_mistake_names_key_value_and_rule(override: str, words: str) -> None:
    problems = compose([override]).problems
    assert any(words in p for p in problems), problems


def test_an_integer_can_replace_a_float_and_a_float_an_integer() -> None:
    assert not compose(["optimizer.lr=1", "model.dropout=0"]).problems
    assert type_problem(1, 0.5) is None
    assert type_problem(True, 1) is not None
    assert type_problem(1, True) is not None


def test_a_config_dir_adds_options(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "mine.yaml").write_text("_target_: mine.Net\nwidth: 3\n")
    (tmp_path / "search").mkdir()
    (tmp_path / "search" / "mine.yaml").write_text("model.width: int(interval(1, 9))\n")
    draft = compose(["model=mine"], tmp_path)
    assert not draft.problems
    assert draft.config["model"] == {"_target_": "mine.Net", "width": 3}
    assert draft.settings is not None
    assert draft.settings.study_name == "digits-mine"


def test_a_file_in_the_config_dir_with_the_name_of_a_shipped_one_is_a_mistake(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "mlp.yaml").write_text("_target_: mine.Net\n")
    (problem,) = compose([], tmp_path).problems
    assert "model/mlp.yaml has the name of a file that comes with overnight" in problem


def test_a_missing_config_dir_is_a_mistake(tmp_path: Path) -> None:
    assert "must be a folder" in compose([], tmp_path / "absent").problems[0]


def test_settings_survive_a_json_round_trip() -> None:
    before = compose(["slots=3"]).settings
    assert before is not None
    assert from_json(to_json(before)) == before


def test_unknown_keys_in_stored_settings_are_named() -> None:
    old = to_json(compose([]).settings)  # type: ignore[arg-type]
    old["study"]["colour"] = "red"
    with pytest.raises(ConfigError, match=r"study\.colour: no such key"):
        from_json(old)


def test_a_new_key_can_be_passed_to_a_component() -> None:
    assert compose(["+model.width=3"]).config["model"]["width"] == 3


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("~optimizer", "optimizer: can't be taken out; choose one of adam, adamw, sgd"),
        ("model=null", "model: must be one of cnn, mlp, got None"),
        ("+optimizer=sgd", "optimizer: is chosen already; write optimizer=sgd without the +"),
        ("+experiment=nope", "experiment: must be one of "),
        ("~study.nmae", "study.nmae: no such key; did you mean study.name?"),
        ("model.dropout=", "model.dropout: must be a number, got ''"),
        ("+study.colour=red", "study.colour: no such key"),
        ("optimizer.lr='interval(1,2'", "optimizer.lr: must be a number"),
        ("optimizer.lr=glob(*)", "must be an interval, a range or a choice"),
        ("study.name=train", "study.name: train is where `overnight train` keeps its trials"),
        (
            "search.model.dropout=0,1",
            "only keys of data, model, optimizer, schedule, callbacks, trainer can be searched",
        ),
        ("model.dropout=${nope.nope}", "Interpolation key 'nope.nope' not found"),
    ],
)
def test_each_wrong_override_is_reported_once(override: str, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        build_plan([override])
    assert len(caught.value.problems) == 1, caught.value.problems
    assert words in caught.value.problems[0]


@pytest.mark.parametrize(
    "text",
    ["1e-3", "1E5", "+1", "1.", "inf", "nan", "0x1f", "1_000", "1:20", "yes", "null", "~", "", "2026-11-26", "a: b",
     "#", "two\nlines", "\u00e4\u00f6", "'", "- x", "[1]"],
)  # fmt: skip
def test_yaml_that_we_write_is_read_back_unchanged_by_hydra(text: str) -> None:
    tree = {"text": text, text or "empty": [text, {"n": None}], "numbers": [1e-5, 1e20, 3, True]}
    assert OmegaConf.to_container(OmegaConf.create(to_yaml(tree))) == tree
