"""The documents name files, tests, commands and keys that exist; `make docs` checks the links of the site."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

import overnight
from overnight.cli.main import cli
from overnight.config.problems import ConfigError
from overnight.config.settings import TARGETED
from overnight.config.trainer import ACCEPTED
from overnight.search import attributes
from overnight.search.build_plan import build_plan
from overnight.tracking import tags
from support.paths import ROOT

PAGES = sorted((ROOT / "docs").rglob("*.md"))
DOCUMENTS = [*sorted(ROOT.glob("*.md")), *PAGES]
TEXTS = {path: path.read_text() for path in DOCUMENTS}
URL = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["urls"]["Source"]
RAW = URL.replace("github.com", "raw.githubusercontent.com")


def names(paths: list[Path]) -> list[str]:
    return [str(p.relative_to(ROOT)) for p in paths]


@pytest.mark.parametrize("path", DOCUMENTS, ids=names(DOCUMENTS))
def test_links_to_files_of_the_project_lead_to_a_file(path: Path) -> None:
    absolute = re.findall(rf"(?:{URL}/(?:blob|tree)/main|{RAW}/main)/([^)\s\"#]+)", TEXTS[path])
    relative = re.findall(r"\]\((?!https?:|#)([^)#\s]+)", TEXTS[path])
    missing = [link for link in absolute if not (ROOT / link).exists()]
    missing += [link for link in relative if not (path.parent / link).exists()]
    assert not missing


def test_the_readme_has_absolute_links_only_because_the_package_index_shows_it_too() -> None:
    assert not re.findall(r"\]\((?!https://)", TEXTS[ROOT / "README.md"])


def test_all_documents_and_the_site_name_the_same_project_url() -> None:
    texts = [*TEXTS.values(), (ROOT / "mkdocs.yml").read_text()]
    assert {u for text in texts for u in re.findall(r"https://github\.com/[\w-]+/overnight\b", text)} == {URL}


@pytest.mark.parametrize("path", DOCUMENTS, ids=names(DOCUMENTS))
def test_the_tests_that_a_document_names_exist(path: Path) -> None:
    named = re.findall(r"\b((?:unit|process|service|chaos|browser)/test_\w+\.py)", TEXTS[path])
    assert [n for n in named if not (ROOT / "tests" / n).exists()] == []


def test_the_modules_that_architecture_names_exist() -> None:
    named = re.findall(r"`([a-z_]+/[a-z_/]+\.py)`", TEXTS[ROOT / "ARCHITECTURE.md"])
    assert [n for n in named if not any((root / n).is_file() for root in (ROOT, ROOT / "src" / "overnight"))] == []
    assert len(named) > 5


def test_every_command_is_documented() -> None:
    text = (ROOT / "docs" / "commands.md").read_text()
    assert [name for name in cli.commands if f"`overnight {name}" not in text] == []


def test_the_options_of_documented_commands_exist() -> None:
    rows = re.findall(r"^\| `overnight (\w+).*$", text := (ROOT / "docs" / "commands.md").read_text(), re.M)
    for name in rows:
        row = re.search(rf"^\| `overnight {name}\b.*$", text, re.M)
        assert row is not None
        known = {o for p in cli.commands[name].params for o in (*p.opts, *p.secondary_opts)}
        assert set(re.findall(r"--[a-z][a-z-]*", row[0])) <= known, name


def shown_output(page: str, command: str) -> str:
    """Return what a page shows below a command."""
    shown = re.search(rf"^\$ {re.escape(command)}\n(.*?)^```", (ROOT / "docs" / page).read_text(), re.M | re.S)
    assert shown is not None, command
    return shown[1]


def test_the_tutorial_shows_the_mistakes_that_are_reported() -> None:
    overrides = ["model.hiden_sizes=3", "optimizer.lr=fast", "study.trials=-1"]
    with pytest.raises(ConfigError) as caught:
        build_plan(overrides)
    shown = shown_output("tutorial.md", f"overnight tune {' '.join(overrides)}")
    assert shown.splitlines() == list(caught.value.problems)


@pytest.mark.parametrize("page", ["tutorial.md", "your-own-network.md"])
def test_a_page_shows_what_init_prints(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert CliRunner().invoke(cli, ["init", "mine"]).output == shown_output(page, "overnight init mine")


def test_the_tags_and_names_that_a_document_mentions_exist() -> None:
    constants = [v for module in (tags, attributes) for v in vars(module).values() if isinstance(v, str)]
    known = {v.removeprefix("overnight.") for v in constants if v.startswith("overnight.")}
    known |= {*overnight.__all__, *(path.stem for path in (ROOT / "src" / "overnight").iterdir())}
    name = r"`overnight\.(?!example\b)([A-Za-z_]+)"
    named = {(path.name, found) for path in DOCUMENTS for found in re.findall(name, TEXTS[path])}
    assert {(page, found) for page, found in named if found not in known} == set()


def test_every_key_that_a_document_names_is_a_key_of_the_configuration() -> None:
    keys: dict[str, set[str]] = {}
    for section, value in yaml.safe_load((ROOT / "conf" / "config.yaml").read_text()).items():
        keys[section] = set(value) if isinstance(value, dict) else set()
    for group in ("sampler", "scheduler", "terminator", "storage", "tracking", "launcher"):
        files = (ROOT / "conf" / group).glob("*.yaml")
        keys[group] = {key for file in files for key in yaml.safe_load(file.read_text()) or ()}
    keys["trainer"] |= set(ACCEPTED)
    for group in TARGETED:
        keys[group].add("_target_")
    sections = "|".join(name for name, inside in keys.items() if inside)
    named = {
        (path.name, section, key)
        for path in DOCUMENTS
        if path.name != "from-optuna.md"  # its left column has attributes of Optuna's classes
        for section, key in re.findall(rf"`(?:overnight \w+ )?({sections})\.([a-z_]+)", TEXTS[path])
    }
    unknown = {(page, f"{section}.{key}") for page, section, key in named if key not in keys[section]}
    assert unknown == set()
    assert len(named) > 40
