"""The installed package works without the checkout."""

from __future__ import annotations

import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import yaml

from support.paths import ROOT


def test_the_wheel_contains_conf_and_works_without_the_checkout(tmp_path: Path) -> None:
    pytest.importorskip("hatchling", reason="builds a wheel without a network")
    build = (
        "from hatchling.builders.wheel import WheelBuilder as W; import sys; "
        "print(next(W(sys.argv[1]).build(directory=sys.argv[2])))"
    )
    made = subprocess.run([sys.executable, "-c", build, str(ROOT), str(tmp_path)], capture_output=True, text=True)
    assert made.returncode == 0, made.stderr
    with zipfile.ZipFile(made.stdout.strip()) as wheel:
        wheel.extractall(tmp_path / "site")
    inside = tmp_path / "site" / "overnight"
    for shipped, here in (
        (inside / "conf", ROOT / "conf"),
        (inside / "cli" / "starter" / "files", ROOT / "src" / "overnight" / "cli" / "starter" / "files"),
    ):
        files = [
            {p.relative_to(folder) for p in folder.rglob("*.*") if p.is_file() and p.suffix != ".pyc"}
            for folder in (shipped, here)
        ]
        assert files[0] == files[1] != set()
    code = (
        "import overnight.config.paths as p; from overnight.search.build_plan import build_plan; "
        f"assert str(p.conf_dir()).startswith({str(tmp_path)!r}), p.conf_dir(); print(build_plan().name)"
    )
    env = {"PYTHONPATH": str(tmp_path / "site"), "PATH": "/usr/bin:/bin"}
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, cwd=tmp_path)
    assert ran.stdout.strip() == "digits-mlp", ran.stderr


@pytest.mark.long
def test_every_config_file_composes() -> None:
    from overnight.search.build_plan import build_plan

    for group in ("data", "model", "optimizer", "schedule", "sampler", "scheduler"):
        for file in (ROOT / "conf" / group).glob("*.yaml"):
            build_plan([f"{group}={file.stem}", "search=none"])
    for file in (ROOT / "conf" / "experiment").glob("*.yaml"):
        build_plan([f"+experiment={file.stem}"])


def test_every_key_of_the_config_has_a_comment() -> None:
    text = (ROOT / "conf" / "config.yaml").read_text()
    for section in ("study", "trainer", "checkpoint"):
        for key in yaml.safe_load(text)[section]:
            line = re.search(rf"^  {key}:.*$", text, re.M)
            assert line is not None
            assert "#" in line[0] or key == "max_epochs", f"{section}.{key} needs a comment"


def test_the_tested_versions_are_within_the_declared_ranges() -> None:
    import tomllib

    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    lines = [line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line]
    pinned = {canonicalize_name(name): version for name, version in lines}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for text in [*project["dependencies"], *project["optional-dependencies"]["dev"]]:
        requirement = Requirement(text)
        assert pinned[canonicalize_name(requirement.name)] in requirement.specifier, text


def test_the_files_of_a_home_are_ignored_by_git() -> None:
    assert (ROOT / "mlruns" / ".gitignore").read_text().splitlines()[0] == "*"
