"""`overnight init` writes an example project that works, and never overwrites a file."""

from __future__ import annotations

import importlib.util
import shlex
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pytest
from click.testing import CliRunner

from overnight.cli import starter
from overnight.cli.main import cli
from overnight.config.compose import study_location
from overnight.config.problems import ConfigError
from overnight.search.build_plan import build_plan
from overnight.study.snapshot import view


@pytest.mark.long
def test_the_printed_command_tunes_the_network_that_was_written(
    overnight: Callable[..., CompletedProcess[str]], tmp_path: Path
) -> None:
    done = overnight("init", "my stuff")
    assert done.returncode == 0
    line = shlex.split(done.stdout.splitlines()[-1])
    assert line == ["overnight", "tune", "--config-dir", "my stuff/conf", "model=mine", "data=mine"]
    tuned = overnight(*line[1:], "study.trials=3", "trainer.max_epochs=2", "slots=1", f"home={tmp_path / 'home'}")
    assert tuned.returncode == 0, tuned.stderr
    found, _ = view(study_location([f"home={tmp_path / 'home'}"]))
    assert found is not None
    assert found.name == "mine-mine"
    assert found.count("complete", "pruned") == 3
    assert set(found.records[2].params) >= {"model.hidden_sizes.length", "model.lr", "model.dropout", "data.batch_size"}
    assert list((tmp_path / "home" / "pictures").rglob("confusion.png"))


def test_the_tests_of_the_example_project_pass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    starter.write(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    spec = importlib.util.spec_from_file_location("test_mine", tmp_path / "test_mine.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with warnings.catch_warnings(action="ignore"):  # of Lightning
        spec.loader.exec_module(module)
        for name in (
            "test_two_epochs_of_training_are_better_than_guessing",
            "test_the_network_returns_one_logit_for_each_class",
        ):
            getattr(module, name)()
    for name in ("my_data", "my_network"):
        sys.modules.pop(name, None)


def test_the_example_project_imports_nothing_from_overnight() -> None:
    files = sorted((Path(starter.__file__).parent / "files").glob("*.py"))
    assert [f.name for f in files] == ["my_data.py", "my_network.py", "test_mine.py"]
    assert not any("import overnight" in f.read_text() or "from overnight" in f.read_text() for f in files)


def test_existing_files_are_named_and_nothing_is_written(tmp_path: Path) -> None:
    (tmp_path / "conf" / "data").mkdir(parents=True)
    (tmp_path / "conf" / "data" / "mine.yaml").write_text("mine")
    (tmp_path / "my_data.py").write_text("mine")
    with pytest.raises(ConfigError) as error:
        starter.write(tmp_path)
    (problem,) = error.value.problems
    assert "conf/data/mine.yaml, my_data.py" in problem
    assert sorted(p.name for p in tmp_path.rglob("*") if p.is_file()) == ["mine.yaml", "my_data.py"]
    assert (tmp_path / "my_data.py").read_text() == "mine"


def test_a_folder_that_cannot_be_written_is_a_mistake(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = CliRunner().invoke(cli, ["init", str(tmp_path / "file" / "below")])
    assert isinstance(done.exception, ConfigError)
    assert "must be a folder that can be written" in str(done.exception)


def test_the_search_space_of_the_example_project_fits_its_network(tmp_path: Path) -> None:
    starter.write(tmp_path)
    made = build_plan(["model=mine", "data=mine"], tmp_path / "conf")
    assert set(made.space.describe()) == {"model.hidden_sizes", "model.dropout", "model.lr", "data.batch_size"}
    assert str(tmp_path) in sys.path
    sys.path.remove(str(tmp_path))
