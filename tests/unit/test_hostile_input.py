"""What the search for tracebacks found: input that libraries refuse with errors of many kinds."""

from __future__ import annotations

import pytest

from overnight.config.override_parser import parse_override
from overnight.config.problems import ConfigError, Problems
from overnight.search.build_plan import build_plan
from overnight.search.grammar import read_draw


@pytest.mark.parametrize("text", ["seed=" + "9" * 5000, "data.a=" + "[" * 2000, ""])
def test_an_override_that_cannot_be_read_is_one_kind_of_error(text: str) -> None:
    with pytest.raises(ValueError) as error:  # noqa: PT011
        parse_override(text)
    assert len(str(error.value).splitlines()) == 1


def test_a_task_that_is_no_text_is_a_mistake() -> None:
    with pytest.raises(ConfigError, match=r"data\.task: must be"):
        build_plan(["data.task=[]"])


@pytest.mark.parametrize("draw", [{"length": 2}, {"each": "1,2", "length": 2, "step": 1}, {"log": True}])
def test_a_mapping_that_is_no_list_is_a_mistake(draw: dict[str, object]) -> None:
    problems = Problems()
    assert read_draw("model.x", draw, "search.model.x", problems) is None
    assert len(problems) == 1
