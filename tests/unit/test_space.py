"""Hydra's sweep grammar, read into what Optuna draws."""

from __future__ import annotations

import json
import random
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution, distribution_to_json

from overnight.config.problems import Problems
from overnight.config.trees import look_up
from overnight.config.values import to_text
from overnight.search.build_plan import build_plan
from overnight.search.distributions import random_value
from overnight.search.plan import Plan, config_of_params
from overnight.search.space import SearchSpace, display_name
from overnight.search.space_reader import parse_space


def without_baseline(key: str, _: Any) -> Any:
    raise KeyError(key)


def space_of(**entries: Any) -> SearchSpace:
    problems = Problems()
    space, _ = parse_space({k.replace("__", "."): v for k, v in entries.items()}, problems)
    assert not problems
    return space


@pytest.mark.parametrize(
    ("text", "distribution"),
    [
        ("interval(0, 1)", FloatDistribution(0.0, 1.0)),
        ("int(interval(1, 8))", IntDistribution(1, 8)),
        ("tag(log, interval(1e-4, 1e-1))", FloatDistribution(1e-4, 1e-1, log=True)),
        ("tag(log, int(interval(16, 512)))", IntDistribution(16, 512, log=True)),
        ("range(32, 257, 32)", IntDistribution(32, 256, step=32)),
        ("range(0.0, 0.5, 0.1)", FloatDistribution(0.0, 0.4, step=0.1)),
        ("choice(relu, tanh)", CategoricalDistribution(("relu", "tanh"))),
        ("relu,tanh", CategoricalDistribution(("relu", "tanh"))),
        ("1, 2.5, true, null", CategoricalDistribution(("1", "2.5", "true", "null"))),
        ("choice(null, 0.1)", CategoricalDistribution(("null", "0.1"))),
        ("choice([1, 2], [3])", CategoricalDistribution(("[1,2]", "[3]"))),
        (" interval(0, 1) ", FloatDistribution(0.0, 1.0)),
        ("'a b','c'", CategoricalDistribution(('"a b"', "c"))),
    ],
)
def test_texts_in_the_grammar_of_hydra_become_distributions(text: str, distribution: object) -> None:
    assert space_of(x=text).parameters[0].each == distribution


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ("interval(0.1, 0.01)", "interval needs low < high, got 'interval(0.1, 0.01)'"),
        ("tag(log, interval(0, 1))", "a logarithmic interval needs low > 0"),
        ("tag(log, choice(1, 2))", "log has no meaning for a choice"),
        ("tag(log, range(1, 9, 2))", "a range has steps and can't be logarithmic"),
        ("tag(square, interval(1, 2))", "the only tag is log"),
        ("range(1, 2)", "needs two values or more"),
        ("shuffle(choice(a, b))", "shuffle has no meaning here"),
        ("choice(a, a)", "choices must differ"),
        ("interval(1, inf)", "two finite ends"),
        ("interval(1", "must be in Hydra's sweep grammar"),
        ({"when": "a=b"}, "takes a draw such as interval(0, 1), a value, or a mapping"),
        ({"draw": "interval(0, 1)", "wenn": "a=b"}, "takes a draw such as interval(0, 1), a value, or a mapping"),
        ({"draw": "interval(0, 1)", "when": "a"}, "must be KEY=VALUE"),
        ({"draw": "interval(0, 1)", "when": "a=interval(0, 1)"}, "must be KEY=VALUE"),
        ({"draw": "interval(0, 1)", "when": "a=range(0, 1e30)"}, "must be KEY=VALUE"),
        ({"draw": "interval(0, 1)", "when": "a=glob(*)"}, "must be KEY=VALUE"),
        ({"length": "int(interval(0, 3))", "each": "interval(0, 1)"}, "length must be whole numbers from 1 up"),
        ({"length": True, "each": "interval(0, 1)"}, "length must be whole numbers from 1 up"),
        ("[int(interval(16, 64)), 32]", "a draw can't be an entry of a list"),
        ("{a: interval(0, 1)}", "a draw can't be an entry of a list"),
        ("interval(0, 1), 2", "a draw can't be an entry of a list, a mapping or a choice"),
        (["int(interval(16, 64))", 32], "a draw can't be an entry of a list"),
        ({"length": "interval(1, 3)", "each": "interval(0, 1)"}, "length must be whole numbers from 1 up"),
    ],
)
def test_a_mistake_names_key_value_and_rule(entry: object, words: str) -> None:
    problems = Problems()
    parse_space({"model.x": entry}, problems)
    assert len(problems) == 1
    assert problems[0].startswith("search.model.x")
    assert words in problems[0]


