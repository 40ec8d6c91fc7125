"""Commands work in terminals that lack characters, with `python -O`, and in folders of any name."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from support.paths import ROOT

pytestmark = pytest.mark.long
TINY = ("slots=1", "study.trials=2", "trainer.max_epochs=1", "study.confirm.seeds=0", "pictures.when=never")


def run(
    folder: Path, *arguments: str, flags: tuple[str, ...] = (), **environment: str
) -> subprocess.CompletedProcess[bytes]:
    """Run the command in a folder. Its import path has the sources and no tests."""
    path = os.pathsep.join(filter(None, [str(ROOT / "src"), os.environ.get("PYTHONPATH")]))
    return subprocess.run(
        [sys.executable, *flags, "-m", "overnight", *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": path, **environment},
        capture_output=True,
        timeout=250,
        check=False,
    )


@pytest.mark.parametrize(
    "environment",
    [
        {"PYTHONIOENCODING": "latin-1"},
        {"PYTHONIOENCODING": "ascii"},
        {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    ],
    ids=["latin-1", "ascii", "locale C"],
)
@pytest.mark.parametrize("command", [("report", "digits-mlp"), ("compare", "digits-mlp/0", "digits-mlp/1")])
def test_a_terminal_without_a_character_shows_another_in_its_place(
    command: tuple[str, ...], environment: dict[str, str], finished_home: Path, tmp_path: Path
) -> None:
    done = run(tmp_path, *command, f"home={finished_home}", **environment)
    assert done.returncode == 0, done.stderr.decode(errors="replace")
    assert b"Traceback" not in done.stderr


@pytest.mark.parametrize("name", ["a{0}b", "a%20b", "x=1&y? #é日 it's"])
def test_a_study_in_a_folder_of_any_name_is_inside_of_it(name: str, tmp_path: Path) -> None:
    folder = tmp_path / name
    folder.mkdir()
    done = run(folder, "tune", *TINY, "study.name=s")
    assert done.returncode == 0, done.stderr.decode()
    assert [p.name for p in tmp_path.iterdir()] == [name]
    assert {p.name for p in folder.iterdir()} == {"mlruns"}
    (again,) = [line for line in done.stdout.decode().splitlines() if line.startswith("train the winner again: ")]
    trained = run(folder, *shlex.split(again.partition(": ")[2])[1:], "trainer.max_epochs=1")
    assert trained.returncode == 0, trained.stderr.decode()
    for command in (["list"], ["report", "s"], ["register", "s"], ["doctor"], ["delete", "s", "--yes"]):
        done = run(folder, *command)
        assert done.returncode == 0, (command, done.stdout.decode(), done.stderr.decode())
    assert [p.name for p in tmp_path.iterdir()] == [name]


def test_a_study_runs_without_assertions(tmp_path: Path) -> None:
    for command in (["tune", *TINY, "study.name=s"], ["report", "s"], ["register", "s"], ["doctor"]):
        done = run(tmp_path, *command, flags=("-O",))
        assert done.returncode == 0, (command, done.stdout.decode(), done.stderr.decode())
        assert b"Traceback" not in done.stderr


def test_the_printed_lines_of_an_own_network_work_as_printed(tmp_path: Path) -> None:
    assert run(tmp_path, "init", "mine").returncode == 0
    options = ("--config-dir", "mine/conf", "model=mine", "data=mine")
    done = run(tmp_path, "tune", *options, *TINY)
    assert done.returncode == 0, done.stderr.decode()
    (again,) = [line for line in done.stdout.decode().splitlines() if line.startswith("train the winner again: ")]
    assert again.endswith("overnight train --config-dir mine/conf +experiment=best_mine-mine")
    trained = run(tmp_path, *shlex.split(again.partition(": ")[2])[1:])
    assert trained.returncode == 0, trained.stderr.decode()
    registered = run(tmp_path, "register", "--config-dir", "mine/conf", "mine-mine")
    assert registered.returncode == 0, registered.stdout.decode()
    assert "config: overnight train --config-dir mine/conf +experiment=best_mine-mine" in registered.stdout.decode()
