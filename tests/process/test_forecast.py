"""The forecast of a study, measured on a few epochs."""

from __future__ import annotations

from pathlib import Path

from overnight.runner.forecast import forecast
from overnight.search.build_plan import build_plan


def test_a_forecast_writes_nothing(tmp_path: Path) -> None:
    found = forecast(build_plan([f"home={tmp_path / 'home'}", "study.trials=10", "slots=2"]))
    assert found.points == float("inf")
    assert len(found.samples) == 3
    assert 0 < found.seconds_per_epoch < 60
    assert found.seconds >= 5 * 20 * found.seconds_per_epoch
    assert found.disk_bytes > 0
    assert not (tmp_path / "home").exists()
