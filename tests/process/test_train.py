"""What the commands print of single configurations, which `train` trains."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from click.testing import CliRunner

from overnight.cli.main import cli
from support.paths import copied_home


def printed(*words: str) -> str:
    return CliRunner().invoke(cli, words, catch_exceptions=False).stdout


@pytest.fixture
def own_home(finished_home: Path, tmp_path: Path) -> Path:
    return copied_home(finished_home, tmp_path / "home")


def test_a_retrained_winner_says_why_its_value_is_another_and_repeats_itself(own_home: Path) -> None:
    line = ("train", "+experiment=best_digits-mlp", f"home={own_home}")
    first, again = printed(*line), printed(*line)
    (value,) = re.findall(r"complete, val/accuracy (\S+)", first)
    why = "had .* on one seed with this configuration .* uses another seed, so its value differs"
    assert re.search(f"digits-mlp {why}. On the CPU, the same command gives {value} again", first)
    assert f"complete, val/accuracy {value}\n" in again
    assert "another seed" not in printed(*line, "trainer.max_epochs=1")  # that is another configuration


def test_single_configurations_are_shown_with_their_own_metric_and_the_report_is_that_of_the_search(
    own_home: Path,
) -> None:
    home = f"home={own_home}"
    trained = printed("train", "trainer.max_epochs=1", home)
    other = printed("train", "trainer.max_epochs=1", "study.metric=val/loss", "study.direction=minimize", home)
    (accuracy,), (loss,) = (re.findall(r"complete, (\S+ \S+)", text) for text in (trained, other))
    assert accuracy.startswith("val/accuracy ")
    assert loss.startswith("val/loss ")
    shown = printed("status", home)
    assert f"trial-0000: complete, {accuracy} (data=Digits model=MLP" in shown
    assert f"trial-0001: complete, {loss} (data=Digits model=MLP" in shown
    assert f"{loss} (the last, 1)" in printed("list", home)
    assert re.search(rf"val/loss +{loss.split()[1]} *\n", printed("compare", "train/0", "train/1", home))
    assert "digits-mlp" in printed("report", home)
    for command in ("report", "register"):
        refused = CliRunner().invoke(cli, [command, "train", home])
        assert (refused.exit_code, refused.stdout) == (2, "")
        assert "must be a search, which has a winner, got train" in refused.stderr
    assert "must be train/NUMBER" in CliRunner().invoke(cli, ["compare", "train", home]).stderr