@pytest.mark.parametrize(
    ("entry", "distribution"),
    [
        (json.loads(distribution_to_json(FloatDistribution(1e-4, 0.1, log=True))), FloatDistribution(1e-4, 0.1, True)),
        (distribution_to_json(IntDistribution(1, 9, step=2)), IntDistribution(1, 9, step=2)),
        ({"type": "float", "low": 0, "high": 1}, FloatDistribution(0.0, 1.0)),
        ({"type": "int", "low": 16, "high": 256, "log": True}, IntDistribution(16, 256, log=True)),
        ({"name": "FloatDistribution", "low": 0.0, "high": 0.5, "step": 0.1}, FloatDistribution(0.0, 0.5, step=0.1)),
        ({"type": "categorical", "choices": ["a", 1, None]}, CategoricalDistribution(("a", "1", "null"))),
        ({"draw": {"type": "int", "low": 1, "high": 3}, "when": "x=1"}, IntDistribution(1, 3)),
        ({"type": "int", "low": 1, "high": 3, "when": "x=1"}, IntDistribution(1, 3)),
    ],
)
def test_an_optuna_distribution_may_be_pasted(entry: Any, distribution: object) -> None:
    (parameter,) = space_of(y=entry).parameters
    assert parameter.each == distribution
    assert [str(c) for c in parameter.when] == (["x=1"] if "when" in entry and isinstance(entry, dict) else [])


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ({"type": "float", "low": 1}, "FloatDistribution needs high; got {'type': 'float', 'low': 1}"),
        ({"type": "float", "low": 2, "high": 1}, "`low <= high` must hold"),
        ({"type": "int", "low": 1.5, "high": 3}, "needs whole numbers, not 1.5"),
        ({"type": "float", "low": 0, "high": 1, "log": "yes"}, "log must be true or false, not 'yes'"),
        ({"type": "float", "low": 0, "high": 1, "log": True}, "must hold"),
        ({"type": "float", "low": 0, "high": 1, "lgo": True}, "FloatDistribution takes low, high, log, step"),
        ({"name": "Normal", "attributes": {}}, "there are FloatDistribution, IntDistribution, CategoricalDistribution"),
        ({"type": "categorical", "choices": "ab"}, "choices must be a list"),
        ({"choice": ["a", "b"]}, "choice takes a mapping from option to the space that it brings"),
        ({"choice": {"a": {"y": "interval(2, 1)"}}}, "interval needs low < high"),
    ],
)
def test_a_mistake_in_a_mapping_names_the_rule(entry: Any, words: str) -> None:
    problems = Problems()
    parse_space({"x": entry}, problems)
    assert len(problems) == 1
    assert words in problems[0]


def test_an_option_of_a_choice_can_have_its_own_space() -> None:
    both = "choice(1, 2)"
    space = space_of(
        optimizer={
            "choice": {
                "adam": {"lr": "interval(0, 1)", "batch": both},
                "sgd": {"lr": "interval(0, 2)", "batch": both, "nesterov": True, "momentum": "interval(0, 1)"},
            }
        }
    )
    assert space.describe() == {
        "optimizer": "choice(adam, sgd)",
        "lr@adam": "0.0 to 1.0 when optimizer=adam",
        "batch": "choice(1, 2)",
        "lr@sgd": "0.0 to 2.0 when optimizer=sgd",
        "nesterov": "choice(true) when optimizer=sgd",
        "momentum": "0.0 to 1.0 when optimizer=sgd",
    }
    sampled = {"optimizer": "sgd", "batch": "1", "lr@sgd": 1.5, "nesterov": "true", "momentum": 0.5}
    values = space.draw(lambda name, _: sampled[name], without_baseline)
    assert values == {"optimizer": "sgd", "batch": 1, "lr": 1.5, "nesterov": True, "momentum": 0.5}


