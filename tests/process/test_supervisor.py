"""The supervisor's loop with real processes and real stores."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from overnight import api
from overnight.config.problems import ConfigError
from overnight.protocol import Decision, Progress
from overnight.report.live import NullScreen
from overnight.report.progress import progress
from overnight.runner import trial_process
from overnight.runner.supervisor import Supervisor
from overnight.search.build_plan import build_plan
from overnight.study.open import open_study
from overnight.study.snapshot import view
from overnight.system import forkserver, kill
from overnight.tracking.sync import MlflowSync
from support.commands import LATE, running
from support.mlflow_store import children
from support.user_overrides import user_network

Tune = Callable[..., api.Result]


def states(result: api.Result) -> list[tuple[str, str | None]]:
    return [(r.state, r.reason) for r in result.records]


@pytest.mark.long
def test_a_users_network_is_tuned(tune: Tune) -> None:
    result = tune(*user_network("Plain", "+model.lr=tag(log,interval(1e-3,1e-1))", "study.trials=3"))
    assert [r.state for r in result.records] == ["complete"] * 3
    lrs = [r.params.get("model.lr") for r in result.records]
    assert lrs[0] is None, "the baseline leaves it to the class"
    assert all(1e-3 <= lr <= 1e-1 for lr in lrs[1:])


def test_an_error_is_recorded_with_its_traceback_and_a_few_in_a_row_stop_the_study(tune: Tune, home: Path) -> None:
    result = tune(*user_network("Raises", "study.trials=9", "study.max_consecutive_failures=2", "slots=1"))
    assert result.stop_reason == "failures"
    assert states(result)[:2] == [("failed", "error")] * 2
    assert len(result.records) < 5
    assert "ZeroDivisionError: the user's own mistake" in result.records[0].detail
    assert "about to raise" in (home / "logs" / "digits-mlp" / "trial-0000.log").read_text()


def test_a_metric_that_is_not_finite_makes_the_trial_diverged(tune: Tune) -> None:
    result = tune(*user_network("Diverges", "study.trials=2", "study.metric=val/accuracy2", "study.direction=maximize"))
    assert states(result) == [("failed", "diverged")] * 2
    assert result.all_failed


def test_a_missing_metric_is_reported_with_those_that_are_logged(tune: Tune) -> None:
    result = tune("search=none", "study.trials=1", "study.metric=val/acuracy", "study.direction=maximize")
    assert "got 'val/acuracy'; it logged train/loss, val/accuracy, val/f1, val/loss" in result.records[0].detail


@pytest.mark.long
def test_a_metric_of_some_epochs_only_is_the_objective_with_its_last_value(tune: Tune) -> None:
    result = tune(
        *user_network("EveryOther", "study.trials=2", "study.metric=now_and_then", "study.direction=maximize")
    )
    assert states(result) == [("complete", None)] * 2
    assert [e.metrics.get("now_and_then") for e in result.records[0].history] == [None, 1.0, None, 3.0]
    assert result.records[0].objective == 3.0


def test_running_out_of_memory_has_its_own_reason(tune: Tune) -> None:
    assert states(tune(*user_network("OutOfMemory", "study.trials=1"))) == [("failed", "out_of_memory")]


def test_a_killed_trial_is_resumed_from_its_last_checkpoint(tune: Tune, tmp_path: Path) -> None:
    marker = tmp_path / "killed-once"
    result = tune(*user_network("KilledOnce", "study.trials=1", f"+model.marker={marker}", "checkpoint.every_s=0"))
    assert marker.exists()
    assert states(result) == [("complete", None)]
    assert [e.index for e in result.records[0].history] == [0, 1, 2, 3]
    assert Path(f"{marker}.epochs").read_text() == "0 1 2 3 ", "no epoch was trained twice"


def test_an_error_in_the_loop_leaves_no_trial_running(home: Path) -> None:
    study = build_plan([f"home={home}", *user_network("Slow", "study.trials=2", "slots=2")])
    forkserver.warm_up()
    session, _ = open_study(study)
    started: list[int] = []

    def fail(worker: Supervisor) -> None:
        if len(worker.slots.running) == 2 and not started:
            started.extend(t.process.pid for t in worker.slots.running.values())
            raise OSError("the screen is gone")

    worker = Supervisor(session, MlflowSync(study, session.attributes.uid))
    with pytest.raises(OSError, match="the screen is gone"):
        worker.run(fail)
    session.close()
    assert len(started) == 2
    assert not any(psutil.pid_exists(p) and psutil.Process(p).status() != psutil.STATUS_ZOMBIE for p in started)
    found, _ = view(study.settings.location)
    assert found is not None
    assert (found.state, found.count("paused")) == ("paused", 2)


def test_a_trial_that_keeps_dying_fails_after_its_retries(tune: Tune) -> None:
    result = tune(*user_network("AlwaysKilled", "study.trials=1", "study.retries=1"))
    assert states(result) == [("failed", "crashed")]
    assert "signal 9" in result.records[0].detail
    assert "2 times in a row" in result.records[0].detail


def test_a_few_trials_in_a_row_that_keep_dying_stop_the_study(tune: Tune) -> None:
    lines = ("study.trials=8", "study.retries=1", "study.max_consecutive_failures=2", "slots=1")
    result = tune(*user_network("AlwaysKilled", *lines))
    assert result.stop_reason == "failures"
    assert states(result) == [("failed", "crashed")] * 2


def test_a_process_that_is_slow_to_die_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process can be slow to die in the middle of a driver's call; here none is waited for."""
    monkeypatch.setattr(kill, "_EXIT_TIMEOUT_S", 0.0)
    process = forkserver.fork(time.sleep, 60)
    pid = process.pid
    kill.discard(process)
    until = time.monotonic() + 5
    while psutil.pid_exists(pid):
        assert time.monotonic() < until
        time.sleep(0.01)


