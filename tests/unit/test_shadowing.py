"""A module of the start folder that has the name of a library is named before it is imported in its place."""

from __future__ import annotations

import importlib.metadata
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from overnight.system import shadowing
from support.paths import ROOT


@pytest.mark.parametrize("name", ["random.py", "torch.py", "overnight.py", "optuna"])
def test_it_is_named_with_its_path(name: str, tmp_path: Path) -> None:
    create(tmp_path / name)
    (line,) = shadowing.find(str(tmp_path))
    assert line.startswith(f"{name}: must not have the name of a module")
    assert str(tmp_path / name) in line


@pytest.mark.parametrize("name", ["my_network.py", "test.py", "data.py", "random.yaml"])
def test_other_files_are_not(name: str, tmp_path: Path) -> None:
    create(tmp_path / name)
    (tmp_path / "mlflow").mkdir()  # a folder without __init__.py does not take the place of a package
    assert shadowing.find(str(tmp_path)) == []


def create(path: Path) -> None:
    if path.suffix:
        path.write_text("")
    else:
        path.mkdir()
        (path / "__init__.py").write_text("")


@pytest.mark.parametrize("name", ["click.py", "random.py", "optuna.py"])
def test_a_command_that_starts_there_exits_with_a_line(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text("raise SystemExit('imported')")
    path = os.pathsep.join(filter(None, [str(ROOT / "src"), os.environ.get("PYTHONPATH")]))
    done = subprocess.run(
        [sys.executable, "-m", "overnight", "list"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith(f"{name}: must not")


def test_the_modules_of_all_dependencies_are_known() -> None:
    needed = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    projects = {re.split(r"[<>=!~\[ ]", line)[0].lower().replace("_", "-") for line in needed}
    modules = {
        module
        for module, names in importlib.metadata.packages_distributions().items()
        if not module.startswith("_") and projects & {n.lower().replace("_", "-") for n in names}
    }
    assert modules - shadowing.LIBRARIES - {"functorch", "torchgen", "pylab", "mpl_toolkits", "pydevd_plugins"} == set()