def test_two_draws_of_a_key_must_exclude_each_other() -> None:
    problems = Problems()
    parse_space({"lr": "interval(0, 1)", "opt": {"choice": {"a": {"lr": "interval(0, 2)"}, "b": None}}}, problems)
    assert "search.lr: must be given once, or in options that exclude one another" in problems[0]


def test_all_conditions_of_a_list_must_hold() -> None:
    space = space_of(a="choice(x, y)", b="choice(1, 2)", c={"when": ["a=x", "b=1,3"], "draw": "choice(7, 8)"})
    assert "c" in space.draw(lambda n, _: {"a": "x", "b": "1", "c": "7"}[n], without_baseline)
    assert "c" not in space.draw(lambda n, _: {"a": "x", "b": "2"}[n], without_baseline)


def test_the_size_of_a_space_takes_conditions_into_account() -> None:
    space = space_of(
        a="choice(x, y, z)",
        b={"when": "a=x", "draw": "choice(1, 2)"},
        c={"when": "b=1", "draw": "int(interval(1, 5))"},
        d="choice(p, q)",
    )
    assert space.size(without_baseline) == ((5 + 1) + 1 + 1) * 2
    with_float = space_of(a="choice(x, y)", b={"when": "a=x", "draw": "interval(0, 1)"})
    assert with_float.size(without_baseline) == float("inf")


def test_conditions_that_form_a_circle_are_a_mistake() -> None:
    problems = Problems()
    parse_space({"a": {"when": "b=1", "draw": "choice(1,2)"}, "b": {"when": "a=1", "draw": "choice(1,2)"}}, problems)
    assert "must not form a circle" in problems[0]


def test_the_key_of_a_condition_is_drawn_first_in_any_order_of_entries() -> None:
    space = space_of(late={"when": "early=b", "draw": "interval(0, 1)"}, early="choice(a, b)")
    assert [p.key for p in space.parameters] == ["early", "late"]
    assert space.draw(lambda n, _: {"early": "a"}[n], without_baseline) == {"early": "a"}
    assert space.draw(lambda n, _: {"early": "b", "late": 0.5}[n], without_baseline) == {"early": "b", "late": 0.5}


def test_a_list_is_drawn_entry_by_entry_under_stable_names() -> None:
    space = space_of(sizes={"length": "int(interval(1, 3))", "each": "int(interval(1, 9))"})
    sampled = {"sizes.length": 2, "sizes.0": 7, "sizes.1": 3}
    assert space.draw(lambda n, _: sampled[n], without_baseline) == {"sizes": [7, 3]}
    assert list(space.names()) == ["sizes.length", "sizes.0", "sizes.1", "sizes.2"]
    assert space.size(without_baseline) == 9 + 81 + 729


def test_choices_among_lists_are_drawn_as_lists() -> None:
    space = space_of(sizes="[32],[64,64]")
    assert space.draw(lambda _, dist: dist.choices[1], without_baseline) == {"sizes": [64, 64]}  # type: ignore[attr-defined]


def test_find_returns_the_point_and_the_keys_outside_the_space() -> None:
    space = space_of(
        a="interval(0, 1)",
        b="choice(x, y)",
        c={"length": "int(interval(1, 2))", "each": "choice(1, 2)"},
        d={"when": "b=x", "draw": "interval(0, 1)"},
        e="interval(0, 1)",
    )
    baseline = {"a": 5.0, "b": "y", "c": [2], "d": 0.5}
    values, point, outside = space.find(lambda key, _: baseline[key])
    assert values == {"a": 5.0, "b": "y", "c": [2]}
    assert point == {"b": "y", "c.length": 1, "c.0": "2"}
    assert outside == ("a",)


