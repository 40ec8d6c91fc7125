"""`overnight doctor` repairs of a shared study what no other process owns."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path

import pytest

from overnight.cli import doctor
from overnight.config.paths import StudyLocation
from overnight.search.plan import Plan
from overnight.search.record import TrialRecord
from overnight.study.session import StudySession
from overnight.study.snapshot import StudyView, view
from support.mlflow_store import assert_equal, children, client_of
from support.shared_sessions import LEASE_S, Join, ask_number, epoch

pytestmark = pytest.mark.long

DOCTORS_LEASE_S = 4.0  # it is renewed once a second while MLflow is written


@pytest.fixture
def abandoned(study: Plan, join: Join) -> StudyLocation:
    """The location of a study with a complete trial, and one whose process has been killed while it ran."""
    a = join("a")
    for number in (0, 1):
        assert ask_number(a) == number
        a.writer.record(epoch(number, 0))
    a.writer.complete(0)
    a.writer.flush()
    a.coordinator.release([0])
    a.coordinator.keep_alive()
    time.sleep(1.2 * LEASE_S)  # it is no peer any more
    return dataclasses.replace(study.settings.location, lease_s=DOCTORS_LEASE_S)


def read(location: StudyLocation, name: str) -> StudyView:
    found, _ = view(location, name)
    assert found is not None
    return found


def test_the_doctor_returns_a_trial_of_a_killed_process_to_the_queue_and_leaves_it_free(
    abandoned: StudyLocation, study: Plan, join: Join, tmp_path: Path
) -> None:
    found = doctor.find_defects(abandoned, study.name)
    assert "trial-0001: running, but its process has ended" in [f"{d.subject}: {d.problem}" for d in found]
    assert doctor.repair(abandoned, study.name, found) == {}
    repaired = read(abandoned, study.name)
    assert [r.state for r in repaired.records] == ["complete", "paused"]
    assert_equal(tmp_path, repaired)
    assert ask_number(join("b")) == 1


def test_the_doctor_leaves_a_trial_to_a_supervisor_that_joins_meanwhile(
    abandoned: StudyLocation, study: Plan, join: Join, tmp_path: Path
) -> None:
    joined: list[StudySession] = []

    def join_once(_: str) -> None:
        if not joined:
            joined.append(join("b", 30.0))

    found = doctor.find_defects(abandoned, study.name)
    remaining = doctor.repair(abandoned, study.name, found, join_once)
    assert [(d.subject, why) for d, why in remaining.items()] == [
        ("trial-0001", "left to the supervisors that have joined the study")
    ]
    assert [r.state for r in read(abandoned, study.name).records] == ["complete", "running"]
    assert set(children(tmp_path)) == {0}, "the run of trial 1 is its next owner's to write"


def test_the_doctor_removes_a_run_without_a_trial_only_while_no_supervisor_is_there(
    abandoned: StudyLocation, study: Plan, join: Join, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert doctor.repair(abandoned, study.name) == {}  # creates the experiment
    tags = {"overnight.uid": read(abandoned, study.name).uid, "overnight.trial": "2"}
    client_of(tmp_path).create_run("1", tags=tags)
    assert doctor.repair(abandoned, study.name) == {}
    assert set(children(tmp_path)) == {0, 1}
    client_of(tmp_path).create_run("1", tags=tags)
    records = StudySession.records

    def then_join(session: StudySession) -> list[TrialRecord]:
        monkeypatch.setattr(StudySession, "records", records)
        join("b", 30.0)
        return records(session)

    monkeypatch.setattr(StudySession, "records", then_join)
    assert doctor.repair(abandoned, study.name) == {}
    assert set(children(tmp_path)) == {0, 1, 2}, "it may belong to a trial that the supervisor has just created"
