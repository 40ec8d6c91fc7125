"""Several supervisors with homes of their own work on one study, with one PostgreSQL and one MLflow server."""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from overnight.system import devices
from overnight.tracking import store
from support.groups import QUICK, Group
from support.picture_files import write_idx
from support.servers import Cable, MlflowServer, Postgres

pytestmark = [pytest.mark.service, pytest.mark.timeout(900)]


def assert_each_trial_done_once(group: Group, name: str, trials: int, epochs: int) -> None:
    """Assert that both stores hold so many complete trials, with one run each and each epoch once."""
    seen = group.study(name)
    assert [r.number for r in seen.records] == list(range(trials))
    assert {r.state for r in seen.records} == {"complete"}
    assert all([e.index for e in r.history] == list(range(epochs)) for r in seen.records)
    client = store.open_client(seen.plan.settings.location)
    runs = client.search_runs([str(seen.experiment_id)], max_results=1000)
    children = {int(r.data.tags["overnight.trial"]): r for r in runs if "overnight.trial" in r.data.tags}
    assert len(runs) == trials + 1, [r.data.tags for r in runs]
    assert sorted(children) == list(range(trials))
    assert {r.info.status for r in runs} == {"FINISHED"}
    for number, run in children.items():
        steps = [m.step for m in client.get_metric_history(run.info.run_id, "val/accuracy")]
        assert sorted(steps) == list(range(epochs)), number
    assert group.rows("SELECT count(*) FROM overnight_leases WHERE owner IS NOT NULL") == [(0,)]


def test_three_supervisors_do_each_trial_once(group: Callable[..., Group]) -> None:
    ours = group()
    ours.launch("sixty", "study.trials=60", "trainer.max_epochs=2")
    for _ in range(3):
        ours.work("worker", "sixty", "--until-done")
    outputs = ours.outputs()
    assert [p.returncode for p in ours.processes] == [0, 0, 0], outputs
    assert_each_trial_done_once(ours, "sixty", 60, 2)
    assert ours.rows("SELECT max(fencing_token) FROM overnight_leases") == [(1,)]  # no trial had two owners
    assert all("trial-00" in text for text in outputs)


@pytest.mark.skipif(devices.cores() < 2, reason="two supervisors on one core are as fast as one")
def test_two_supervisors_do_nearly_twice_as_much_as_one(group: Callable[..., Group]) -> None:
    """Measures from the start of the first trial to the end of the last. A trial takes seconds, with one row a step."""
    elapsed_s = []
    for workers in (1, 2):
        ours, name = group(), f"by-{workers}"
        ours.launch(name, "study.trials=12", "trainer.max_epochs=16", "data.batch_size=1", "search=none")
        for _ in range(workers):
            ours.work("worker", name, "--until-done")
        outputs = ours.outputs()
        assert [p.returncode for p in ours.processes] == [0] * workers, outputs
        ended = ours.study(name).records
        elapsed_s.append(max(r.ended_at or 0.0 for r in ended) - min(r.started_at or math.inf for r in ended))
    print(f"one took {elapsed_s[0]:.1f} s, two {elapsed_s[1]:.1f}: {elapsed_s[0] / elapsed_s[1]:.2f} times")
    assert elapsed_s[0] / elapsed_s[1] > 1.6  # 1.84 and 1.83 on two idle cores


def test_eight_supervisors_that_start_at_once_on_an_empty_database_create_one_study(
    group: Callable[..., Group],
) -> None:
    ours = group()
    for _ in range(8):
        ours.work("tune", "study.name=eight", "study.trials=8", "trainer.max_epochs=1", *QUICK)
    outputs = ours.outputs()
    assert [p.returncode for p in ours.processes] == [0] * 8, outputs
    assert not [text for text in outputs if "rror" in text]
    assert ours.rows("SELECT study_name FROM studies") == [("eight",)]
    assert_each_trial_done_once(ours, "eight", 8, 1)


def test_another_supervisor_resumes_the_trial_of_a_killed_one(group: Callable[..., Group]) -> None:
    ours = group(lease_s=5)
    ours.launch("killed", "study.trials=4", "trainer.max_epochs=40", "checkpoint.every_s=0")
    first = ours.work("worker", "killed")
    ours.wait_for("killed", lambda s: bool(s.records and len(s.records[0].history) > 3))
    ours.work("worker", "killed", "--until-done")
    time.sleep(1)
    first.send_signal(signal.SIGKILL)
    ours.outputs()
    assert_each_trial_done_once(ours, "killed", 4, 40)


def test_a_disconnected_supervisor_discards_what_it_did_after_its_lease(
    group: Callable[..., Group], tmp_path: Path, postgres: Postgres
) -> None:
    ours = group(lease_s=5)
    cable = Cable(tmp_path / "cable", postgres)
    ours.launch("cut", "study.trials=6", "trainer.max_epochs=60", "checkpoint.every_s=0", "data.batch_size=4")
    late = ours.work("worker", "cut", "--until-done", url=cable.through(ours.url))
    ours.wait_for("cut", lambda s: s.count("running") == 1 and len(s.records[0].history) > 3)
    cable.cut()
    ours.work("worker", "cut", "--until-done")
    ours.wait_for("cut", lambda s: s.records[0].done)
    cable.reconnect()
    outputs = ours.outputs()
    assert late.returncode == 0, outputs
    # Once when the trial was adopted; a second time if it then waited for a slot while MLflow was synchronised.
    assert ours.rows("SELECT fencing_token FROM overnight_leases WHERE number = 0")[0][0] in (2, 3), outputs
    assert_each_trial_done_once(ours, "cut", 6, 60)