def test_a_plain_value_in_the_space_is_fixed() -> None:
    space, fixed = parse_space({"a": 3, "b": "relu", "c": [1, 2]}, Problems())
    assert space.parameters == ()
    assert fixed == {"a": 3, "b": "relu", "c": [1, 2]}


@pytest.mark.parametrize(
    ("old", "new", "covers"),
    [
        ("interval(0, 1)", "interval(-1, 2)", True),
        ("interval(0, 1)", "interval(0.5, 2)", False),
        ("interval(0, 1)", "int(interval(0, 1))", False),
        ("choice(a, b)", "choice(c, b, a)", True),
        ("choice(a, b)", "choice(a, c)", False),
        ("int(interval(1, 3))", "tag(log, int(interval(1, 9)))", True),
        ("range(0, 9, 2)", "range(0, 19, 2)", True),
        ("range(0, 9, 2)", "range(1, 19, 2)", False),
        ("range(0, 9, 2)", "int(interval(0, 9))", True),
    ],
)
def test_a_space_covers_another_only_if_it_contains_every_value(old: str, new: str, covers: bool) -> None:
    assert (space_of(x=new).not_covered(space_of(x=old)) == []) is covers


@pytest.mark.parametrize(
    ("text", "held"),
    [
        ("range(0, 1, 0.3)", [0.0, 0.3, 0.6, 0.9]),
        ("range(0.1, 0.8, 0.1)", [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7]),
        ("range(1, 2.2, 0.4)", [1.0, 1.4, 1.8]),
        ("range(-0.3, 0.31, 0.3)", [-0.3, 0.0, 0.3]),
        ("range(1e-3, 4e-3, 1e-3)", [0.001, 0.002, 0.003]),
        ("range(2, 11, 3)", [2, 5, 8]),
    ],
)
def test_a_range_holds_the_decimals_that_it_names(text: str, held: list[float]) -> None:
    assert values_of_range(text) == held


@given(
    st.integers(-50, 50), st.integers(1, 40), st.integers(2, 12), st.integers(0, 39), st.integers(0, 4), st.booleans()
)  # fmt: skip
@settings(max_examples=200, deadline=None)
def test_a_range_of_decimals_ends_before_its_stop(
    start: int, step: int, count: int, more: int, places: int, as_integers: bool
) -> None:
    unit = Decimal(1).scaleb(-places)
    stop = start + (count - 1) * step + 1 + more % step  # in units: the last value lies at most one step below it
    held = [(start + i * step) * unit for i in range(count)]
    texts = [
        str(n * unit) if not (as_integers and n * unit % 1 == 0) else str(int(n * unit)) for n in (start, stop, step)
    ]
    assert values_of_range(f"range({','.join(texts)})") == [float(v) for v in held]


def values_of_range(text: str) -> list[float]:
    """What a search over a range can train with: the steps as Optuna computes them, decoded."""
    space = space_of(x=text)
    (parameter,) = space.parameters
    dist: Any = parameter.each
    decoded = [space.decode({"x": dist.low + n * dist.step})["x"] for n in range(int(parameter.size()))]
    assert all(map(parameter.holds, decoded))
    assert not parameter.holds(dist.low + parameter.size() * dist.step)
    rng = random.Random(0)
    assert {space.draw(lambda _, dist: random_value(dist, rng), without_baseline)["x"] for _ in range(9)} <= {*decoded}
    return decoded


numbers = st.floats(-1e6, 1e6, allow_nan=False).map(lambda x: round(x, 3))


