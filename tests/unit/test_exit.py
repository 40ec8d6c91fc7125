"""How `tune` and `train` end: the last line, and the exit code."""

from __future__ import annotations

import dataclasses

import pytest

from overnight.api import Result
from overnight.cli.run import _exit
from overnight.runner.stop_state import StopReason
from overnight.search.build_plan import build_plan

LACK = "trial-0003: metric val/AP: refused"


@pytest.fixture(scope="module")
def complete(tmp_path_factory: pytest.TempPathFactory) -> Result:
    plan = build_plan([f"home={tmp_path_factory.mktemp('home')}"])
    return Result(plan.name, StopReason.COMPLETE, (), None, (), plan)


@pytest.mark.parametrize(
    ("reason", "signal", "mlflow_error", "code"),
    [
        (StopReason.COMPLETE, None, None, 0),
        (StopReason.COMPLETE, None, LACK, 1),
        (StopReason.FAILURES, None, None, 1),
        (StopReason.STOPPED, None, None, 0),
        (StopReason.STOPPED, None, LACK, 1),
        (StopReason.STOPPED, 2, LACK, 130),
    ],
)
def test_what_mlflow_lacks_is_in_the_exit_code_and_in_the_last_line(
    complete: Result,
    reason: StopReason,
    signal: int | None,
    mlflow_error: str | None,
    code: int,
    capfd: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as ended:
        _exit(dataclasses.replace(complete, stop_reason=reason, signal=signal, mlflow_error=mlflow_error))
    assert ended.value.code == code
    err = capfd.readouterr().err
    assert (LACK in err) == (mlflow_error is not None)
