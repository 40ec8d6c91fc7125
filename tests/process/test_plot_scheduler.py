"""Plots appear in MLflow beside their trials, take no slot, and cannot fail a study."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from overnight import api
from overnight.config.compose import study_location
from overnight.plots.process import lower_priority
from overnight.protocol import DrawSpec
from overnight.report import page, report
from overnight.report.live import NullScreen
from overnight.runner import plot_scheduler
from overnight.runner.plot_scheduler import PlotScheduler
from overnight.search.build_plan import build_plan
from overnight.search.plan import Plan
from overnight.study.snapshot import StudyView, view
from overnight.system import forkserver
from overnight.tracking import store
from support.commands import SMALL


@pytest.fixture
def started_plots(monkeypatch: pytest.MonkeyPatch) -> list[DrawSpec]:
    """Return a list of the plots that are started. Their processes end at once."""
    started: list[DrawSpec] = []
    fork = forkserver.fork

    def start(_: Callable[..., None], spec: DrawSpec, __: Path) -> BaseProcess:
        started.append(spec)
        process = fork(time.sleep, 0.0)
        process.join()
        return process

    monkeypatch.setattr(forkserver, "fork", start)
    return started


def with_home(study: Plan, home: Path) -> Plan:
    """Return the plan with another home: other tests look at the files of its own."""
    location = replace(study.settings.location, home=str(home))
    return replace(study, settings=replace(study.settings, found_location=location))


DRAWN = {"weights.png", "curves.png", "confusion.png", "mistakes.png", "in-words.md"}


def plots_by_run(found: StudyView) -> dict[str, set[str]]:
    """Return run name -> its plots in MLflow, without runs that have none."""
    client = store.open_client(found.plan.settings.location)
    assert found.experiment_id is not None
    runs = client.search_runs([found.experiment_id])
    shown = {r.info.run_name: {a.path for a in client.list_artifacts(r.info.run_id, "pictures")} for r in runs}
    return {name: {p.removeprefix("pictures/") for p in paths} for name, paths in shown.items() if paths}


def new_bests(found: StudyView) -> set[str]:
    """Return the trials that were the best so far when they ended, in the order of their ends."""
    ended = sorted((r for r in found.records if r.state == "complete"), key=lambda r: r.ended_at or 0.0)
    return {
        f"trial-{r.number:04d}"
        for i, r in enumerate(ended)
        if all((e.objective or 0.0) < (r.objective or 0.0) for e in ended[:i])
    }


def test_every_new_best_trial_and_the_study_have_their_plots_in_mlflow(finished: StudyView) -> None:
    shown = plots_by_run(finished)
    assert finished.best is not None
    assert f"trial-{finished.best.number:04d}" in shown
    assert set(shown) == {*new_bests(finished), finished.name}
    assert all(pictures == DRAWN for pictures in shown.values())


def test_the_report_page_shows_the_pictures_of_the_winner(finished: StudyView) -> None:
    html = page.page(report.build_report(finished))
    heads = re.findall(r'<h3>([^<]*)</h3><img alt="([^"]*)" src="data:image/png;base64,', html)
    assert [title for title, _ in heads] == ["Confusion matrix", "The most confident mistakes", "First weights"]
    assert all(len(words) > 40 for _, words in heads)
    other = replace(finished, uid="a later study of this name")
    assert "<img" not in page.page(report.build_report(other))


@pytest.mark.long
def test_the_next_start_draws_the_winners_plots_that_a_kill_left_undrawn(
    finished_home: Path, home: Path, finished: StudyView
) -> None:
    for part in ("optuna.db", "checkpoints"):
        source = finished_home / part
        (shutil.copytree if source.is_dir() else shutil.copy)(source, home / part)
    lines = [f"home={home}", *SMALL, "pictures.look=black_zero"]
    assert api.run(build_plan(lines), screen=NullScreen()).stop_reason == "complete"
    found, _ = view(study_location([f"home={home}"]))
    assert found is not None
    assert finished.best is not None
    winner = f"trial-{finished.best.number:04d}"
    assert plots_by_run(found) == {winner: DRAWN, found.name: DRAWN}
    folder = home / "pictures" / "digits-mlp" / winner
    assert {p.name for p in folder.iterdir()} == {*DRAWN, "drawn.json"}, "the copy of its weights is deleted"
    before = (folder / "weights.png").stat().st_mtime_ns
    api.run(build_plan(lines), screen=NullScreen())
    assert (folder / "weights.png").stat().st_mtime_ns == before, "plots that exist are not drawn again"


@pytest.mark.long
def test_a_network_that_ends_the_drawing_process_fails_no_study(
    tune: Callable[..., api.Result], home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plot_scheduler, "INTERVAL_S", 0.0)  # drawn while the other trial runs, and again at the end
    marker = home / "marker"
    result = tune(
        "pictures.when=best", "search=none", "study.trials=2", "trainer.max_epochs=1", "~model.hidden_sizes",
        "~model.activation", "~model.dropout", "~model.batch_norm", f"+model.marker={marker}",
        "model._target_=user_package.habits.DiesWhenLoaded", "data._target_=user_package.with_loaders.DigitsData",
        "~data.split_seed", "~data.normalise", "~data.subset", "~data.augment",
    )  # fmt: skip
    assert [r.state for r in result.records] == ["complete"] * 2
    assert result.mlflow_error is None
    assert marker.read_text().split()[-1] == "0", "the last process has a normal priority"
    assert not list((home / "pictures").rglob("*.json"))


def test_while_trials_run_plots_start_at_intervals_newest_best_first(
    finished: StudyView, tmp_path: Path, started_plots: list[DrawSpec]
) -> None:
    now = 1000.0
    bests = finished.records[:3]
    scheduler = PlotScheduler(with_home(finished.plan, tmp_path), "another study's", None, clock=lambda: now)  # type: ignore[arg-type]

    def started() -> list[tuple[int, bool]]:
        return [(int(spec.folder.name.removeprefix("trial-")), spec.low_priority) for spec in started_plots]

    for record in bests:
        scheduler.want(record)
    scheduler.tick()
    assert started() == [], "the first is not drawn at once either"
    for expected in ([(2, True)], [(2, True), (1, True)]):
        now += 29
        scheduler.tick()
        assert started() == expected[:-1]
        now += 1
        scheduler.tick()
        scheduler.tick()
        assert started() == expected
    scheduler.want(bests[1])
    scheduler.tick(low_priority=False)
    scheduler.tick(low_priority=False)
    assert started()[2:] == [(0, False), (1, False)], "once the trials have ended, there is no interval"


@pytest.mark.long
def test_the_best_trials_are_plotted_while_the_study_runs(
    tune: Callable[..., api.Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    low_priority: list[bool] = []
    fork = forkserver.fork

    def seen(target: Callable[..., None], *args: Any) -> BaseProcess:
        low_priority.extend(spec.low_priority for spec in args if isinstance(spec, DrawSpec))
        return fork(target, *args)

    monkeypatch.setattr(forkserver, "fork", seen)
    monkeypatch.setattr(plot_scheduler, "INTERVAL_S", 0.0)
    tune("search=none", "study.trials=3", "slots=1", "trainer.max_epochs=2", "pictures.when=best")
    assert True in low_priority


def test_what_another_supervisor_has_drawn_is_not_drawn_again(
    finished: StudyView, tmp_path: Path, started_plots: list[DrawSpec]
) -> None:
    shown: list[int] = []
    assert finished.best is not None
    study, number = with_home(finished.plan, tmp_path), finished.best.number
    shutil.copytree(finished.plan.paths.trial_plots(number), folder := study.paths.trial_plots(number))
    uid = json.loads((folder / "drawn.json").read_text())["study"]
    mlflow_sync = SimpleNamespace(attach_plots=lambda number, _: shown.append(number))
    scheduler = PlotScheduler(study, uid, mlflow_sync)  # type: ignore[arg-type]
    scheduler.want(finished.best)
    scheduler.tick(low_priority=False)
    assert started_plots == []
    assert shown == [finished.best.number]


def _priority(path: Path) -> None:
    os.setsid()  # otherwise the niceness of the session's autogroup is that of all tests
    lower_priority()
    path.write_text(f"{os.getpriority(os.PRIO_PROCESS, 0)} {getattr(os, 'sched_getscheduler', lambda _: '')(0)}")


def test_a_plot_uses_only_spare_processor_time(tmp_path: Path) -> None:
    forkserver.warm_up()
    child = forkserver.fork(_priority, tmp_path / "priority")
    child.join(60)
    idle = getattr(os, "SCHED_IDLE", "")
    assert (tmp_path / "priority").read_text().strip() == f"19 {idle}".strip()


@pytest.mark.long
@pytest.mark.parametrize("when", ["never", "winner"])
def test_plots_are_drawn_when_the_settings_say_so(tune: Callable[..., api.Result], home: Path, when: str) -> None:
    result = tune("search=none", "study.trials=2", "slots=1", "trainer.max_epochs=1", f"pictures.when={when}")
    assert result.best is not None
    found = [p.name for p in (home / "pictures").glob("*/*")]
    assert found == ([f"trial-{result.best.number:04d}"] if when == "winner" else [])


def test_the_scheduler_imports_neither_torch_nor_matplotlib() -> None:
    code = (
        "import sys, overnight.runner.plot_scheduler; print([m for m in ('torch', 'matplotlib') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "[]\n"
