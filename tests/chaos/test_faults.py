"""Trials that misbehave in every known way, a disk that fills up, and a machine that is suspended."""

from __future__ import annotations

import contextlib
import json
import signal
import sqlite3
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import psutil
import pytest
from user_networks import Zoo

from overnight import api
from overnight.config.compose import study_location
from overnight.runner import trial_process
from overnight.search.record import TrialRecord
from overnight.study.snapshot import StudyView, view
from support.commands import LATE, running
from support.mlflow_store import assert_equal, children

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(600)]
BARE = (
    "~model.hidden_sizes",
    "~model.activation",
    "~model.dropout",
    "~model.batch_norm",
    "search=none",
    "scheduler=none",
    "preflight=never",
    "pictures.when=never",
)
STALL_S, TIMEOUT_S = 5, 60


def view_of(home: Path) -> StudyView | None:
    return view(study_location([f"home={home}"]))[0]


def wait_until(condition: Callable[[], object], within_s: float = 120) -> None:
    deadline = time.monotonic() + within_s * LATE
    while not condition():
        assert time.monotonic() < deadline, "the condition did not hold in time"
        time.sleep(0.1)


@contextmanager
def served(home: Path) -> Iterator[str]:
    """Run `overnight ui` on the study, and yield its address."""
    with running("ui", f"home={home}", "--no-browser", "--port", "5177", stdout=subprocess.PIPE, text=True) as server:
        page = next(line for line in server.stdout if line.startswith("http")).strip()
        assert page.startswith("http://127.0.0.1:"), page
        yield page.partition("/#")[0]
        server.send_signal(signal.SIGINT)


def test_a_study_of_misbehaving_trials_ends_on_time_with_a_reason_for_each(
    tune: Callable[..., api.Result], home: Path
) -> None:
    marker = home / "children"
    began = time.monotonic()
    result = tune(
        *BARE, "model._target_=user_networks.Zoo", f"+model.marker={marker}", f"study.trials={len(Zoo.KINDS)}",
        "trainer.max_epochs=3", "slots=2", "study.retries=0", "study.max_consecutive_failures=99",
        f"trial.timeout_s={TIMEOUT_S}", f"trial.stall_s={STALL_S}", "trial.memory_gib=0.7",
    )  # fmt: skip
    assert time.monotonic() - began < 3 * TIMEOUT_S * LATE
    assert result.stop_reason == "complete"
    ends = {kind: (r.state, r.reason) for kind, r in zip(Zoo.KINDS, result.records, strict=True)}
    assert ends == {
        "hangs": ("failed", "stalled"),
        "hoards": ("failed", "out_of_memory"),
        "forks children": ("complete", None),
        "prints": ("complete", None),
        "nan": ("failed", "diverged"),
        "inf": ("failed", "diverged"),
        "nothing": ("failed", "error"),
        "never ends": ("failed", "timed_out"),
        "healthy": ("complete", None),
    }
    pids = [int(pid) for pid in marker.read_text().split()]
    assert len(pids) == 20
    assert not any(psutil.pid_exists(p) and psutil.Process(p).status() != psutil.STATUS_ZOMBIE for p in pids)
    log = home / "logs" / "digits-mlp" / f"trial-{Zoo.KINDS.index('prints'):04d}.log"
    assert log.stat().st_size <= trial_process.LOG_CAP_BYTES

    found = view_of(home)
    assert found is not None
    assert_equal(home, found)
    with served(home) as address:
        for number, run in children(home).items():
            assert_the_page_opens(address, run.info.run_id, result.records[number])


def assert_the_page_opens(address: str, run_id: str, record: TrialRecord) -> None:
    """Fetch MLflow's page of a run, and what that page requests: the run, its curves, its artifacts."""

    def get(page: str, **query: str) -> bytes:
        with urllib.request.urlopen(f"{address}/{page}?{urllib.parse.urlencode(query)}", timeout=60) as answer:
            assert answer.status == 200
            return bytes(answer.read())

    assert b"<html" in get("")
    run = json.loads(get("ajax-api/2.0/mlflow/runs/get", run_id=run_id))["run"]
    assert run["info"]["run_id"] == run_id
    for metric in run["data"].get("metrics", []):
        get("ajax-api/2.0/mlflow/metrics/get-history", run_id=run_id, metric_key=metric["key"])
    listed = json.loads(get("ajax-api/2.0/mlflow/artifacts/list", run_id=run_id))["files"]
    assert {"config.yaml", *(["error.txt"] if record.state == "failed" else [])} <= {f["path"] for f in listed}
    if record.state == "failed":
        assert record.detail.encode() == get("get-artifact", path="error.txt", run_uuid=run_id)


@contextmanager
def small_disk(folder: Path, mib: int) -> Iterator[Path]:
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={mib}m", "tmpfs", str(folder)], capture_output=True)
    if mounted.returncode != 0:
        pytest.skip(f"a small disk can't be mounted here: {mounted.stderr.decode().strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.mark.skipif(sys.platform != "linux", reason="mounts a tmpfs")
@pytest.mark.parametrize("least_mib", [0, 8], ids=["writes fail", "trials pause before"])
def test_a_full_disk_corrupts_no_store_and_the_study_continues_once_there_is_space(
    tmp_path: Path, empty_store: Path, least_mib: int
) -> None:
    with small_disk(tmp_path / "small", 40) as home:
        (home / "mlflow.db").write_bytes(empty_store.read_bytes())
        line = [
            f"home={home}", *BARE, "model._target_=user_networks.Slow", "study.trials=4", "trainer.max_epochs=4",
            "slots=2", "checkpoint.every_s=0", f"min_free_mib={least_mib}",
        ]  # fmt: skip
        with running("tune", *line, stderr=subprocess.PIPE) as process:
            wait_until(lambda: (now := view_of(home)) is not None and any(len(r.history) > 1 for r in now.records))
            with open(home / "ballast", "wb", buffering=0) as ballast, contextlib.suppress(OSError):
                while True:
                    ballast.write(bytes(1 << 14))
            time.sleep(6)  # with a full disk
            assert process.poll() is None, "a full disk does not end the study"
            (home / "ballast").unlink()
            assert process.wait(120 * LATE) == 0, process.stderr.read()
        for store in ("optuna.db", "mlflow.db"):
            with closing(sqlite3.connect(home / store)) as opened:
                assert opened.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        found = view_of(home)
        assert found is not None
        assert [r.state for r in found.records] == ["complete"] * 4
        assert [[e.index for e in r.history] for r in found.records] == [[0, 1, 2, 3]] * 4
        assert_equal(home, found)


def test_a_trial_on_a_suspended_machine_is_not_stalled(home: Path) -> None:
    line = [
        f"home={home}", *BARE, "model._target_=user_networks.Slow", "study.trials=3", "trainer.max_epochs=4",
        "slots=2", f"trial.stall_s={STALL_S}", f"trial.timeout_s={TIMEOUT_S}", "study.retries=0",
    ]  # fmt: skip
    with running("tune", *line) as process:
        wait_until(lambda: (now := view_of(home)) is not None and now.count("running") == 2)
        wait_until(lambda: sum(bool(r.history) for r in view_of(home).records) == 2)
        family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
        for one in family:
            one.suspend()
        time.sleep(3 * STALL_S)
        for one in family:
            one.resume()
        assert process.wait(60 * LATE) == 0
    found = view_of(home)
    assert found is not None
    assert [(r.state, r.reason, r.notes) for r in found.records] == [("complete", None, ())] * 3
    assert [[e.index for e in r.history] for r in found.records] == [[0, 1, 2, 3]] * 3
    assert_equal(home, found)
