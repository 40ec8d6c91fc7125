"""The collector reports every mistake at once, in the order in which it was found."""

from __future__ import annotations

import pytest

from overnight.config.problems import ConfigError, Problems


def test_a_line_names_key_rule_value_and_remedy() -> None:
    problems = Problems()
    problems.add("study.trials", "must be at least 1", -1, "raise it")
    problems.add("study.name", "must not be secret")
    problems.add("a line that is complete")
    assert list(problems) == [
        "study.trials: must be at least 1, got -1; raise it",
        "study.name: must not be secret",
        "a line that is complete",
    ]


def test_all_mistakes_are_raised_at_once_and_each_of_them_once() -> None:
    problems = Problems(["first"])
    problems.extend(["second", "first"])
    with pytest.raises(ConfigError) as caught:
        problems.raise_if_any()
    assert caught.value.problems == ["first", "second"]
    Problems().raise_if_any()
