"""A mistake in a config file is reported with file, line and column, together with all other mistakes."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from overnight.config.compose import compose
from overnight.config.problems import ConfigError
from overnight.config.yaml_files import file_problem
from overnight.search.build_plan import build_plan

NET = "_target_: user_networks.Plain\n"


def conf(folder: Path, **models: str) -> Path:
    (folder / "model").mkdir()
    for name, text in models.items():
        (folder / "model" / f"{name}.yaml").write_text(text)
    return folder


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("a:\n\tb: 1\n", ", line 2, column 1: found character '\\t' that cannot start any token; indent with spaces"),
        ("a: 1\nb: 2\na: 3\n", ", line 3, column 1: found duplicate key a"),
        ("a:\n  0: x\n  0: y\n", ", line 3, column 3: found duplicate key 0"),
        ("a: b: c\n", ", line 1, column 5: mapping values are not allowed here"),
        ("a: [1, 2\n", ", line 2, column 1: expected ',' or ']', but got '<stream end>'"),
        (
            "a: 1\n---\nb: 2\n",
            ", line 2, column 1: expected a single document in the stream but found another document",
        ),
        ("a: 1\nb: \x07\n", ", line 2, column 4: must be text, and holds the character #x0007"),
        ("- a\n- b\n", ": must hold keys with values, got a list; write KEY: VALUE, one a line"),
    ],
)
def test_a_slip_is_reported_with_its_line_and_column(tmp_path: Path, content: str, problem: str) -> None:
    path = tmp_path / "net.yaml"
    path.write_text(content)
    found = file_problem(path)
    assert found is not None
    assert found.startswith(f"{path}{problem}")


def test_a_file_that_is_not_utf_8_or_not_readable_is_reported(tmp_path: Path) -> None:
    path = tmp_path / "net.yaml"
    path.write_bytes("a: 1\nb: é\n".encode("latin-1"))
    assert file_problem(path) == f"{path}, line 2: must be UTF-8, and holds the byte 0xe9"
    path.unlink()
    path.mkdir()
    assert file_problem(path) == f"{path}: must be a file that can be read: Is a directory"


def test_the_slips_of_all_chosen_files_are_reported_at_once_with_other_mistakes(tmp_path: Path) -> None:
    folder = conf(tmp_path, tab="a:\n\tb: 1\n", good=NET)
    (folder / "search").mkdir()
    (folder / "search" / "good.yaml").write_text("a: b: c\n")
    (folder / "data").mkdir()
    (folder / "data" / "twice.yaml").write_text("a: 1\na: 2\n")
    line = ["model=tab", "data=twice", "study.trials=-1", "model.width=3", "data.depth=1,2"]
    with pytest.raises(ConfigError) as error:
        build_plan(line, folder)
    assert [p.removeprefix(str(folder)).split(":")[0] for p in error.value.problems] == [
        "/model/tab.yaml, line 2, column 1",
        "/data/twice.yaml, line 2, column 1",
        "study.trials",
    ], "and nothing about keys of the options that can't be read"
    with pytest.raises(ConfigError) as error:
        build_plan(["model=good"], folder)
    assert error.value.problems == [f"{folder}/search/good.yaml, line 1, column 5: mapping values are not allowed here"]


def test_a_slip_in_a_file_that_another_file_chooses_is_reported(tmp_path: Path) -> None:
    folder = conf(tmp_path, tab="a:\n\tb: 1\n")
    (folder / "experiment").mkdir()
    (folder / "experiment" / "mine.yaml").write_text(
        "# @package _global_\ndefaults:\n  - override /model: tab\n  - override /search: none\n"
    )
    (problem,) = compose(["+experiment=mine"], folder).problems
    assert problem.startswith(f"{folder}/model/tab.yaml, line 2, column 1: found character")


def test_other_files_of_the_folder_do_not_matter(tmp_path: Path) -> None:
    folder = conf(tmp_path, tab="a:\n\tb: 1\n", good=NET)
    assert build_plan(["model=good", "search=none"], folder).choices["model"] == "good"


# Text that looks like YAML, and any text.
_PIECES = (
    "_target_: x.y|a: 1|a|: |- |  |\t|\n|{|}|[|]|'|\"|${|&a |*a|!!set |!!python/name:os.system|? |>|#|---|"
    "defaults:|???|# @package _global_|${oc.env:HOME}|${model.a}|\x00|é|1e999|.nan|2024-01-01|null|<<: *a"
)
YAML = st.one_of(st.lists(st.sampled_from(_PIECES.split("|")), max_size=12).map("".join), st.text(max_size=30))


@settings(max_examples=100, deadline=None)
@given(YAML)
@example("a: 1" + "0" * 5000)
@example("a: " + "[" * 3000)
def test_any_content_can_be_read_or_is_one_mistake(content: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "net.yaml"
        path.write_bytes(content.encode("utf-8", "surrogatepass"))
        problem = file_problem(path)
    assert problem is None or (problem.startswith(str(path)) and "\n" not in problem)


@pytest.mark.parametrize(
    "content",
    [
        "defaults: 5\n",
        "defaults:\n- 5\n",
        "a: &a [*a]\n",
        "a: ${model.b}\nb: ${model.a}\n",
        "_target_: ${\n",
        "# @package _global_\nmodel: 5\n",
        "true: 1\n1: 2\nnull: 3\n",
        "_target_: a.b\nx: !!set {y}\n",
    ],
)
def test_content_that_does_not_compose_is_a_list_of_mistakes(tmp_path: Path, content: str) -> None:
    with pytest.raises(ConfigError) as error:
        build_plan(["model=net", "search=none"], conf(tmp_path, net=content))
    assert all(problem and "\n" not in problem for problem in error.value.problems)


# Option names


def test_an_option_with_any_name_gives_its_study_a_name(tmp_path: Path) -> None:
    names = ["my net", "a,b", "it's", "1e3"]
    folder = conf(tmp_path, **dict.fromkeys(names, NET))
    for name in names:
        quoted = "'" + name.replace("'", "\\'") + "'"
        plan = build_plan([f"model={quoted}", "search=none"], folder)
        assert plan.choices["model"] == name
        assert set(plan.name) <= set("abcdefghijklmnopqrstuvwxyz0123456789-"), plan.name
    assert build_plan(["model='my net'", "search=none"], folder).name == "digits-my-net"
    both = build_plan(["model='my net','a,b'", "search=none"], folder)
    assert set(both.variants) == {("my net",), ("a,b",), ("mlp",)}


def test_an_option_that_leaves_no_name_for_the_study_needs_one(tmp_path: Path) -> None:
    folder = conf(tmp_path, **{"n" * 120: NET})
    with pytest.raises(ConfigError, match=r"study\.name: must be given where 'digits-n+' can't be one"):
        build_plan([f"model={'n' * 120}", "search=none"], folder)
    assert build_plan([f"model={'n' * 120}", "search=none", "study.name=short"], folder).name == "short"


# Python


@pytest.mark.parametrize("given", ["study.trials=3", {"study.trials": 3}, None, 5, [1], [None], b"a=b"])
def test_overrides_that_are_no_list_of_texts_are_one_message(given: object) -> None:
    with pytest.raises(ConfigError) as error:
        build_plan(given)  # type: ignore[arg-type]
    (problem,) = error.value.problems
    assert problem.startswith("overrides: ")


def test_a_single_text_is_told_how_to_be_a_list() -> None:
    with pytest.raises(ConfigError, match=r"write \['study.trials=3'\]"):
        build_plan("study.trials=3")


@pytest.mark.parametrize("folder", [5, "/nope", "~nobody-of-this-name/conf", "a\0b", b"conf"])
def test_a_config_folder_that_is_none_is_a_mistake(folder: object) -> None:
    with pytest.raises(ConfigError, match="--config-dir: must be a folder"):
        build_plan([], folder)  # type: ignore[arg-type]
