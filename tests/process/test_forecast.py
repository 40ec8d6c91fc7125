"""The forecast of a study, measured on a few epochs."""

from __future__ import annotations

from pathlib import Path

import pytest

from overnight.runner import forecast as forecasts
from overnight.runner.forecast import MeasurementFailed, forecast
from overnight.search.build_plan import build_plan
from overnight.system.devices import cores
from support.user_overrides import user_network


def test_a_forecast_measures_both_ends_and_writes_nothing(tmp_path: Path) -> None:
    sizes = ["search=none", "model.hidden_sizes=[8],[2048,2048]", "data.batch_size=16,512"]
    found = forecast(build_plan([f"home={tmp_path / 'home'}", "study.trials=10", "scheduler=none", "slots=64", *sizes]))
    assert found.points == 4
    assert len(found.samples) == 3
    assert (found.slots, found.at_once) == (64, min(64, cores()))
    assert 0 < found.fastest.unit_s < found.slowest.unit_s < 60
    assert "largest" in found.slowest.name
    least, most = found.seconds
    waves = -(-10 // found.at_once)
    assert waves * 20 * found.fastest.unit_s < least < most
    assert most > waves * 20 * found.slowest.unit_s
    assert found.disk_bytes > 2048 * 2048 * 4, "the weights of the largest network are kept"
    assert not (tmp_path / "home").exists()


def test_a_configuration_that_does_not_train_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forecasts, "cores", lambda: 1)
    plan = build_plan([*user_network("Slow"), "trainer.max_epochs=1", "+model.unknown=1"])
    with pytest.raises(MeasurementFailed, match="unknown") as raised:
        forecast(plan)
    assert raised.value.name.startswith("largest configuration")