@st.composite
def entries(draw: st.DrawFn) -> tuple[str, Any]:
    """A valid search entry for some key of the default model's config, in the grammar."""
    kind = draw(st.sampled_from(["dropout", "activation", "hidden_sizes", "list_choice", "lr"]))
    if kind == "dropout":
        low, high = sorted(draw(st.lists(numbers, min_size=2, max_size=2, unique=True)))
        return "model.dropout", f"interval({low}, {high})"
    if kind == "lr":
        low = draw(st.floats(1e-8, 1e-2))
        return "optimizer.lr", f"tag(log, interval({low}, {low * draw(st.floats(1.5, 1e4))}))"
    if kind == "activation":
        options = draw(st.lists(st.sampled_from(["relu", "tanh", "gelu", "mish"]), min_size=1, unique=True))
        return "model.activation", f"choice({', '.join(options)})"
    if kind == "list_choice":
        lists = draw(st.lists(st.lists(st.integers(1, 99), max_size=3), min_size=1, max_size=4, unique_by=str))
        return "model.hidden_sizes", f"choice({', '.join(str(x) for x in lists)})"
    low, longest = draw(st.integers(1, 50)), draw(st.integers(2, 4))
    high = low + draw(st.integers(1, 500))
    each = draw(st.sampled_from([f"int(interval({low}, {high}))", f"tag(log, int(interval({low}, {high})))"]))
    return "model.hidden_sizes", {"length": f"int(interval(1, {longest}))", "each": each}


ADAM = {"optimizer.lr": "tag(log, interval(1e-5, 1e-1))", "optimizer.weight_decay": "choice(0.0, 0.1)"}
SGD = {"optimizer.lr": "interval(0.01, 1)", "optimizer.momentum": {"type": "float", "low": 0, "high": 0.99}}
BASE = build_plan(["search=none", "optimizer=adam,sgd", "+model.width=null"])


@given(st.lists(entries(), max_size=4, unique_by=lambda e: e[0]), st.booleans(), st.integers(0, 2**32))
@settings(max_examples=60, deadline=None)
def test_every_point_composes_is_inside_its_distributions_and_is_read_back_from_mlflow(
    generated: list[tuple[str, Any]], both: bool, seed: int
) -> None:
    entries_of_space = {k: v for k, v in generated if not (both and k == "optimizer.lr")}
    if both:
        entries_of_space["optimizer"] = {"choice": {"adam": ADAM, "sgd": SGD}}
        entries_of_space["model.width"] = {"when": ["optimizer=sgd"], "draw": "null,true,7,seven,0.5,[1,2]"}
    problems = Problems()
    space, _ = parse_space(entries_of_space, problems)
    assert not problems
    study = Plan(BASE.settings, space, BASE.groups, BASE.choices, BASE.variants)
    rng, params = random.Random(seed), {}

    def draw(name: str, dist: Any) -> Any:
        stored = random_value(dist, rng)
        assert dist._contains(dist.to_internal_repr(stored))
        params.update(space.decode({name: stored}))
        return stored

    values = space.draw(draw, study.baseline)
    config = study.config(values)
    optimizer = values.pop("optimizer", "adam")
    assert config["optimizer"]["_target_"] == f"torch.optim.{ {'adam': 'Adam', 'sgd': 'SGD'}[optimizer] }"
    for key, value in values.items():
        assert look_up(config, key) == value
    assert config_of_params(study, params) == config

    texts = {display_name(name): to_text(value) for name, value in params.items()}  # as tracking writes them
    assert config_of_params(study, space.read(texts)) == config
    restored = SearchSpace.from_json(json.loads(json.dumps(space.to_json())))
    assert restored == space


def test_a_condition_may_name_a_list() -> None:
    space = space_of(hidden="choice([32], [64])", dropout={"when": "hidden=[32]", "draw": "interval(0, 1)"})
    assert [str(c) for p in space.parameters for c in p.when] == ["hidden=[32]"]


def test_conditions_that_differ_in_type_are_a_change_of_the_space() -> None:
    number, boolean = (
        space_of(a="choice(1, true)", b={"when": f"a={v}", "draw": "interval(0, 1)"}) for v in ("1", "true")
    )
    assert boolean.not_covered(number) == ["b: 0.0 to 1.0 when a=1 became 0.0 to 1.0 when a=true"]