@pytest.mark.parametrize("store", ["optuna", "mlflow"])
def test_an_outage_of_a_store_loses_nothing(
    group: Callable[..., Group],
    postgres: Postgres,
    mlflow_server: MlflowServer,
    store: str,
    request: pytest.FixtureRequest,
) -> None:
    """The option --away gives the lengths of the outages in seconds. The first one is an immediate restart."""
    ours = group(lease_s=10)
    name = f"away-{store}"
    aways = [0.0, *map(float, request.config.getoption("--away").split(","))]
    trials = 8 + round(sum(aways) / 2)
    ours.launch(name, f"study.trials={trials}", "trainer.max_epochs=12")
    for _ in range(2):
        ours.work("worker", name, "--until-done")
    for i, away_s in enumerate(aways):
        ours.wait_for(name, lambda s, i=i: s.count("complete") > 2 * i)
        stop, start = (
            (postgres.stop, postgres.start) if store == "optuna" else (mlflow_server.stop, mlflow_server.start)
        )
        stop()
        time.sleep(away_s)
        start()
    outputs = ours.outputs()
    assert [p.returncode for p in ours.processes] == [0, 0], outputs
    adopted = ours.rows("SELECT number, fencing_token FROM overnight_leases WHERE fencing_token > 1")
    assert adopted == [], (
        "a trial changed its owner",
        outputs,
        [r for r in ours.study(name).records if r.number in dict(adopted)],
    )
    assert_each_trial_done_once(ours, name, trials, 12)


def test_a_study_with_untrusted_code_is_refused_and_its_user_sees_the_reason(
    group: Callable[..., Group], tmp_path: Path
) -> None:
    ours, canary = group(), tmp_path / "canary"
    conf = tmp_path / "conf"
    (conf / "model").mkdir(parents=True)
    (conf / "model" / "evil.yaml").write_text(f"_target_: os.system\ncommand: touch {canary}\n")
    worker = ours.work("worker")
    outputs = ours.start(
        tmp_path / "launcher", "tune", "--detach", "--config-dir", str(conf), "model=evil", "search=none", *QUICK
    ).communicate(timeout=120)[0]
    assert "refuses it: model._target_: must be" in outputs, outputs
    assert "OVERNIGHT_TRUSTED_PACKAGES" in outputs
    status = ours.start(tmp_path / "launcher", "status", "digits-evil").communicate(timeout=120)[0]
    assert "refused by the worker on" in status
    assert worker.poll() is None  # and it continues with other studies
    ours.launch("good", "study.trials=1", "trainer.max_epochs=1")
    ours.wait_for("good", lambda s: s.count("complete") == 1)
    worker.send_signal(signal.SIGTERM)
    assert "refused" in ours.outputs()[0]
    assert worker.returncode == 143
    assert not canary.exists()


def test_a_worker_without_the_data_refuses_the_study_and_another_worker_completes_it(
    group: Callable[..., Group], tmp_path: Path
) -> None:
    ours, has, lacks = group(), tmp_path / "has", tmp_path / "lacks"
    for part, count in (("train", 5_100), ("t10k", 10)):
        write_idx(has / "MNIST" / "raw" / f"{part}-images-idx3-ubyte", np.zeros((count, 28, 28)))
        write_idx(has / "MNIST" / "raw" / f"{part}-labels-idx1-ubyte", np.arange(count) % 10)
    line = ["study.name=pictures", "data=mnist", "study.trials=4", "trainer.max_epochs=1", "study.confirm.seeds=0"]
    ours.environment["OVERNIGHT_DATA"] = str(has)
    outputs = ours.start(tmp_path / "launcher", "tune", "--detach", *line).communicate(timeout=120)[0]
    assert "pictures: launched" in outputs, outputs
    # The data must not be downloaded.
    ours.environment |= {"OVERNIGHT_DATA": str(lacks), "https_proxy": "http://127.0.0.1:9"}
    ours.work("worker", "pictures", "--until-done")
    refusing = ours.wait_for("pictures", lambda seen: bool(seen.refusals))
    (why,) = next(iter(refusing.refusals.values()))
    assert why.startswith(f"data.root: {lacks / 'MNIST' / 'raw'} must hold train-images-idx3-ubyte, ")
    assert {r.state for r in refusing.records} == {"waiting"}, "no trial was spent on it"
    ours.environment["OVERNIGHT_DATA"] = str(has)
    ours.work("worker", "pictures", "--until-done")
    texts = ours.outputs()
    assert [p.returncode for p in ours.processes] == [1, 0], texts
    assert "refused" in texts[0]
    assert_each_trial_done_once(ours, "pictures", 4, 1)
