"""Commands work in terminals that lack characters, with `python -O`, and in folders of any name."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from support.paths import ROOT, SUPPORT

pytestmark = [pytest.mark.long, pytest.mark.timeout(900)]
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
        timeout=600,
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


STUDY = [
    ["tune", *TINY, "study.name=s"],
    ["train", "+experiment=best_s"],
    ["list"],
    ["report", "s"],
    ["register", "s"],
    ["doctor"],
    ["delete", "s", "--yes"],
]


@pytest.mark.parametrize("name", ["a{0}b", "a%20b", "x=1&y? #é日 it's"])
def test_a_study_in_a_folder_of_any_name_is_inside_of_it(name: str, tmp_path: Path) -> None:
    folder = tmp_path / name
    folder.mkdir()
    assert codes(folder, STUDY) == [0] * len(STUDY)
    assert [p.name for p in tmp_path.iterdir()] == [name]
    assert {p.name for p in folder.iterdir()} == {"mlruns", "commands.json"}


def test_python_may_be_started_without_assertions(tmp_path: Path) -> None:
    done = run(
        tmp_path, "tune", *TINY, "study.enqueue=[{optimizer.lr:0.01}]", "optimizer.lr=interval(0,1)", flags=("-O",)
    )
    assert done.returncode == 0, done.stderr.decode()
    call = [sys.executable, "-O", "-c", "import overnight; overnight.tune(['optimizer.lr=interval(0,1)'])"]
    failed = subprocess.run(call, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert "ConfigError: python -O: must not be used" in failed.stderr


def codes(folder: Path, commands: list[list[str]]) -> list[object]:
    """Run commands in one process in a folder, and return their exit codes."""
    (folder / "commands.json").write_text(json.dumps(commands))
    path = os.pathsep.join(filter(None, [str(SUPPORT.parent), str(ROOT / "src"), os.environ.get("PYTHONPATH")]))
    done = subprocess.run(
        [sys.executable, "-P", str(SUPPORT / "documented.py"), "commands.json"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": path},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        check=False,
    )
    print(done.stdout.decode(errors="replace"))
    assert b"Traceback" not in done.stdout
    return [json.loads(code) for code in re.findall(rb"^@end (.*)$", done.stdout, re.M)]


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
