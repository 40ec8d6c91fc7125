"""`overnight doctor` finds and repairs the defects that kills and accidents cause."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from overnight.cli.main import cli
from overnight.report.confirm import confirmation_plan, enqueue
from overnight.search.build_plan import build_plan
from overnight.study.open import open_study
from overnight.study.snapshot import StudyView, view
from overnight.study.storage.lock import holder_file
from support.mlflow_store import assert_equal, children, client_of, forget, runs_of
from support.paths import copied_home
from support.sessions import opened, planned, play

SEVEN = (
    "study.trials=7",
    "trainer.max_epochs=6",
    "scheduler=median",
    "scheduler.startup_trials=2",
    "scheduler.warmup_epochs=1",
)


def doctor(home: Path, *arguments: str) -> Result:
    return CliRunner().invoke(cli, ["doctor", *arguments, f"home={home}"])


def bytes_below(home: Path) -> dict[Path, bytes]:
    kept = [p for p in home.rglob("*") if p.is_file() and not p.name.endswith(("-wal", "-shm"))]
    return {p: p.read_bytes() for p in kept}


def view_of(home: Path) -> StudyView:
    found, _ = view(build_plan([f"home={home}"]).settings.location)
    assert found is not None
    return found


@pytest.fixture
def copy(finished_home: Path, tmp_path: Path) -> Path:
    return copied_home(finished_home, tmp_path / "copy")


def damage(home: Path) -> list[str]:
    """Cause every kind of defect once and return their messages."""
    study = build_plan([f"home={home}", *SEVEN])
    where, client, before = study.settings.location.paths, client_of(home), children(home)
    best = view_of(home).best
    assert best is not None
    session, _ = open_study(study)
    session.queue.ask()  # then its process is killed
    session.unlock()
    holder_file(study.settings.location, study.name).write_text('{"pid": 999999, "created": 0}')
    client.delete_run(before[1].info.run_id)
    client.update_run(before[2].info.run_id, status="RUNNING")
    forget(home, before[3].info.run_id, "params", "key = 'optimizer.lr'")
    forget(home, before[4].info.run_id, "metrics", "key = 'val/loss' AND step = 0")
    mine = {"overnight.uid": session.attributes.uid}
    client.create_run("1", tags={**mine, "overnight.trial": "77"})
    client.create_run("1", tags={**mine, "overnight.trial": "0"})
    (parent,) = [r.info.run_id for r in runs_of(home) if r.data.tags.get("overnight.role") == "study"]
    client.update_run(parent, status="RUNNING")
    client.delete_tag(parent, "overnight.best")
    (home / "mlflow.db.creating-999999").write_bytes(b"half")
    paused, gone, kept = (where.study(study.name).checkpoint(n) for n in (6, 99, best.number))
    for folder in (paused, gone):
        folder.mkdir()
    (paused / "state.ckpt").write_bytes(b"rubbish")
    (kept / "state.before.ckpt").touch()
    worse = where.study(study.name).checkpoint((best.number + 1) % 6)
    worse.mkdir()
    return [
        "mlflow.db.creating-999999: database whose creation was interrupted",
        "digits-mlp.holder.json: names a process that has ended",
        "trial-0006: running, but its process has ended",
        f"{worse.relative_to(home)}: checkpoints of a ",
        f"{kept.relative_to(home)}/state.before.ckpt: training state of a complete trial",
        f"{gone.relative_to(home)}: checkpoints of a trial that does not exist",
        f"{paused.relative_to(home)}/state.ckpt: not a state that overnight wrote",
        ": a run of trial-0077, which the Optuna storage does not have",
        ": a second run of trial-0000",
        "run of trial-0001: missing: the whole run",
        "run of trial-0002: missing: the status FINISHED: it is RUNNING",
        "run of trial-0003: missing: the param optimizer.lr",
        "run of trial-0004: missing: values of val/loss",
        "run of trial-0006: missing: the whole run",
        "run of digits-mlp: missing: an end: its status is RUNNING, the tag overnight.best",
    ]


def test_every_defect_is_reported_and_then_repaired(copy: Path) -> None:
    messages = damage(copy)
    view_of(copy)  # the first reader has SQLite write its log into the database
    before = bytes_below(copy)
    checked = doctor(copy, "--dry-run")
    assert checked.exit_code == 1
    for message in messages:
        assert message in checked.output
    assert len(checked.output.splitlines()) == len(messages)
    assert bytes_below(copy) == before, "a dry run changes nothing"

    repaired = doctor(copy, "digits-mlp")
    assert repaired.exit_code == 0, repaired.output
    assert len(repaired.output.splitlines()) == len(messages)
    again = doctor(copy, "--dry-run", "--json")
    assert (again.exit_code, json.loads(again.output)) == (0, {"studies": {"digits-mlp": []}, "remaining": 0})
    found = view_of(copy)
    assert (found.state, found.count("paused")) == ("paused", 1)
    assert_equal(copy, found)
    assert not list(copy.glob("*.creating-*"))


def test_a_repair_keeps_the_result_that_the_description_of_a_study_shows(copy: Path, finished: StudyView) -> None:
    client, run_id = client_of(copy), str(finished.parent_run_id)
    sentence = client.get_run(run_id).data.tags["overnight.report"]
    notes = [client.get_run(run_id).data.tags["mlflow.note.content"]]
    notes.append(notes[0].rpartition("\n")[2])  # of a launch that was ended before it published another result
    for note in notes:
        client.set_tag(run_id, "mlflow.note.content", note)
        client.delete_tag(run_id, "overnight.best")
        assert doctor(copy).exit_code == 0
        assert client.get_run(run_id).data.tags["mlflow.note.content"] == note
    assert notes[0].startswith(f"**{sentence}**")


@pytest.mark.long
def test_a_lost_parent_run_and_a_lost_experiment_are_restored(copy: Path, finished: StudyView) -> None:
    assert finished.parent_run_id is not None
    client_of(copy).delete_run(finished.parent_run_id)
    assert doctor(copy, "--dry-run").output.count("its link to the study's run") == len(finished.records)
    assert doctor(copy).exit_code == 0
    assert_equal(copy, view_of(copy))

    client_of(copy).delete_experiment("1")
    assert "MLflow: no experiment digits-mlp" in doctor(copy, "--dry-run").output
    assert doctor(copy).exit_code == 0
    assert_equal(copy, view_of(copy))
    assert len(runs_of(copy)) == len(finished.records) + 1, "the deleted parent was restored with the experiment"


def test_a_finished_study_has_no_defects(finished_home: Path) -> None:
    checked = doctor(finished_home, "--dry-run")
    assert (checked.exit_code, checked.output) == (0, "digits-mlp: no problems\n")


def test_a_defect_that_cannot_be_repaired_is_reported_and_exits_1(
    copy: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (copy / "mlflow.db").write_bytes(b"this was a database once" * 1000)
    checked = doctor(copy)
    assert checked.exit_code == 1
    assert "MLflow: cannot be read: " in checked.output
    assert "(still wrong)" in checked.output
    capfd.readouterr()


def test_a_running_study_is_not_repaired(home: Path, overnight: Callable[..., object]) -> None:
    study = build_plan([f"home={home}", "study.name=held"])
    session, _ = open_study(study)
    try:
        done = overnight("doctor", f"home={home}")
    finally:
        session.close()
    assert done.returncode == 2  # type: ignore[attr-defined]
    assert "held: process " in done.stderr  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "words", ["doctor small.confirm", "report small.confirm", "register small.confirm", "test small.confirm/0"]
)
def test_a_command_that_needs_a_search_refuses_its_confirmation(tmp_path: Path, words: str) -> None:
    plan = planned(tmp_path, "study.name=small", "scheduler=none")
    with opened(plan) as search:
        play(search, 1)
        records = search.records()
    with opened(confirmation_plan(plan, records), comparable=False) as session:
        enqueue(session, plan, records)
    done = CliRunner().invoke(cli, [*words.split(), f"home={tmp_path}"])
    key = "test" if words.startswith("test") else "study"
    assert done.stderr == f"{key}: must be a search, got a confirmation, small.confirm; name small\n"
    assert done.exit_code == 2
