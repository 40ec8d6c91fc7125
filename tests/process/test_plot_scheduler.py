"""Pictures appear in MLflow beside the trials that they are of, cost no slot anything, and can't fail a study."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from overnight import api
from overnight.config.compose import study_location
from overnight.plots.process import give_way
from overnight.report.live import NullScreen
from overnight.runner import plot_scheduler
from overnight.runner.plot_scheduler import PlotScheduler
from overnight.search.build_plan import build_plan
from overnight.search.record import TrialRecord
from overnight.study.snapshot import StudyView, view
from overnight.system import forkserver
from overnight.tracking import store
from support.commands import SMALL

DRAWN = {"weights.png", "curves.png", "confusion.png", "mistakes.png", "in-words.md"}


def held(found: StudyView) -> dict[str, set[str]]:
    """Run name -> the pictures that MLflow holds of it; runs with none left out."""
    client = store.open_client(found.plan.settings.location)
    assert found.experiment_id is not None
    runs = client.search_runs([found.experiment_id])
    shown = {r.info.run_name: {a.path for a in client.list_artifacts(r.info.run_id, "pictures")} for r in runs}
    return {name: {p.removeprefix("pictures/") for p in paths} for name, paths in shown.items() if paths}


def new_bests(found: StudyView) -> set[str]:
    """The trials that were the best so far when they ended, in the order in which they did."""
    ended = sorted((r for r in found.records if r.state == "complete"), key=lambda r: r.ended_at or 0.0)
    return {
        f"trial-{r.number:04d}"
        for i, r in enumerate(ended)
        if all((e.objective or 0.0) < (r.objective or 0.0) for e in ended[:i])
    }


def test_every_new_best_and_the_study_itself_have_their_pictures_in_mlflow(finished: StudyView) -> None:
    shown = held(finished)
    assert finished.best is not None
    assert f"trial-{finished.best.number:04d}" in shown
    assert set(shown) == {*new_bests(finished), finished.name}
    assert all(pictures == DRAWN for pictures in shown.values())


def test_what_a_kill_left_undrawn_is_drawn_for_the_winner_at_the_next_start(
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
    assert held(found) == {winner: DRAWN, found.name: DRAWN}
    folder = home / "pictures" / "digits-mlp" / winner
    assert {p.name for p in folder.iterdir()} == {*DRAWN, "drawn.json"}, "the weights held for it are let go"
    before = (folder / "weights.png").stat().st_mtime_ns
    api.run(build_plan(lines), screen=NullScreen())
    assert (folder / "weights.png").stat().st_mtime_ns == before, "what is drawn as asked is not drawn again"


def test_a_network_that_ends_whoever_draws_it_fails_no_study(
    tune: Callable[..., api.Result], home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plot_scheduler, "APART_S", 0.0)  # it is drawn while the other trial runs, and once more
    marker = home / "marker"
    result = tune(
        "pictures.when=best", "search=none", "study.trials=2", "trainer.max_epochs=1", "~model.hidden_sizes",
        "~model.activation", "~model.dropout", "~model.batch_norm", f"+model.marker={marker}",
        "model._target_=user_package.habits.EndsWhoeverDrawsIt", "data._target_=user_package.with_loaders.DigitsData",
        "~data.split_seed", "~data.normalise", "~data.subset", "~data.augment",
    )  # fmt: skip
    assert [r.state for r in result.records] == ["complete"] * 2
    assert result.mlflow_error is None
    assert marker.read_text().split()[-1] == "0", "nothing is left to give way to once the trials are through"
    assert not list((home / "pictures").rglob("*.json"))


def test_while_trials_run_drawings_start_apart_and_with_the_newest_best(
    finished: StudyView, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[tuple[int, bool]] = []
    now = 1000.0
    monkeypatch.setattr(plot_scheduler, "time", SimpleNamespace(monotonic=lambda: now))
    monkeypatch.setattr(PlotScheduler, "_hold", lambda *_: None)  # other tests look into that home
    monkeypatch.setattr(
        PlotScheduler, "_start", lambda _, record, gives_way: started.append((record.number, gives_way))
    )
    bests = finished.records[:3]
    pictures = PlotScheduler(finished.plan, "another study's", mlflow_sync=None)  # type: ignore[arg-type]
    for record in bests:
        pictures.want(record)
    pictures.tick()
    assert started == [], "nor is the first drawn at once"
    for expected in ([(2, True)], [(2, True), (1, True)]):
        now += 29
        pictures.tick()
        assert started == expected[:-1]
        now += 1
        pictures.tick()
        pictures.tick()
        assert started == expected
    pictures.want(bests[1])
    pictures.tick(gives_way=False)
    assert started[2:] == [(0, False), (1, False)], "once the trials are through nothing is waited for"


def test_a_study_that_goes_on_has_its_best_ones_drawn_meanwhile(
    tune: Callable[..., api.Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    gave_way: list[bool] = []
    start = PlotScheduler._start

    def seen(self: PlotScheduler, record: TrialRecord, gives_way: bool) -> None:
        gave_way.append(gives_way)
        start(self, record, gives_way)

    monkeypatch.setattr(PlotScheduler, "_start", seen)
    monkeypatch.setattr(plot_scheduler, "APART_S", 0.0)
    tune("search=none", "study.trials=3", "slots=1", "trainer.max_epochs=2", "pictures.when=best")
    assert True in gave_way


def test_what_another_supervisor_has_drawn_is_not_drawn_over(
    finished: StudyView, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[int] = []
    shown: list[int] = []
    monkeypatch.setattr(PlotScheduler, "_start", lambda _, record, *__: started.append(record.number))
    monkeypatch.setattr(PlotScheduler, "_hold", lambda *_: None)
    assert finished.best is not None
    folder = finished.plan.paths.trial_plots(finished.best.number)
    uid = json.loads((folder / "drawn.json").read_text())["study"]
    mlflow_sync = SimpleNamespace(attach_plots=lambda number, _: shown.append(number))
    pictures = PlotScheduler(finished.plan, uid, mlflow_sync)  # type: ignore[arg-type]
    pictures.want(finished.best)
    pictures.tick(gives_way=False)
    assert started == []
    assert shown == [finished.best.number]


def _priority(path: Path) -> None:
    give_way()
    path.write_text(f"{os.getpriority(os.PRIO_PROCESS, 0)} {getattr(os, 'sched_getscheduler', lambda _: '')(0)}")


def test_a_drawing_takes_only_what_the_trials_leave_over(tmp_path: Path) -> None:
    forkserver.warm_up()
    child = forkserver.fork(_priority, tmp_path / "priority")
    child.join(60)
    idle = getattr(os, "SCHED_IDLE", "")
    assert (tmp_path / "priority").read_text().strip() == f"19 {idle}".strip()


@pytest.mark.parametrize("when", ["never", "winner"])
def test_pictures_are_drawn_when_they_are_asked_for(tune: Callable[..., api.Result], home: Path, when: str) -> None:
    result = tune("search=none", "study.trials=2", "slots=1", "trainer.max_epochs=1", f"pictures.when={when}")
    assert result.best is not None
    found = [p.name for p in (home / "pictures").glob("*/*")]
    assert found == ([f"trial-{result.best.number:04d}"] if when == "winner" else [])


def test_the_supervisor_has_pictures_drawn_without_importing_torch_or_matplotlib() -> None:
    code = (
        "import sys, overnight.runner.plot_scheduler; print([m for m in ('torch', 'matplotlib') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "[]\n"