def test_a_trial_that_hangs_in_c_code_is_retried_then_failed_and_its_slot_is_free_within_five_seconds(
    tune: Tune,
) -> None:
    result = tune(
        *user_network("Hangs", "study.trials=1", "study.retries=1", "trial.stall_s=2", "checkpoint.every_s=0")
    )
    assert states(result) == [("failed", "stalled")]
    assert "trial.stall_s" in result.records[0].detail
    assert "2 times in a row" in result.records[0].detail
    assert any("resumed, stalled" in note for note in result.records[0].notes)
    ended, (last, *_) = result.records[0].ended_at, reversed(result.records[0].history)
    assert ended is not None
    assert ended - last.at < 2 * (2 + 5), "twice the stall timeout, and the time to react to it"


@pytest.mark.long
def test_a_trial_that_exceeds_its_time_or_memory_fails_with_its_reason_and_is_not_retried(tune: Tune) -> None:
    started = time.monotonic()
    result = tune(*user_network("Slow", "study.trials=1", "trial.timeout_s=3", "trainer.max_epochs=99"))
    assert states(result) == [("failed", "timed_out")]
    assert time.monotonic() - started < 60
    result = tune(*user_network("Hoards", "study.trials=1", "trial.memory_gib=0.5", "study.name=hoards"))
    assert states(result) == [("failed", "out_of_memory")]
    assert "trial.memory_gib: it took" in result.records[0].detail
    assert (result.records[0].peak_bytes or 0) > 0.5 * 2**30


def test_a_trial_whose_checkpoint_does_not_fit_its_network_starts_again_with_a_note(tune: Tune, tmp_path: Path) -> None:
    line = user_network("Grows", "study.trials=1", f"+model.marker={tmp_path / 'grown'}", "checkpoint.every_s=0")
    result = tune(*line)
    assert states(result) == [("complete", None)]
    assert [e.index for e in result.records[0].history] == [0, 1, 2, 3]
    assert any("checkpoint_unusable" in note for note in result.records[0].notes)


def test_a_trial_whose_checkpoints_are_all_refused_starts_again_with_a_note_in_mlflow(
    tune: Tune, home: Path, tmp_path: Path
) -> None:
    marker = tmp_path / "ruined"
    result = tune(*user_network("RuinsItsStates", "study.trials=1", f"+model.marker={marker}", "checkpoint.every_s=0"))
    assert states(result) == [("complete", None)]
    assert Path(f"{marker}.epochs").read_text() == "0 1 0 1 2 3 "
    notes = children(home)[0].data.tags["overnight.notes"]
    for name in ("state.ckpt", "state.before.ckpt"):
        assert f"{name}: not a state that overnight wrote" in notes


