"""A study session: what it stores, what it assigns again, and what it refuses."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from optuna.trial import TrialState

from overnight.config.problems import ConfigError
from overnight.search.build_plan import build_plan
from overnight.study import create
from overnight.study.open import open_study
from overnight.study.snapshot import study_names, view
from overnight.study.storage.database import dispose
from overnight.study.storage.leased import open_for_work
from overnight.study.storage.lock import StudyInUse, holder_file, holder_of
from support.sessions import epoch, opened, planned, play


def test_trial_0_is_the_baseline(tmp_path: Path) -> None:
    study = planned(tmp_path, "model.dropout=0.0,0.5")
    with opened(study) as session:
        assignment = session.queue.ask()
        assert assignment is not None
        assert assignment.config == study.config({})
        assert session.read(0).params["model.dropout"] == 0.0


def test_trial_0_is_the_baseline_even_outside_the_space(tmp_path: Path) -> None:
    study = planned(tmp_path, "optimizer.lr=tag(log,interval(0.1,1))", "model.hidden_sizes=[8],[9]")
    with opened(study) as session:
        assignment = session.queue.ask()
        assert assignment is not None
        assert assignment.config == study.config({})
        session.writer.record(epoch(0, 0, 0.5))
        record = session.writer.complete(0)
    assert record.params["optimizer.lr"] == 0.001
    assert record.params["model.hidden_sizes"] == [64]


def test_every_metric_of_every_epoch_is_kept_with_its_time(tmp_path: Path) -> None:
    with opened(planned(tmp_path)) as session:
        session.queue.ask()
        for e in range(3):
            session.writer.record(epoch(0, e, e / 10, loss=1 / (e + 1), odd=float("inf")))
        session.writer.complete(0)
        history = session.read(0).history
    assert [(h.index, h.at, h.metrics["loss"], h.metrics["odd"]) for h in history] == [
        (0, 1000.0, 1.0, float("inf")),
        (1, 1001.0, 0.5, float("inf")),
        (2, 1002.0, 1 / 3, float("inf")),
    ]


def test_a_paused_trial_is_resumed_first_with_number_parameters_and_history(tmp_path: Path) -> None:
    study = planned(tmp_path)
    with opened(study) as session:
        play(session, 2)
        before = session.queue.ask()
        assert before is not None
        session.writer.record(epoch(2, 0, 0.5))
        session.writer.pause(2)
        assert session.read(2).state == "paused"
    with opened(study) as session:
        after = session.queue.ask()
        assert after == before
        assert not session.writer.record(epoch(2, 0, 0.9)), "a known epoch is not replaced"
        session.writer.record(epoch(2, 1, 0.6))
        session.writer.complete(2)
        assert [h.metrics["val/accuracy"] for h in session.read(2).history] == [0.5, 0.6]


def test_an_epoch_that_a_kill_removed_from_the_history_is_recorded_again(tmp_path: Path) -> None:
    study = planned(tmp_path)
    with opened(study) as session:
        session.queue.ask()
        session.writer.record(epoch(0, 0, 0.5))
        session._reader.running.clear()  # killed before the flush
    with opened(study) as session:
        session.queue.ask()
        assert session.writer.record(epoch(0, 0, 0.5)), "a warning would be an error here"
        assert session.writer.flush() == [0]
        assert session.writer.flush() == []
        assert [h.index for h in session.writer.complete(0).history] == [0]


def test_the_budget_is_a_total_and_a_paused_trial_does_not_spend_it(tmp_path: Path) -> None:
    study = planned(tmp_path, "study.trials=3")
    with opened(study) as session:
        session.queue.ask()
        session.writer.pause(0)
        assert len(play(session, 99)) == 3
        assert session.queue.ask() is None
    with opened(planned(tmp_path, "study.trials=4")) as session:
        assert len(play(session, 99)) == 1


@pytest.mark.parametrize(
    ("rule", "direction", "value"), [("last", "maximize", 0.2), ("best", "maximize", 0.9), ("best", "minimize", 0.1)]
)
def test_the_objective_is_the_last_epoch_or_the_best_one(
    tmp_path: Path, rule: str, direction: str, value: float
) -> None:
    study = planned(tmp_path, f"study.objective={rule}", f"study.direction={direction}")
    with opened(study) as session:
        session.queue.ask()
        for e, v in enumerate((0.1, 0.9, 0.2)):
            session.writer.record(epoch(0, e, v))
        assert session.writer.complete(0).objective == value


def test_a_failed_trial_keeps_its_reason_and_counts(tmp_path: Path) -> None:
    with opened(planned(tmp_path, "study.trials=1")) as session:
        session.queue.ask()
        record = session.writer.fail(0, "error", "Traceback ...")
        assert (record.state, record.reason, record.detail) == ("failed", "error", "Traceback ...")
        assert session.queue.ask() is None


def test_incomparable_settings_are_refused_with_their_differences(tmp_path: Path) -> None:
    with opened(planned(tmp_path)) as session:
        play(session, 1)
    with pytest.raises(ConfigError) as caught:
        open_study(planned(tmp_path, "optimizer.lr=interval(0.01,0.1)", "data.batch_size=64"))
    text = str(caught.value)
    assert "data.batch_size: was 32, is 64" in text
    assert "search.optimizer.lr: was 0.0001 to 0.1, log, is 0.01 to 0.1" in text
    assert "study.name=" in text
    with opened(planned(tmp_path)):
        pass  # the refused call has unlocked the study


def test_a_second_process_learns_which_one_works_on_the_study(tmp_path: Path) -> None:
    study = planned(tmp_path)
    with opened(study):
        with pytest.raises(StudyInUse, match=f"process {os.getpid()} "):
            open_study(study)
        holder = holder_file(study.settings.location, study.name)
        content = holder.read_text()
        holder.unlink()  # the lock is taken, but its owner is not written yet
        threading.Timer(0.2, holder.write_text, [content]).start()
        with pytest.raises(StudyInUse, match=f"process {os.getpid()} "):
            open_study(study)
    with opened(study):
        pass


@pytest.mark.skipif(sys.platform != "linux", reason="only there the start of a process follows the clock")
def test_setting_the_clock_does_not_make_a_live_process_look_dead(tmp_path: Path) -> None:
    study = planned(tmp_path)
    session, _ = open_study(study)
    file = holder_file(study.settings.location, study.name)
    holder = json.loads(file.read_text())
    file.write_text(json.dumps({**holder, "created": holder["created"] + 3600}))
    assert holder_of(study.settings.location, study.name)["pid"] == os.getpid()  # type: ignore[index]
    file.write_text(json.dumps({**holder, "created": holder["created"] + 3600, "boot": "another"}))
    assert holder_of(study.settings.location, study.name) is None, (
        "after a restart of the machine it is another process"
    )
    session.close()


def test_the_lock_of_a_killed_process_is_free(tmp_path: Path) -> None:
    code = (
        "import os, sys; from overnight.search.build_plan import build_plan;"
        "from overnight.study.open import open_study;"
        "l, _ = open_study(build_plan(sys.argv[1:])); l.queue.ask(); os.kill(os.getpid(), 9)"
    )
    study = planned(tmp_path)
    subprocess.run([sys.executable, "-c", code, f"home={tmp_path}", "study.trials=14"], check=False)
    found, _ = view(study.settings.location)
    assert found is not None
    assert found.state == "stalled"
    session, messages = open_study(study)
    assert messages == ["1 interrupted trial(s) are resumed: 0"]
    assert session.trials()[0].state == TrialState.WAITING
    session.close()


def test_view_changes_nothing_and_returns_the_state(tmp_path: Path) -> None:
    study = planned(tmp_path, "study.trials=2")
    assert view(study.settings.location) == (None, [])
    assert not list(tmp_path.iterdir())
    with opened(study) as session:
        play(session, 1)
        found, names = view(study.settings.location)
        assert found is not None
        assert (names, found.state, found.count("complete")) == (["digits-mlp"], "running", 1)
    assert view(study.settings.location)[0].state == "paused"  # type: ignore[union-attr]
    with opened(study) as session:
        play(session, 1)
    assert view(study.settings.location)[0].state == "complete"  # type: ignore[union-attr]


def test_a_home_of_an_unreleased_version_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "ledger.db").write_bytes(b"anything")
    study = planned(tmp_path)
    calls: list[Callable[[], Any]] = [
        lambda: open_study(study),
        lambda: view(study.settings.location),
        lambda: study_names(study.settings.location),
    ]
    for call in calls:
        with pytest.raises(ConfigError) as caught:
            call()
        (problem,) = caught.value.problems
        assert problem == (
            f"home: must be new or of this version, got '{tmp_path}', which an unreleased older version wrote; "
            "take a new home=..."
        )
    assert [(p.name, p.read_bytes()) for p in tmp_path.iterdir()] == [("ledger.db", b"anything")]


def test_an_interrupted_creation_is_completed(tmp_path: Path) -> None:
    study = planned(tmp_path)
    tmp_path.mkdir(exist_ok=True)
    storage = open_for_work(study.settings.location)
    create.load(storage, study, study.name)
    dispose(storage)
    with opened(study) as session:
        assert [t.state for t in session.trials()] == [TrialState.WAITING]
        assert session.queue.ask().config == study.config({})  # type: ignore[union-attr]


def test_ask_record_and_complete_take_less_than_a_second(tmp_path: Path) -> None:
    with opened(planned(tmp_path, "study.trials=40")) as session:
        started = time.perf_counter()
        assert len(play(session, 99)) == 40
        assert (time.perf_counter() - started) / 40 < 1.0


ENQUEUED = "study.enqueue=[{optimizer.lr:0.01},{optimizer:sgd,optimizer.momentum:0.5},{optimizer.lr:0.001}]"


def test_enqueued_entries_follow_trial_0_each_once(tmp_path: Path) -> None:
    study = planned(tmp_path, ENQUEUED)
    with opened(study) as session:
        played = play(session, 2)
    with opened(study) as session:
        played += play(session, 2)
    (_, baseline), (_, second), (_, third), _ = played
    assert second == {**baseline, "optimizer.lr": 0.01}
    assert third == {**baseline, "optimizer": "sgd", "optimizer.lr": 0.01, "optimizer.momentum": 0.5}
    assert len({json.dumps(v) for _, v in played}) == 4, "the third entry is the baseline, which is trial 0"
    more = planned(tmp_path, ENQUEUED.replace("[{", "[{model.activation:gelu},{", 1))
    with opened(more) as session:
        (_, fifth), (_, sixth) = play(session, 2)
        assert fifth == {**baseline, "model.activation": "gelu"}
        assert session.read(4).params["model.activation"] == "gelu"
    with opened(more) as session:
        assert sum(t.state == TrialState.WAITING for t in session.trials()) == 0
    assert sixth not in (baseline, second, third, fifth)


def test_an_entry_waits_while_the_budget_is_spent(tmp_path: Path) -> None:
    with opened(planned(tmp_path, "study.trials=2")) as session:
        play(session, 99)
    late = "study.enqueue=[{optimizer.lr:0.02}]"
    session, messages = open_study(planned(tmp_path, "study.trials=2", late))
    assert session.queue.ask() is None
    session.close()
    assert messages == ["study.enqueue: 1 of its entries wait until study.trials, which is spent, is raised"]
    with opened(planned(tmp_path, "study.trials=3", late)) as session:
        assert [v["optimizer.lr"] for _, v in play(session, 99)] == [0.02]


def test_trial_0_keeps_the_values_that_it_started_with(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    file = tmp_path / "model" / "mine.yaml"
    line = ("model=mine", "search=none", "model.width=int(interval(1,9))", "sampler=random", "study.trials=3")
    made = []
    for width in (20, 30):
        file.write_text(f"_target_: a.B\nwidth: {width}\n")
        made.append(build_plan([f"home={tmp_path}", *line], tmp_path))
    for study in made:
        with opened(study) as session:
            assignment = session.queue.ask()
            assert assignment is not None
            assert assignment.config["model"]["width"] == 20
            assert session.read(0).params == {"model.width": 20}
            session.writer.pause(0)


@pytest.mark.parametrize("pruner", ["scheduler=median", "scheduler=hyperband"])
def test_no_trial_is_pruned_before_the_configured_number_of_epochs(tmp_path: Path, pruner: str) -> None:
    at = {"scheduler=median": "scheduler.warmup_epochs=2", "scheduler=hyperband": "scheduler.min_epochs=2"}[pruner]
    more = ["scheduler.startup_trials=1"] if pruner == "scheduler=median" else ["scheduler.reduction_factor=2"]
    pruned_after = set()
    with opened(planned(tmp_path, pruner, at, *more, "trainer.max_epochs=4", "study.trials=12")) as session:
        for number in range(12):
            session.queue.ask()
            for e in range(4):
                session.writer.record(epoch(number, e, 1.0 / (number + 1)))
                if session.writer.should_prune(number):
                    pruned_after.add(e + 1)
                    session.writer.prune(number)
                    break
            else:
                session.writer.complete(number)
    assert min(pruned_after) == 2
