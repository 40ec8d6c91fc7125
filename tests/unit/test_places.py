"""Any folder can be a start folder or a home: paths, addresses and commands reach every library as they are."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf
from sqlalchemy.engine import make_url

from overnight.config import literal
from overnight.config.compose import compose
from overnight.config.paths import StudyLocation, sqlite_url
from overnight.config.search_path import ConfigSearchPath
from overnight.study.storage.database import open_storage
from overnight.study.storage.exclusive import ExclusiveStorage
from overnight.tracking import store

# Characters with a meaning in addresses, templates, shells, Hydra or OmegaConf; letters of other scripts.
HOSTILE = "{}%?#=&+@:;,'\"\\$`~!*()[]<>| \t\n-._aé日0"
NAMES = st.text(HOSTILE, min_size=1, max_size=12).filter(lambda name: name not in (".", ".."))
NOTIFY = 'notify-send "$OVERNIGHT_STUDY: ${OVERNIGHT_EVENT}" \'it is {"done": true}\' \\\\ 2>&1'


@given(NAMES)
@settings(max_examples=300)
def test_the_address_of_a_sqlite_file_names_that_file(name: str) -> None:
    path = Path("/", name, "x.db")
    assert make_url(sqlite_url(path)).database == str(path)


def test_the_address_of_an_ordinary_path_is_readable() -> None:
    assert sqlite_url(Path("/home/ada/mlruns/mlflow.db")) == "sqlite:////home/ada/mlruns/mlflow.db"


@pytest.mark.parametrize("name", ["a{0}b%20c", "it's ?#\\"])
def test_both_stores_of_a_home_are_inside_of_it(empty_store: Path, name: str) -> None:
    check_stores(empty_store, name)


@pytest.mark.long
@given(NAMES)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_both_stores_of_a_home_are_inside_of_it_whatever_its_name_is(empty_store: Path, name: str) -> None:
    check_stores(empty_store, name)


def check_stores(empty_store: Path, name: str) -> None:
    """Create, write, and read again both stores of a home of this name. Nothing may be written beside it."""
    with tempfile.TemporaryDirectory() as parent:
        home = Path(parent, name)
        home.mkdir()
        location = StudyLocation(str(home))
        study_id = create_study_named(location, "s")
        assert create_study_named(location, "t") != study_id
        shutil.copy(empty_store, home / "mlflow.db")
        client = store.open_client(location)
        root = f"{location.artifact_root}/e"
        experiment = client.create_experiment("e", artifact_location=root)
        run = client.create_run(experiment).info.run_id
        client.log_text(run, "text", "file.txt")
        again = store.open_client(location)
        assert [r.info.run_id for r in again.search_runs([experiment])] == [run]
        again.create_registered_model("m")
        found = {p.relative_to(parent).parts[0] for p in Path(parent).rglob("*")}
        assert found == {name}
        assert [p.read_text() for p in home.rglob("file.txt")] == ["text"]


@pytest.mark.parametrize("home", ["A", "studies", "./mlruns/x", "/tmp/a-b_c"])
def test_an_ordinary_home_is_printed_without_quotes(home: str) -> None:
    assert located(f"home={home}").overrides == [f"home={home}"]


def create_study_named(location: StudyLocation, name: str) -> int:
    storage = ExclusiveStorage(open_storage(location))
    try:
        return storage.create_new_study([], name)
    finally:
        storage.backend.engine.dispose()


@given(st.text(HOSTILE, min_size=1, max_size=20))
@example("true")
@example("1e3")
@settings(max_examples=200, deadline=None)
def test_a_quoted_text_passes_hydra_and_omegaconf_unchanged(text: str) -> None:
    override = OverridesParser.create().parse_override(f"home={literal.quote(text)}")
    assert not override.is_sweep_override()
    assert OmegaConf.create({"home": override.value()}).home == text


@given(st.text(HOSTILE, min_size=1, max_size=20))
@example(NOTIFY)
@settings(max_examples=200, deadline=None)
def test_a_command_is_taken_as_it_is(text: str) -> None:
    value = OverridesParser.create().parse_override(literal.as_override(f"notify.command={text}")).value()
    assert command_in(value) == text


@pytest.mark.parametrize("written", ['say "${OVERNIGHT_EVENT}" $HOME', 'say "\\${OVERNIGHT_EVENT}" $HOME'])
def test_a_command_in_a_file_may_name_variables_of_the_shell(written: str) -> None:
    assert command_in(written) == 'say "${OVERNIGHT_EVENT}" $HOME'


def command_in(value: str) -> str:
    tree = OmegaConf.create({"notify": {"command": value, "urls": []}})
    literal.escape_commands(tree)
    return str(tree.notify.command)


def test_the_command_of_the_documentation_composes() -> None:
    draft = compose([f"notify.command={NOTIFY}"])
    assert draft.problems == []
    assert draft.settings is not None
    assert draft.settings.notify.command == NOTIFY


def test_a_command_can_be_switched_off() -> None:
    draft = compose(["notify.command=null"])
    assert draft.settings is not None
    assert draft.settings.notify.command is None


@pytest.mark.parametrize("home", ["a{0}b", "a,b", "it's", "${x"])
def test_a_home_is_taken_as_it_is_and_printed_so_that_it_is_read_again(home: str) -> None:
    location = located(f"home={home}")
    assert location.home == home
    (printed,) = location.overrides
    assert located(printed).home == home


def located(override: str) -> StudyLocation:
    draft = compose([override])
    assert draft.problems == []
    assert draft.settings is not None
    return draft.settings.location


@pytest.mark.parametrize("name", ["it's, {x}", "a b=c", 'q"#\\'])
def test_a_config_folder_may_have_any_name(tmp_path: Path, name: str) -> None:
    group = tmp_path / name / "model"
    group.mkdir(parents=True)
    (group / "own.yaml").write_text("_target_: own.Net\n")
    composed = ConfigSearchPath((tmp_path / name,)).compose(["model=own", "search=none"])
    assert composed.config.model["_target_"] == "own.Net"
