"""What the commands print of single configurations, which `train` trains."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner

from overnight.cli.main import cli


def printed(*words: str) -> str:
    return CliRunner().invoke(cli, words, catch_exceptions=False).stdout


@pytest.fixture
def own_home(finished_home: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished_home, tmp_path / "home"))


def test_a_retrained_winner_says_why_its_value_is_another_and_repeats_itself(own_home: Path) -> None:
    line = ("train", "+experiment=best_digits-mlp", f"home={own_home}")
    first, again = printed(*line), printed(*line)
    value = re.search(r"complete, val/accuracy (\S+)", first)[1]  # type: ignore[index]
    why = "had .* on one seed with this configuration .* uses another seed, so its value differs"
    assert re.search(f"digits-mlp {why}. On the CPU, the same command gives {value} again", first)
    assert f"complete, val/accuracy {value}\n" in again
    assert "another seed" not in printed(*line, "trainer.max_epochs=1")  # that is another configuration
