"""What a module logs through `self.logger` arrives in MLflow, whatever is killed meanwhile."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from overnight import api
from overnight.config.compose import study_location
from overnight.search.build_plan import build_plan
from overnight.study.snapshot import view
from support import commands
from support.mlflow_store import children, client_of

EPOCHS = 12


@pytest.fixture
def logging_study(tmp_path: Path) -> Callable[..., list[str]]:
    """Return the overrides of a study of one trial that logs."""
    for group, text in {
        "model": "user_package.logs.Logs\nwidth: 4\ntimes: 1",
        "data": "user_package.logs.Data",
    }.items():
        (tmp_path / "conf" / group).mkdir(parents=True)
        (tmp_path / "conf" / group / "logs.yaml").write_text(f"_target_: {text}\n")

    def overrides(home: str, *more: str) -> list[str]:
        return [
            f"home={tmp_path / home}", "model=logs", "data=logs", "search=none", "study.name=s", "study.trials=1",
            "study.metric=val/loss", "study.direction=minimize", f"trainer.max_epochs={EPOCHS}", "pictures.when=never",
            "slots=1", "checkpoint.every_s=0", *more,
        ]  # fmt: skip

    return overrides


def curves_of(home: Path) -> dict[str, list[tuple[int, float]]]:
    """Return name -> (step, value) of all that the trial has logged by step, in the order of steps."""
    client, run = client_of(home), children(home)[0]
    return {
        name: sorted((m.step, m.value) for m in client.get_metric_history(run.info.run_id, name))
        for name in run.data.metrics
        if name.startswith("by_step/")
    }


def files_of(home: Path) -> dict[str, bytes]:
    root = Path(children(home)[0].info.artifact_uri.removeprefix("file://")) / "logged"
    return {str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


@pytest.mark.long
def test_what_a_tuned_module_logs_is_in_its_run(tmp_path: Path, logging_study: Callable[..., list[str]]) -> None:
    home = tmp_path / "home"
    assert api.run(build_plan(logging_study("home"), tmp_path / "conf")).mlflow_error is None
    steps = range(EPOCHS * 3)
    found = curves_of(home)
    assert [step for step, _ in found["by_step/curve/of steps"]] == [*steps]
    assert found["by_step/by epoch"] == [(n, float(n)) for n in range(EPOCHS)]
    assert children(home)[0].data.params["hparams/of/user"] == "3"
    files = files_of(home)
    assert {name.split("/")[0] for name in files} == {"figures", "images", "last.png", "tables", "text"}
    assert len(files) == 4 * EPOCHS + 1
    assert files["text/says/step-0000003.txt"] == b"epoch 3"
    assert files["last.png"] == files[f"figures/confusion/step-{EPOCHS - 1:07d}.png"]
    found_study, _ = view(study_location([f"home={home}"]))
    assert found_study is not None
    assert found_study.records[0].notes == ()


@pytest.mark.long
@pytest.mark.timeout(900)
def test_kills_neither_double_nor_lose_what_is_logged(tmp_path: Path, logging_study: Callable[..., list[str]]) -> None:
    options = ["--config-dir", str(tmp_path / "conf")]
    more = ("model.times=20", "trainer.max_epochs=16")
    assert commands.start("tune", *options, *logging_study("whole", *more)).wait() == 0
    for seconds in (0.0, 0.3):
        with commands.running("tune", *options, *logging_study("cut", *more), start_new_session=True) as process:
            wait_for_a_state(tmp_path / "cut", more=seconds)
            process.send_signal(signal.SIGKILL)
    assert commands.start("tune", *options, *logging_study("cut", *more)).wait() == 0
    assert curves_of(tmp_path / "cut") == curves_of(tmp_path / "whole")
    assert len(curves_of(tmp_path / "whole")["by_step/curve/of steps"]) == 16 * 3 * 20
    assert files_of(tmp_path / "cut") == files_of(tmp_path / "whole")


@pytest.mark.long
def test_a_lost_run_gets_all_that_was_logged_again(tmp_path: Path, logging_study: Callable[..., list[str]]) -> None:
    home, plan = tmp_path / "home", build_plan(logging_study("home"), tmp_path / "conf")
    api.run(plan)
    curves, files = curves_of(home), files_of(home)
    client_of(home).delete_run(children(home)[0].info.run_id)
    api.run(plan)
    assert curves_of(home) == curves
    assert files_of(home) == files


@pytest.mark.long
@pytest.mark.timeout(900)
def test_100_000_values_of_a_trial_cost_the_supervisor_a_few_seconds(
    tmp_path: Path, logging_study: Callable[..., list[str]]
) -> None:
    def cpu_s(home: str, times: int) -> float:
        plan = build_plan(logging_study(home, f"model.times={times}", "trainer.max_epochs=2"), tmp_path / "conf")
        before = time.process_time()
        api.run(plan)
        return time.process_time() - before

    cpu_s("first", 1)
    few, many = cpu_s("few", 1), cpu_s("many", 16_667)
    print(f"CPU of the supervisor: {few:.1f} s with 6 values, {many:.1f} s with 100,002")
    assert len(curves_of(tmp_path / "many")["by_step/curve/of steps"]) == 2 * 3 * 16_667
    assert many - few < 10  # MLflow's client would take 25


def wait_for_a_state(home: Path, more: float) -> None:
    """Wait until the trial has written another state, and then some seconds."""

    def written() -> Any:
        return [p.stat().st_mtime_ns for p in home.glob("checkpoints/s/*/state.ckpt")]

    before, until = written(), time.monotonic() + 60
    while written() == before and time.monotonic() < until:
        time.sleep(0.02)
    time.sleep(more)
