"""A study that has nothing left to do answers from its stores, and imports nothing to train or to synchronise."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from overnight import api
from overnight.config.compose import study_location
from overnight.report import finished
from overnight.search.build_plan import build_plan
from overnight.search.plan import Plan
from overnight.study.finished import finished_by
from support.commands import SMALL
from support.paths import copied_home, python_path

pytestmark = pytest.mark.long  # each test reads or runs a finished study


@pytest.fixture(scope="module")
def synchronised_home(finished_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the finished study's home, after a launch that wrote to MLflow what it had lost."""
    home = tmp_path_factory.mktemp("synchronised") / "home"
    copied_home(finished_home, home)
    execute(home, "DELETE FROM params WHERE key = 'optimizer.lr'")
    assert finished.read(plan_of(home)) is None
    result = api.run(plan_of(home), command=[*SMALL, "--config-dir=None"])
    assert (result.did_work, result.stop_reason, result.mlflow_error) == (False, "complete", None)
    with sqlite3.connect(home / "mlflow.db") as store:
        assert store.execute("SELECT count(*) FROM params WHERE key = 'optimizer.lr'").fetchone() == (6,)
    return home


@pytest.fixture
def home_of_finished(synchronised_home: Path, tmp_path: Path) -> Path:
    """A home of one's own with a finished study. A copy is finished too."""
    return shutil.copytree(synchronised_home, tmp_path / "home")


def plan_of(home: Path, *more: str) -> Plan:
    return build_plan([f"home={home}", *SMALL, *more])


# Runs the command, and reports which libraries it has imported and whether it has started a forkserver.
_TUNE = """
import json, sys
from overnight.cli import main, run
from overnight.system import forkserver

def is_finished(*given, ask=run._is_finished):
    answer = ask(*given)
    assert "hydra" not in sys.modules, "the question must not cost more than it saves"
    return answer

run._is_finished = is_finished
try:
    main.main()
except SystemExit as end:
    assert end.code == 0, end.code
heavy = ("torch", "pytorch_lightning", "mlflow", "sklearn", "matplotlib", "pandas", "scipy.optimize", "cmaes")
print(json.dumps([[m for m in heavy if m in sys.modules], forkserver._imported is not None]))
"""


def test_a_finished_study_says_so_without_torch_mlflow_or_a_forkserver(home_of_finished: Path) -> None:
    folder = home_of_finished.parent
    home_of_finished.rename(folder / "mlruns")  # the default home
    done = subprocess.run(
        [sys.executable, "-c", _TUNE, "tune", *SMALL],
        cwd=folder, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": python_path()},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    *answer, report = done.stdout.splitlines()
    assert json.loads(report) == [[], False]
    assert answer[0].startswith("digits-mlp is complete; to search more, set study.trials=12")
    assert answer[1].startswith("digits-mlp: 6 of 6 trials done")
    for words in ("best: val/accuracy", "train the winner again: overnight train", "show in MLflow: overnight ui"):
        assert words in done.stdout


@pytest.mark.long
def test_the_answer_is_that_of_the_launch_before(home_of_finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = plan_of(home_of_finished)
    study = finished.read(plan)
    assert study is not None
    quick = api.run(plan)
    monkeypatch.setattr(finished, "read", lambda _: None)
    whole = api.run(plan)
    assert quick == whole
    assert quick.finding == whole.finding
    assert quick.records == whole.records


def execute(home: Path, statement: str) -> None:
    with sqlite3.connect(home / "mlflow.db") as store:
        store.execute(statement)


CHANGES: dict[str, Callable[[Path], object]] = {
    "a run is deleted": lambda home: execute(home, "UPDATE runs SET lifecycle_stage = 'deleted' WHERE rowid = 2"),
    "a run has another status": lambda home: execute(home, "UPDATE runs SET status = 'RUNNING' WHERE rowid = 2"),
    "a metric is lost": lambda home: execute(home, "DELETE FROM latest_metrics WHERE key = 'val/loss'"),
    "a parameter is lost": lambda home: execute(home, "DELETE FROM params WHERE key = 'optimizer.lr'"),
    "a tag is changed": lambda home: execute(home, "UPDATE tags SET value = 'x' WHERE key = 'overnight.best'"),
    "MLflow's file is deleted": lambda home: (home / "mlflow.db").unlink(),
    "the winner's config is deleted": lambda home: (home / "winners/experiment/best_digits-mlp.yaml").unlink(),
    "a picture is left to draw": lambda home: (
        (home / "pictures/digits-mlp/trial-0001").mkdir(parents=True, exist_ok=True),
        (home / "pictures/digits-mlp/trial-0001/x.weights").touch(),
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_study_in_which_something_is_left_to_do_is_opened_for_work(home_of_finished: Path, change: str) -> None:
    plan = plan_of(home_of_finished)
    assert finished.read(plan) is not None
    CHANGES[change](home_of_finished)
    assert finished.read(plan) is None


@pytest.mark.parametrize(
    ("kept", "launch"),
    [({"stop_reason": "stopped"}, {}), ({"stop_reason": "failures"}, {}), ({"stop_reason": "limit"}, "deadline")],
)
def test_what_an_earlier_version_kept_of_a_launch_that_left_work_undone_is_no_answer(
    home_of_finished: Path, monkeypatch: pytest.MonkeyPatch, kept: dict[str, str], launch: str
) -> None:
    plan = plan_of(home_of_finished)
    study = finished.read(plan)
    assert study is not None
    ended = {**study.launch, "ended_by": launch} if launch else study.launch
    changed = dataclasses.replace(study, finished={**study.finished, **kept}, launch=ended)
    monkeypatch.setattr(finished, "view", lambda *_: (changed, [study.name]))
    assert finished.read(plan) is None


@pytest.mark.parametrize("more", ["study.trials=7", "slots=3", "pictures.look=black_zero", "study.confirm.seeds=1"])
def test_another_request_is_not_answered_from_the_last_one(home_of_finished: Path, more: str) -> None:
    assert finished.read(plan_of(home_of_finished, more)) is None


@pytest.mark.long
def test_a_marked_trial_reopens_the_study(home_of_finished: Path, overnight: Callable[..., object]) -> None:
    overnight("mark", "digits-mlp/1", "bad", f"home={home_of_finished}")
    assert finished.read(plan_of(home_of_finished)) is None


def test_only_the_same_command_does_without_an_early_forkserver(home_of_finished: Path, tmp_path: Path) -> None:
    location = study_location([f"home={home_of_finished}"])
    assert finished_by(location, [*SMALL, "--config-dir=None"])
    assert not finished_by(location, [*SMALL, "study.trials=9", "--config-dir=None"])
    assert not finished_by(study_location([f"home={tmp_path / 'none'}"]), [*SMALL, "--config-dir=None"])


def test_a_finished_study_in_a_copied_home_names_the_page_of_the_copy(synchronised_home: Path, tmp_path: Path) -> None:
    copied = Path(shutil.copytree(synchronised_home, tmp_path / "copied"))
    study = finished.read(plan_of(copied))
    assert study is not None
    with_page = dataclasses.replace(study, finished={**study.finished, "report": True})
    assert api._finished(with_page, ()).report == copied / "reports" / "digits-mlp.html"


def test_a_finished_study_names_the_ignored_variables(home_of_finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_REGISTRY_URI", "sqlite:///elsewhere.db")
    messages: list[str] = []
    result = api.run(plan_of(home_of_finished), say=messages.append)
    assert not result.did_work
    assert messages == list(result.messages)
    assert messages[-1].startswith("ignored environment variables: MLFLOW_REGISTRY_URI; ")
