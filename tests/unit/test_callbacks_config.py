"""The node `callbacks` in configurations: options, lists, searched keys, and studies that have no such node."""

from __future__ import annotations

from pathlib import Path

import pytest

from overnight.config.problems import ConfigError
from overnight.config.search_path import ConfigSearchPath
from overnight.report import winner_config
from overnight.search.build_plan import build_plan
from overnight.search.plan import Plan
from overnight.search.record import TrialRecord


def problems_of(*overrides: str, config_dir: Path | None = None) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        build_plan(overrides, config_dir)
    return caught.value.problems


def test_every_ready_callback_is_an_option_with_an_entry_of_its_name() -> None:
    for option in ConfigSearchPath().options("callbacks"):
        node = build_plan([f"callbacks={option}"]).config({}).get("callbacks", {})
        assert list(node) == ([] if option == "none" else [option])


def test_several_options_are_chosen_with_a_list() -> None:
    plan = build_plan(["callbacks=[early_stopping,timer]", "callbacks.early_stopping.patience=2"])
    node = plan.config({})["callbacks"]
    assert list(node) == ["early_stopping", "timer"]
    assert node["early_stopping"]["patience"] == 2


def test_the_keys_and_the_options_of_callbacks_can_be_searched() -> None:
    plan = build_plan(["search=none", "callbacks=early_stopping", "callbacks.early_stopping.patience=range(1,4)"])
    assert plan.config({"callbacks.early_stopping.patience": 3})["callbacks"]["early_stopping"]["patience"] == 3
    plan = build_plan(["search=none", "callbacks=none,ema", "callbacks.ema.decay=interval(0.9,0.99)"])
    assert "callbacks" not in plan.config({"callbacks": "none"})
    assert plan.config({"callbacks": "ema", "callbacks.ema.decay": 0.95})["callbacks"]["ema"]["decay"] == 0.95


def test_a_list_of_a_persons_own_config_becomes_a_mapping(tmp_path: Path) -> None:
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "listed.yaml").write_text(
        "# @package _global_\ncallbacks:\n  - _target_: a.EarlyStopping\n  - _target_: b.LRMonitor\n"
        "  - _target_: c.EarlyStopping\n"
    )
    plan = build_plan(["+experiment=listed"], tmp_path)
    assert list(plan.config({})["callbacks"]) == ["early_stopping", "lrmonitor", "early_stopping_2"]


def test_a_study_without_callbacks_has_the_config_that_earlier_versions_gave_it() -> None:
    now = build_plan()
    before = now.to_json()
    del before["choices"]["callbacks"]
    assert "callbacks" not in now.config({})
    assert now.differences(Plan.from_json(before)) == []
    assert build_plan(["callbacks=timer"]).differences(now) == [
        "callbacks.timer._target_: was absent, is pytorch_lightning.callbacks.Timer",
        'callbacks.timer.duration: was absent, is "00:01:00:00"',
        "callbacks.timer.interval: was absent, is epoch",
    ]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["callbacks=ema2"], "callbacks: must be one of early_stopping, ema, "),
        (["callbacks=[ema,tmer]"], "got 'tmer'; did you mean timer?"),
        (
            ["callbacks.ema.decay=0.5"],
            "callbacks.ema.decay: no such key, as no such callback is chosen; choose it with",
        ),
        (
            ["callbacks=ema", "callbacks.ema.deca=0.5"],
            "callbacks.ema.deca: no such key; did you mean callbacks.ema.decay",
        ),
        (["callbacks.ema.decay=interval(0,1)"], "search.callbacks.ema.decay: no such key; there are none in callbacks"),
        (["+callbacks.mine=3"], "callbacks.mine: must be a mapping with a _target_"),
        (["+callbacks.mine.patience=3"], "callbacks.mine: must be a mapping with a _target_"),
    ],
)
def test_a_mistake_is_one_line(overrides: list[str], message: str) -> None:
    (problem,) = problems_of("search=none", *overrides)
    assert message in problem


@pytest.mark.parametrize("options", ["early_stopping", "[ema,timer]", "none"])
def test_the_config_of_a_winner_has_its_callbacks(tmp_path: Path, options: str) -> None:
    plan = build_plan([f"home={tmp_path}", "search=none", "study.name=s", f"callbacks={options}"])
    winner = TrialRecord(0, "complete", {}, (), 1.0, None, "", 0.0, 1.0)
    winner_config.write(plan, winner)
    again = build_plan([f"home={tmp_path}", "+experiment=best_s"])
    assert again.config({}) == plan.config({})
