"""Patience, terminators and deadlines, on real studies and real processes."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from overnight import api
from overnight.protocol import Progress
from overnight.report import finding, publish, report
from overnight.search import deadline, patience
from overnight.search.build_plan import build_plan
from overnight.search.limits import Launch
from overnight.search.record import TrialRecord
from overnight.search.terminator import Terminator
from overnight.study.snapshot import StudyView, view
from overnight.system import forkserver
from support.commands import LATE

Tune = Callable[..., api.Result]
CHEAP = (
    "~model.hidden_sizes", "~model.activation", "~model.dropout", "~model.batch_norm", "search=none",
    "model._target_=user_networks.Plain", "trainer.max_epochs=1", "scheduler=none", "sampler=random", "study.trials=30",
    "study.confirm.seeds=0",
)  # fmt: skip


def record(number: int, values: list[float], state: str = "complete") -> TrialRecord:
    history = tuple(Progress(number, e, {"val/accuracy": v}, 1e9, 1.0) for e, v in enumerate(values))
    end = 1e9 + number
    return TrialRecord(number, state, {}, history, values[-1], None, "", end, end)  # type: ignore[arg-type]


# Patience -------------------------------------------------------------------------------------------------------------


def test_changes_within_the_noise_are_no_improvement_until_they_add_up() -> None:
    settings = build_plan(["study.patience=3", "scheduler=median"]).settings
    steady, wobbly = [0.5, 0.6, 0.7, 0.7, 0.7, 0.7], [0.5, 0.6, 0.70, 0.68, 0.70, 0.68, 0.70]
    assert patience.noise([record(0, steady)], "val/accuracy") == 0.0
    noise = patience.noise([record(0, wobbly)], "val/accuracy")
    assert noise == pytest.approx(0.02), "√2 times the curve's own standard deviation, 0.02 / √2"
    finals = [0.70, 0.71, 0.715, 0.72, 0.73]
    curves = [record(n, [v + w - 0.70 for w in wobbly]) for n, v in enumerate(finals)]
    assert [patience.trials_since_improvement(curves[:n], settings) for n in range(1, 6)] == [0, 1, 2, 3, 0]
    assert patience.stop_reason(curves[:3], settings) is None
    assert "study.patience=3: the last 3 trials were no better than the best" in patience.stop_reason(
        curves[:4], settings
    )


def test_pruned_trials_count_towards_patience_and_failed_ones_do_not() -> None:
    settings = build_plan(["study.patience=3", "scheduler=median"]).settings
    trials = [record(0, [0.7]), record(1, [0.6], "pruned"), record(2, [0.9], "failed"), record(3, [0.5])]
    assert patience.trials_since_improvement(trials, settings) == 2


def test_under_halving_patience_counts_the_epochs_of_all_trials() -> None:
    plan = build_plan(["study.patience=2", "trainer.max_epochs=2", "scheduler=halving"])
    settings = plan.settings
    trials = [record(0, [0.5, 0.9]), record(1, [0.6], "paused"), record(2, [0.7, 0.8, 0.9], "failed")]
    assert patience.epochs_since_improvement(trials[:1], settings) == 0
    assert patience.epochs_since_improvement(trials[:2], settings) == 1
    assert patience.finish_reason(trials[:2], plan) is None
    assert patience.epochs_since_improvement(trials, settings) == 4
    assert "in the last 4 epochs no trial was better" in (patience.finish_reason(trials, plan) or "")


@pytest.mark.long
def test_patience_ends_a_halving_search_with_a_complete_trial(tune: Tune) -> None:
    line = (*CHEAP, "+model.lr=choice(1e-9,2e-9,3e-9,4e-9)", "study.patience=2", "trainer.max_epochs=4")
    result = tune(*line, "scheduler=halving", "scheduler.min_epochs=1", "study.trials=null")
    assert result.stop_reason == "limit"
    assert any(note.startswith("study.patience=2: in the last") for note in result.limit_notes)
    assert sum(r.state == "complete" for r in result.records) >= 1
    assert sum(len(r.history) for r in result.records) < 30 * 4 / 2


@pytest.mark.long
def test_patience_ends_a_search_and_the_same_command_trains_nothing_more(tune: Tune) -> None:
    line = (*CHEAP, "+model.lr=choice(1e-9,2e-9,3e-9,4e-9)", "study.patience=3")
    first = tune(*line)
    assert first.stop_reason == "limit"
    done = sum(r.done for r in first.records)
    assert 4 <= done <= 12
    assert any(note.startswith("study.patience=3: the last") for note in first.limit_notes)
    found, _ = view(first.plan.settings.location)
    assert found.state == "complete", "nothing remains to be done unless the budget is raised"
    assert report.build_report(found).stop_notes == first.limit_notes
    again = tune(*line)
    assert (again.stop_reason, again.did_work, len(again.records)) == ("limit", False, len(first.records))
    more = tune(*line[:-1], f"study.trials={len(first.records) + 1}")
    assert (more.stop_reason, len(more.records)) == ("complete", len(first.records) + 1)


# Terminators ----------------------------------------------------------------------------------------------------------


def test_the_stagnation_terminator_ends_a_search(tune: Tune) -> None:
    result = tune(
        *CHEAP, "+model.lr=choice(1e-9,2e-9,3e-9,4e-9)",
        "terminator=stagnation", "terminator.stagnation=2", "terminator.min_trials=3",
    )  # fmt: skip
    assert result.stop_reason == "limit"
    assert 3 <= sum(r.done for r in result.records) < 30, "the helper process answers while trials of 0.1 s go on"
    assert result.limit_notes[0].startswith("terminator=stagnation: after ")


@pytest.mark.parametrize(("name", "enough"), [("emmr", 40), ("regret_bound", 25)])
def test_evaluators_that_need_torch_run_in_a_helper_process(name: str, enough: int) -> None:
    study = build_plan([f"terminator={name}", "study.trials=99", "scheduler=median"])
    (lr,) = (n for n in study.space.unconditional() if n == "optimizer.lr")
    sample = {n: d.low if hasattr(d, "low") else d.choices[0] for n, d in study.space.unconditional().items()}
    records = [
        TrialRecord(n, "complete", {**sample, lr: 10 ** (-4 + 3 * n / enough)}, (), 0.9 + 1e-9 * n, None, "", 0, 0)
        for n in range(enough)
    ]
    forkserver.warm_up()
    assert forkserver.is_warm(60)
    terminator = Terminator(study, forkserver.fork)
    try:
        assert terminator.stop_reason(records[:5]) is None, "too few"
        assert not terminator.helper.is_alive
        assert terminator.stop_reason(records) is None, "only the first question of a launch is waited for"
        terminator.close()
        terminator = Terminator(study, forkserver.fork)  # of the next launch
        reason = terminator.stop_reason(records)
        assert terminator.error is None
        assert terminator.helper.is_alive
    finally:
        terminator.close()
    if name == "regret_bound":
        assert reason is not None, "all values are equal: no improvement is expected"
        assert reason.startswith("terminator=regret_bound: after 25 complete trials")


# A deadline -----------------------------------------------------------------------------------------------------------


@pytest.mark.long
def test_a_trial_that_a_deadline_interrupts_is_resumed_by_the_next_launch(tune: Tune, home: Path) -> None:
    slow = tuple(o.replace("Plain", "Slow") for o in CHEAP if not o.startswith(("trainer", "study.trials")))
    line = (*slow, "trainer.max_epochs=3", "+model.lr=choice(0.1,0.01)", "slots=1", "checkpoint.every_s=0")
    started_at = time.time()
    result = tune(*line, "study.trials=2", f"study.hours={11 / 3600}")
    assert time.time() - started_at < 11
    assert result.stop_reason == "limit"
    assert not any(r.done for r in result.records)
    assert "ended the search: 0 of 2 trials are done" in result.limit_notes[0]
    assert "there was no time for one whole trial" in result.limit_notes[0]
    found, _ = view(result.plan.settings.location)
    assert found.state == "paused"
    assert report.build_report(found).sentence == "no trial is complete yet, so there is no result." or found.best
    assert result.limit_notes[0] in (home / "logs" / "digits-mlp" / "launch.log").read_text()
    whole = tune(*line, "study.trials=2", "study.hours=1")
    assert (whole.stop_reason, whole.limit_notes) == ("complete", ())
    assert [r.state for r in whole.records] == ["complete", "complete"]
    assert [e.index for e in whole.records[0].history] == [0, 1, 2]


@pytest.mark.long
def test_a_page_that_would_be_late_is_not_written(finished: StudyView) -> None:
    page = finished.plan.paths.report
    page.unlink(missing_ok=True)
    kept: list[dict[str, list[str]]] = []

    def launch(seconds: float) -> Launch:
        study = replace(finished.plan.settings.study, hours=seconds / 3600)
        given = replace(finished.plan, settings=replace(finished.plan.settings, study=study))
        return Launch(given, time.time(), lambda seen: kept.append({"notes": list(seen["notes"])}))

    forkserver.warm_up()
    assert forkserver.is_warm(60)
    found = finding.from_view(finished)
    assert publish.publish_before_deadline(finished, found, launch(60)) == (page, None)
    assert page.read_text().endswith("</html>\n")
    started_at = time.monotonic()
    late = publish.publish_before_deadline(finished, found, launch(deadline.EXIT_S + 0.01))
    assert time.monotonic() - started_at < 5 * LATE
    assert late == (None, None), "MLflow is synchronised"
    (note,) = kept[-1]["notes"]
    assert note.endswith(f" left no time for the page; `overnight report {finished.name}` writes it")