def test_while_the_disk_is_nearly_full_trials_save_and_wait(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study = build_plan(
        [f"home={home}", *user_network("Slow", "study.trials=2", "slots=2", "trainer.max_epochs=3", "scheduler=none")]
    )
    session, _ = open_study(study)
    warnings: list[str | None] = []
    worker = Supervisor(session, MlflowSync(study, session.attributes.uid))
    paused = []

    def free(_: Path) -> float:
        """Full from the first epoch's end until both trials have saved."""
        if any(t.index >= 0 for t in worker.slots.running.values()) and not paused:
            paused.append(False)
        if paused and not paused[0] and not worker.slots.running:
            assert [r.state for r in session.records()] == ["paused"] * 2
            paused[0] = True
        return 100.0 if paused and not paused[0] else 10_000.0

    monkeypatch.setattr("overnight.runner.disk_space.free_mib", free)
    forkserver.warm_up()
    assert worker.run(lambda s: warnings.append(progress(s).warning)).stop_reason == "complete"
    records = session.records()
    session.close()
    assert paused == [True]
    assert any(w and "less than 500 MiB are free" in w for w in warnings)
    assert [(r.state, [e.index for e in r.history]) for r in records] == [("complete", [0, 1, 2])] * 2


def test_a_study_does_not_start_on_a_full_disk(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"min_free_mib: 1000000000 MiB must be free where home is, got \d+ in"):
        api.tune([f"home={tmp_path / 'home'}", "min_free_mib=1000000000"])
    assert not (tmp_path / "home").exists()


def test_the_log_of_a_trial_is_capped_and_its_children_end_with_it(tune: Tune, home: Path) -> None:
    marker = home / "child"
    assert states(tune(*user_network("Chatty", "study.trials=1", f"+model.marker={marker}"))) == [("complete", None)]
    log = (home / "logs" / "digits-mlp" / "trial-0000.log").read_text()
    assert len(log) <= trial_process.LOG_CAP_BYTES
    assert log.startswith("[earlier output was too long to keep]")
    assert "last words" in log
    child = int(marker.read_text())
    deadline = time.monotonic() + 5
    while psutil.pid_exists(child) and psutil.Process(child).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline, "a child outlived its trial"
        time.sleep(0.05)


@pytest.mark.parametrize("pruner", ["median", "hyperband"])
def test_a_trial_that_is_behind_is_pruned(tune: Tune, pruner: str) -> None:
    options = ["scheduler.startup_trials=2", "scheduler.warmup_epochs=0"] if pruner == "median" else []
    result = tune(
        "search=none", "optimizer.lr=choice(1e-2,1e-7)", "sampler=random", f"scheduler={pruner}", *options,
        "study.trials=8", "trainer.max_epochs=6", "slots=1",
    )  # fmt: skip
    pruned = [r for r in result.records if r.state == "pruned"]
    assert all(r.state == "complete" for r in result.records if len(r.history) == 6)
    assert pruned
    assert all(len(r.history) < 6 for r in pruned)
    assert any(r.params["optimizer.lr"] == 1e-7 for r in pruned)
    assert result.best is not None
    assert result.best.params["optimizer.lr"] == 1e-2


@pytest.mark.parametrize("before_answer", [False, True], ids=["in answer", "before it is answered"])
@pytest.mark.long
def test_a_trial_that_is_stopped_as_the_pruner_ends_it_ends_as_in_an_uninterrupted_study(
    home: Path, tune: Tune, monkeypatch: pytest.MonkeyPatch, before_answer: bool
) -> None:
    line = [
        "search=none", "optimizer.lr=choice(1e-2,1e-7)", "sampler=random", "scheduler=median",
        "scheduler.startup_trials=2", "scheduler.warmup_epochs=0", "study.trials=6", "trainer.max_epochs=6", "slots=1",
    ]  # fmt: skip
    whole = tune(*line).records
    behind = next(r for r in whole if r.state == "pruned")
    cut = build_plan([f"home={home}", "study.name=cut", "pictures.when=never", "preflight=never", *line])
    session, _ = open_study(cut)
    worker = Supervisor(session, MlflowSync(cut, session.attributes.uid))
    record = session.writer.record

    def stop_there(done: Progress) -> bool:
        if (done.number, done.index) == (behind.number, behind.history[-1].index):
            worker.stop()
            if before_answer:
                worker.slots.running[done.number].send(Decision.SAVE_AND_STOP)
        return record(done)

    monkeypatch.setattr(session.writer, "record", stop_there)
    assert worker.run().stop_reason == "stopped"
    session.close()
    rest = tune(*line, "study.name=cut").records
    assert [(r.state, len(r.history), r.objective) for r in rest] == [
        (r.state, len(r.history), r.objective) for r in whole
    ]


def test_only_the_best_trials_keep_their_weights(finished_home: Path) -> None:
    found, _ = view(build_plan([f"home={finished_home}"]).settings.location)
    assert found is not None
    assert found.best is not None
    kept = [p.relative_to(finished_home) for p in finished_home.rglob("*.ckpt") if "artifacts" not in p.parts]
    assert kept == [Path("checkpoints/digits-mlp") / f"trial-{found.best.number:04d}" / "weights.ckpt"]


def test_a_stop_saves_the_running_trials_and_the_study_is_resumed(home: Path, tune: Tune) -> None:
    overrides = user_network("Slow", "study.trials=2", "slots=2", "trainer.max_epochs=3", "scheduler=median")
    study = build_plan([f"home={home}", *overrides])
    session, _ = open_study(study)
    worker = Supervisor(session, MlflowSync(study, "uid"))

    def stop_in_the_second_epoch() -> None:
        while not all(t.index >= 0 for t in worker.slots.running.values()) or not worker.slots.running:
            time.sleep(0.02)
        time.sleep(0.2)
        stopped_at.append(time.monotonic())
        worker.stop()

    stopped_at: list[float] = []
    thread = threading.Thread(target=stop_in_the_second_epoch)
    thread.start()
    forkserver.warm_up()
    assert worker.run().stop_reason == "stopped"
    ended = time.monotonic()
    thread.join()
    session.close()
    assert ended - stopped_at[0] < 10 * LATE
    found, _ = view(study.settings.location)
    assert found is not None
    assert [r.state for r in found.records] == ["paused", "paused"]
    assert all((home / "checkpoints" / "digits-mlp" / f"trial-000{n}" / "state.ckpt").exists() for n in (0, 1))
    result = tune(*overrides)
    assert [r.state for r in result.records] == ["complete"] * 2
    assert [[e.index for e in r.history] for r in result.records] == [[0, 1, 2]] * 2


@pytest.mark.long
def test_the_trials_of_a_killed_supervisor_end_within_two_seconds(home: Path) -> None:
    with running("tune", f"home={home}", *user_network("Slow", "study.trials=2", "slots=2")) as process:
        # The resource tracker, the forkserver and, below it, two trials.
        while len(children := psutil.Process(process.pid).children(recursive=True)) < 4:
            assert process.poll() is None
            time.sleep(0.1)
        time.sleep(0.5)
        process.kill()
    _, alive = psutil.wait_procs(children, timeout=2 * LATE)
    assert not [p for p in alive if p.status() != psutil.STATUS_ZOMBIE]


def test_a_forkserver_ends_if_its_supervisor_died_before_it_asked_to_be_notified(tmp_path: Path) -> None:
    import os
    import subprocess
    import sys

    path = tmp_path / "imported"
    os.mkfifo(path)  # without a reader
    code = "import sys; import overnight.trial.preload; print('imported')"
    env = {**os.environ, forkserver.IMPORTED: str(path)}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (1, "", "")


@pytest.mark.long
def test_the_garbage_collector_pauses_during_the_imports_only() -> None:
    import subprocess
    import sys

    code = """
import gc, os
before = gc.get_stats()[0]["collections"]
import overnight.trial.preload
print(gc.get_stats()[0]["collections"] - before < 200, gc.get_freeze_count() > 100_000, gc.isenabled(), flush=True)
os._exit(0)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "True True True\n"), done.stderr


@pytest.mark.long
def test_starting_a_trial_does_not_run_the_callers_script_again(home: Path, tmp_path: Path) -> None:
    import subprocess
    import sys

    script = tmp_path / "notebook_like.py"  # no `if __name__ == "__main__"`, as in many users' scripts
    script.write_text(
        "from pathlib import Path\n"
        f"with open({str(tmp_path / 'runs')!r}, 'a') as f: f.write('x')\n"
        "import overnight\n"
        f"r = overnight.tune(['home={home}', 'study.trials=2', 'trainer.max_epochs=1'])\n"
        "assert r.best.number in (0, 1) and len(r.trials) == 2 and r.study_name == 'digits-mlp', r\n"
    )
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "runs").read_text() == "x"


def test_the_null_screen_shows_nothing() -> None:
    NullScreen().close()
