"""The duration of a run in MLflow is the time of work, without pauses."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from overnight.protocol import Progress
from overnight.search.record import TrialRecord
from overnight.tracking.duration import end_of_study, end_of_trial, time_of_work


def trial(*ends: float, state: str = "complete", started_at: float | None = 0.0, **more: Any) -> TrialRecord:
    """Return a trial whose epochs take ten seconds and end at `ends`."""
    history = tuple(Progress(0, n, {}, at, 10.0) for n, at in enumerate(ends))
    fields: dict[str, Any] = {"ended_at": ends[-1] + 1 if state == "complete" else None, **more}
    return TrialRecord(0, state, {}, history, None, None, "", started_at, fields["ended_at"])  # type: ignore[arg-type]


def test_a_trial_without_a_pause_ends_when_it_ended() -> None:
    assert end_of_trial(trial(12, 23, 34)) == 35
    assert end_of_trial(trial(state="failed", ended_at=7.0)) == 7


def test_the_pauses_of_a_trial_do_not_count() -> None:
    night = 8 * 3600
    assert end_of_trial(trial(12, 22, 32 + night, 42 + night, started_at=21.0 + night)) == 43


def test_the_run_of_a_trial_starts_when_the_trial_started_first() -> None:
    night = 8 * 3600
    resumed = trial(12, 22, 32 + night, 42 + night, started_at=21.0 + night)
    assert resumed.first_started_at == 2
    assert trial(12, 22).first_started_at == 0
    assert trial(started_at=None, state="waiting").first_started_at is None


def test_a_paused_trial_ends_with_its_last_epoch_whenever_mlflow_is_written() -> None:
    assert end_of_trial(trial(12, 22, state="paused")) == 22
    assert end_of_trial(trial(state="paused")) is None


def test_a_trial_that_was_paused_when_the_search_ended_ends_with_its_last_epoch_too() -> None:
    hours = 3 * 3600.0
    settled = replace(trial(12, 22, state="pruned", ended_at=hours), until=2, max_epochs=20)
    assert end_of_trial(settled) == 22
    assert end_of_trial(replace(settled, until=None)) == hours, "it was pruned then"


def test_a_study_ends_after_the_time_in_which_a_trial_was_worked_on() -> None:
    assert end_of_study(0, []) == 0
    assert end_of_study(0, [trial(12, 22)]) == 23
    assert end_of_study(0, [trial(12, 22), trial(13, 24, started_at=2.0)]) == 25, "two slots"
    assert end_of_study(0, [trial(12, 22), trial(40, 50, started_at=27.0)]) == 51, "the start of a process is work"


def test_the_pauses_of_a_study_do_not_count() -> None:
    night = 8 * 3600.0
    first = trial(12, 22)
    assert end_of_study(0, [first, trial(night + 12, night + 22, started_at=night)]) == 23 + 23
    resumed = trial(12, 22, night + 15, night + 25, started_at=night)
    assert end_of_study(0, [resumed]) == 22 + 26


def test_the_time_of_work_counts_what_ran_before_a_pause() -> None:
    night = 8 * 3600.0
    resumed = trial(12, 22, night + 15, night + 25, started_at=night)
    assert time_of_work([]) == 0
    assert time_of_work([resumed]) == 20 + 26, "the start of the process before the pause is not known"
    assert time_of_work([trial(12, 22), resumed]) == 23 + 26


def test_a_trial_that_failed_at_once_has_a_duration() -> None:
    assert end_of_study(5, [trial(state="failed", started_at=5.0, ended_at=8.0)]) == 8
