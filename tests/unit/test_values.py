"""Values of a configuration keep type and value as JSON, as text, in a command, as YAML and under OmegaConf."""

from __future__ import annotations

import io
import itertools
import json
import math
import subprocess
from typing import Any

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from overnight.cli.output import best_object
from overnight.config import shell
from overnight.config.problems import Problems
from overnight.config.trees import flatten, is_dotted, to_yaml
from overnight.config.values import (
    dumps,
    escaped,
    fingerprint,
    from_json,
    from_text,
    is_typable,
    json_or_text,
    loads,
    same,
    short_text,
    to_json,
    to_text,
)
from overnight.search.distributions import encode
from overnight.search.record import TrialRecord
from overnight.search.space_reader import parse_space
from support.yaml_values import HOSTILE, texts, values

ALIKE: tuple[Any, ...] = (
    False,
    0,
    0.0,
    True,
    1,
    1.0,
    None,
    "1",
    "true",
    "null",
    "",
    [1],
    [1.0],
    {0: 1},
    {"0": 1},
    b"1",
)


@given(values)
@settings(max_examples=150, deadline=None)
@example({"$items": 1})
@example({"$float": {"$bytes": 0}})
@example({1: {"$items": []}, "1": float("nan"), 0.5: b"\xff"})
def test_every_value_survives_json(value: Any) -> None:
    assert same(loads(dumps(value)), value)
    assert same(from_json(json.loads(json.dumps(to_json(value), allow_nan=False))), value)


@given(values)
@settings(max_examples=150, deadline=None)
def test_hydra_reads_the_text_of_every_value_that_a_command_can_hold(value: Any) -> None:
    if is_typable(value):
        assert same(from_text(to_text(value)), value)


def test_only_bytes_and_some_keys_are_no_values_of_a_command() -> None:
    assert all(map(is_typable, HOSTILE))
    assert is_typable({0: 1.0, -1: None, 0.5: [{}], True: "x", "a b=(c)": HOSTILE})
    assert not any(map(is_typable, ({"0": 1}, {"null": 1}, {"it's": 1}, {"ü": 1}, b"x", [[{"": 1}]], "a\0b")))


def test_values_that_python_takes_for_equal_are_not_the_same() -> None:
    assert len({fingerprint(v) for v in ALIKE}) == len({to_text(v) for v in ALIKE}) == len(ALIKE)
    assert not any(same(a, b) for a, b in itertools.combinations(ALIKE, 2))
    assert same({"a": 1, "b": float("nan")}, {"b": float("nan"), "a": 1})


@given(st.lists(values.filter(is_typable), min_size=2, max_size=4, unique_by=fingerprint))
@settings(max_examples=40, deadline=None)
@example(list(HOSTILE))
@example([v for v in ALIKE if is_typable(v)])
def test_choices_survive_bash_and_hydra(options: list[Any]) -> None:
    """The search of a pasted line has the same choices, and Optuna tells all of them apart."""
    line = shell.join(["overnight", f"model.note={','.join(map(to_text, options))}"])
    assert line.isprintable() or not line.isascii(), "a table would show control characters as blanks"
    pasted = subprocess.run(
        ["bash", "-c", f'overnight() {{ printf "%s" "$1"; }}; {line}'], capture_output=True, check=True
    ).stdout.decode()
    problems = Problems()
    space, _ = parse_space({}, problems, sweeps={"model.note": pasted.removeprefix("model.note=")})
    assert problems == []
    (parameter,) = space.parameters
    assert same(parameter.options, options)
    assert len(set(parameter.each.choices)) == len(options)  # type: ignore[attr-defined]
    for i, option in enumerate(options):
        stored = encode(parameter.each, parameter.options, option)
        assert stored == parameter.each.choices[i]  # type: ignore[attr-defined]
        assert same(space.decode({"model.note": stored}), {"model.note": option})
        assert same(space.read({"model.note": to_text(option)}), {"model.note": option}), "as MLflow has it"


@given(st.dictionaries(texts, values, max_size=3))
@settings(max_examples=100, deadline=None)
def test_hydra_reads_the_same_tree_from_our_yaml(tree: dict[str, Any]) -> None:
    read = OmegaConf.load(io.StringIO(to_yaml({"node": escaped(tree)})))
    assert same(OmegaConf.to_container(read, resolve=True), {"node": tree})


@given(values)
@settings(max_examples=100, deadline=None)
def test_omegaconf_resolves_an_escaped_value_to_itself(value: Any) -> None:
    assert same(OmegaConf.to_container(OmegaConf.create({"a": escaped(value)}), resolve=True), {"a": value})


@pytest.mark.parametrize(
    ("value", "shown"),
    [(0.123456, "0.123"), (1.0, "1.0"), (1, "1"), (1e-5, "1e-05"), (123456.0, "1.23e+05"), ("a\nb", '"a\\nb"')],
)
def test_a_value_is_shown_on_one_line_with_its_type(value: Any, shown: str) -> None:
    assert short_text(value) == shown


def test_a_mapping_whose_keys_are_no_names_is_one_value() -> None:
    tree = {"model": {"weights": {0: 1.0}, "named": {"a": 1, "0": 2}, "odd": {"a.b": 1}, "none": {}}}
    flat = flatten(tree)
    assert flat == {
        "model.weights": {0: 1.0}, "model.named.a": 1, "model.named.0": 2, "model.odd": {"a.b": 1}, "model.none": {},
    }  # fmt: skip
    assert all(map(is_dotted, flat))


def test_json_for_people_has_the_text_of_what_json_lacks() -> None:
    assert json_or_text([1, None, {"a": 0.5}]) == [1, None, {"a": 0.5}]
    assert (json_or_text({0: 1}), json_or_text(float("inf"))) == ("{0:1}", "inf")


def test_parameters_of_the_best_trial_are_printed_as_json_whatever_they_are() -> None:
    record = TrialRecord(3, "complete", {"a": b"\x00", "b": math.inf, "c": [1]}, (), 0.5, None, "", None, None)
    printed = json.loads(json.dumps(best_object(record), allow_nan=False))
    assert printed == {"trial": 3, "objective": 0.5, "params": {"a": 'bytes("AA==")', "b": "inf", "c": [1]}}


def test_yaml_keeps_texts_that_look_like_other_types() -> None:
    assert yaml.safe_load(to_yaml({"a": list(HOSTILE)}))["a"] == list(HOSTILE)
