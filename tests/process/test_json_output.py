"""docs/json.md names the keys that the commands print with --json, and no others."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from overnight.cli.main import cli
from overnight.protocol import Prediction
from support.paths import ROOT, copied_home

_MAPPINGS = ("params", "test")  # from names of the user to values


def documented(command: str) -> set[str]:
    sections = re.split(r"^## ", (ROOT / "docs" / "json.md").read_text(), flags=re.M)
    (section,) = [text for text in sections if text.startswith(f"{command}\n")]
    return set(re.findall(r"^\| `([^`]+)` \|", section, re.M))


def keys_of(value: Any, mappings: tuple[str, ...], prefix: str = "") -> set[str]:
    """Return the keys of all objects, as the document writes them. An object or an array of objects has none itself,
    except for one that may be null."""
    if isinstance(value, list) and value and isinstance(value[0], dict):
        return set().union(*(keys_of(v, mappings, f"{prefix}[]") for v in value))
    if not isinstance(value, dict) or prefix.endswith(mappings):
        return {prefix}
    inner = set().union(*(keys_of(v, mappings, f"{prefix}.{k}".lstrip(".")) for k, v in value.items()))
    return inner | ({prefix} if prefix.endswith("best") else set())


@pytest.mark.parametrize(
    ("words", "mappings"),
    [
        (["status"], _MAPPINGS),
        (["list"], (*_MAPPINGS, "trials")),
        (["compare", "digits-mlp", "digits-mlp/1"], _MAPPINGS),
    ],
    ids=lambda words: words[0],
)
def test_the_documented_keys_are_printed(finished_home: Path, words: list[str], mappings: tuple[str, ...]) -> None:
    done = CliRunner().invoke(cli, [*words, "--json", f"home={finished_home}"], catch_exceptions=False)
    assert keys_of(json.loads(done.stdout), mappings) == documented(words[0])


def test_the_documented_keys_of_the_doctor_are_printed(finished_home: Path, tmp_path: Path) -> None:
    home = copied_home(finished_home, tmp_path / "home")
    (home / "checkpoints" / "digits-mlp" / "trial-0099").mkdir()
    done = CliRunner().invoke(cli, ["doctor", "--dry-run", "--json", f"home={home}"], catch_exceptions=False)
    printed = {key.replace("digits-mlp", "STUDY") for key in keys_of(json.loads(done.stdout), ())}
    assert printed == documented("doctor")


def test_the_documented_keys_of_a_prediction_are_its_fields() -> None:
    fields = {f"predictions[].{name}" for name in Prediction.__dataclass_fields__}
    assert documented("predict") == {"study", "trial", *fields}


def test_the_documented_keys_of_a_test_are_printed_and_the_warning_is_not_among_them(
    finished_home: Path, tmp_path: Path
) -> None:
    home = copied_home(finished_home, tmp_path / "home")
    done = CliRunner().invoke(cli, ["test", "digits-mlp", "--json", f"home={home}"], catch_exceptions=False)
    printed = json.loads(done.stdout)
    assert keys_of(printed, ("metrics",)) == documented("test")
    assert "test/accuracy" in printed["metrics"]
    assert "no longer unseen" in done.stderr
