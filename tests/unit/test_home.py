"""A home that was moved or copied is recognised, and nothing outside of it is written or deleted."""

from __future__ import annotations

import os
import shutil
import signal
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mlflow import MlflowClient

from overnight.config.paths import StudyLocation
from overnight.config.problems import ConfigError
from overnight.study.storage import home as homes
from overnight.study.storage.access import no_home_if_refused, require_writable
from overnight.study.storage.database import dispose, open_storage, opened
from overnight.study.storage.home import local_path, relocated, settle
from overnight.study.storage.lock import holder_file, lock_study
from overnight.system.files import remove_inside
from overnight.tracking import store
from overnight.tracking.home_artifacts import OutsideHome

_ELSEWHERE = ("s3://bucket/runs/1", "mlflow-artifacts:/1/artifacts", "file:///somewhere/else", "/somewhere/else")
_QUERY = (
    "SELECT artifact_location FROM experiments UNION ALL SELECT artifact_uri FROM runs "
    "UNION ALL SELECT artifact_location FROM logged_models UNION ALL SELECT source FROM model_versions"
)


def location_of(home: Path) -> StudyLocation:
    return StudyLocation(str(home))


def locations(home: Path) -> list[str]:
    with closing(sqlite3.connect(home / "mlflow.db")) as database:
        return [text for (text,) in database.execute(_QUERY)]


def identity(home: Path) -> tuple[str, str]:
    with closing(sqlite3.connect(home / "mlflow.db")) as database:
        ((home_id, place),) = database.execute("SELECT id, place FROM overnight_home")
        return home_id, place


def forget_identity(home: Path) -> None:
    """Make a store like one of a version that did not keep its home."""
    with closing(sqlite3.connect(home / "mlflow.db")) as database, database:
        database.execute("DROP TABLE overnight_home")


def files_of(home: Path) -> dict[Path, bytes]:
    return {path.relative_to(home): path.read_bytes() for path in home.rglob("*") if path.is_file()}


@pytest.fixture
def lived_in(tmp_path: Path, empty_store: Path) -> Path:
    """Return a home with a run, an artifact, a model and a registered version."""
    home = tmp_path / "first place"
    home.mkdir()
    shutil.copy(empty_store, home / "mlflow.db")
    client = store.open_client(location_of(home))
    experiment = client.create_experiment("study", (home / "artifacts" / "study").as_uri())
    run = client.create_run(experiment)
    client.log_text(run.info.run_id, "text", "config.yaml")
    logged = client.create_logged_model(experiment, "winner", run.info.run_id)
    client.create_registered_model("study")
    client.create_model_version("study", logged.artifact_location, run.info.run_id)
    for place in _ELSEWHERE:
        client.create_experiment(place, place)
    return home


def text_of(home: Path) -> str:
    """Read the artifact through a client of MLflow's own."""
    client = MlflowClient(f"sqlite:///{home}/mlflow.db")
    (run,) = client.search_runs([client.get_experiment_by_name("study").experiment_id])
    path = local_path(run.info.artifact_uri)
    assert path is not None
    return (path / "config.yaml").read_text()


@pytest.mark.parametrize("is_old", [False, True], ids=["", "of an older version"])
def test_a_moved_home_is_where_it_is_now(lived_in: Path, capsys: pytest.CaptureFixture[str], is_old: bool) -> None:
    home_id, _ = identity(lived_in)
    before = locations(lived_in)
    if is_old:
        forget_identity(lived_in)
    moved = lived_in.rename(lived_in.with_name("second#place"))
    capsys.readouterr()
    settle(location_of(moved))
    assert f"{moved} was moved from {lived_in}; " in capsys.readouterr().err
    assert identity(moved)[1] == str(moved)
    assert is_old or identity(moved)[0] == home_id
    assert locations(moved) == [text.replace("first%20place", "second%23place") for text in before]
    assert text_of(moved) == "text"
    assert not lived_in.exists()
    settle(location_of(moved))
    assert capsys.readouterr().err == "", "it is reported once"


@pytest.mark.parametrize("is_old", [False, True], ids=["", "of an older version"])
def test_a_copy_is_a_home_of_its_own(lived_in: Path, capsys: pytest.CaptureFixture[str], is_old: bool) -> None:
    release = lock_study(location_of(lived_in), "study")
    if is_old:
        forget_identity(lived_in)
    before = files_of(lived_in)
    copied = Path(shutil.copytree(lived_in, lived_in.with_name("copy")))
    capsys.readouterr()
    settle(location_of(copied))
    assert f"{copied} was copied from {lived_in}; " in capsys.readouterr().err
    assert not holder_file(location_of(copied), "study").exists(), "the process works in the original"
    assert files_of(lived_in) == before
    assert not any(str(lived_in) in (local_path(text) or Path()).parts for text in locations(copied))
    if not is_old:
        assert identity(copied)[0] != identity(lived_in)[0]
    release()


def test_a_copy_of_a_store_is_settled_without_a_change_of_its_home(lived_in: Path, tmp_path: Path) -> None:
    release = lock_study(location_of(lived_in), "study")
    copied = Path(shutil.copytree(lived_in, lived_in.with_name("copy")))
    before = files_of(copied)
    database = Path(shutil.copy(copied / "mlflow.db", tmp_path / "mlflow.db"))
    settle(location_of(copied), database)
    assert files_of(copied) == before
    with closing(sqlite3.connect(database)) as store_copy:
        assert store_copy.execute("SELECT place FROM overnight_home").fetchall() == [(str(copied),)]
    release()


def test_locations_that_are_not_in_the_home_stay(lived_in: Path) -> None:
    moved = lived_in.rename(lived_in.with_name("moved"))
    settle(location_of(moved))
    assert {text for text in locations(moved) if text in _ELSEWHERE} == set(_ELSEWHERE)


def test_a_home_is_known_by_whatever_link_leads_to_it(lived_in: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before, link = locations(lived_in), lived_in.with_name("link")
    link.symlink_to(lived_in)
    capsys.readouterr()
    settle(location_of(link))
    assert (locations(lived_in), capsys.readouterr().err) == (before, "")


def test_a_home_that_is_moved_while_a_process_works_in_it_is_refused(lived_in: Path) -> None:
    release = lock_study(location_of(lived_in), "study")
    before = locations(lived_in)
    moved = lived_in.rename(lived_in.with_name("moved"))
    with pytest.raises(ConfigError, match=rf"while process {os.getpid()} runs study; end that process first"):
        settle(location_of(moved))
    assert locations(moved) == before
    moved.rename(lived_in)
    release()


def test_a_kill_at_any_step_leaves_all_locations_as_they_were_or_all_as_they_should_be(
    lived_in: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, (home_id, _) = locations(lived_in), identity(lived_in)
    moved = lived_in.rename(lived_in.with_name("moved"))
    wanted = [text.replace("first%20place", "moved") for text in before]
    connect, kept = homes.sqlite3.connect, (moved / "mlflow.db").read_bytes()
    outcomes = []
    for step in range(100):
        (moved / "mlflow.db").write_bytes(kept)
        child = os.fork()
        if child == 0:
            steps = iter(range(100))

            def killed_at_step(*arguments: object, steps: Iterator[int] = steps, step: int = step, **options: object):  # type: ignore[no-untyped-def]
                opened = connect(*arguments, **options)  # type: ignore[call-overload]
                opened.set_trace_callback(lambda _: next(steps) == step and os.kill(os.getpid(), signal.SIGKILL))
                return opened

            monkeypatch.setattr(homes.sqlite3, "connect", killed_at_step)
            settle(location_of(moved))
            os._exit(0)
        _, status = os.waitpid(child, 0)
        found = locations(moved), identity(moved)
        assert found in ((before, (home_id, str(lived_in))), (wanted, (home_id, str(moved))))
        settle(location_of(moved))
        assert (locations(moved), identity(moved)) == (wanted, (home_id, str(moved)))
        outcomes.append(found[0] == wanted)
        if os.waitstatus_to_exitcode(status) == 0:
            break
    assert outcomes.count(False) > 10, "the child was killed at each of its statements"
    assert outcomes[-1], "and at last it was not killed"


_names = st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1, max_size=12).filter(
    lambda name: name not in (".", "..") and len(name.encode()) < 200
)
_paths = st.lists(_names, min_size=1, max_size=3).map(lambda names: Path("/", *names))


@given(_paths, _paths, st.lists(_names, max_size=3).map(lambda names: Path(*names)), st.booleans())
def test_a_location_below_the_old_home_is_the_same_below_the_new_one(
    old: Path, new: Path, inner: Path, as_uri: bool
) -> None:
    text = (old / inner).as_uri() if as_uri else str(old / inner)
    assert local_path(relocated(text, old, new)) == new / inner
    beside = Path(f"{old}2") / inner
    assert local_path(relocated(beside.as_uri(), old, new)) == beside


# The guard ------------------------------------------------------------------------------------------------------------


def test_artifacts_are_not_written_where_only_the_store_says(lived_in: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    client = store.open_client(location_of(lived_in))
    experiment = client.create_experiment("planted", outside.as_uri())
    run = client.create_run(experiment).info.run_id
    client.log_text(run, "text", "config.yaml")
    model = client.create_logged_model(experiment, "winner", run)
    (tmp_path / "files").mkdir()
    with pytest.raises(OutsideHome, match=r"no artifacts are written to .*/outside/"):
        client.log_model_artifacts(model.model_id, str(tmp_path / "files"))
    assert not outside.exists()
    assert "which is outside of home" in (store.describe_refusal(client) or "")

    given = store.open_client(StudyLocation(str(lived_in), given_artifacts=outside.as_uri()))
    given.log_text(run, "text", "config.yaml")
    assert list(outside.rglob("config.yaml")), "the user asked for it"
    assert store.describe_refusal(given) is None


def test_artifacts_are_not_written_through_a_link_out_of_the_home(lived_in: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    client = store.open_client(location_of(lived_in))
    (run,) = client.search_runs([client.get_experiment_by_name("study").experiment_id])
    folder = local_path(run.info.artifact_uri)
    assert folder is not None
    (folder / "weights").symlink_to(outside)
    client.log_text(run.info.run_id, "text", "weights/config.yaml")
    assert not list(outside.iterdir())
    client.log_text(run.info.run_id, "new", "config.yaml")
    assert text_of(lived_in) == "new"


def test_a_study_storage_is_read_while_its_first_process_writes(tmp_path: Path) -> None:
    location = location_of(tmp_path)
    dispose(open_storage(location))  # creates it, and no study yet
    with closing(sqlite3.connect(location.paths.optuna_db)) as first:
        first.execute("BEGIN IMMEDIATE")
        with opened(location) as second:
            assert second.get_all_studies() == []


def test_only_what_is_inside_is_removed(tmp_path: Path) -> None:
    home, outside = tmp_path / "home", tmp_path / "outside"
    (outside / "folder").mkdir(parents=True)
    (outside / "folder" / "file").touch()
    home.mkdir()
    (home / "link").symlink_to(outside)
    for path in (outside / "folder", home / ".." / "outside", home / "link" / "folder", home / "..", home, tmp_path):
        assert not remove_inside(home, path)
    assert (outside / "folder" / "file").exists()
    assert remove_inside(home, home / "link"), "the link, not what it names"
    assert (outside / "folder" / "file").exists()
    (home / "folder").mkdir()
    assert remove_inside(home, home / "folder")
    assert remove_inside(home, home / "folder"), "it is gone already"
    assert list(home.iterdir()) == []


@pytest.mark.parametrize(
    ("before", "written", "remains"), [(False, False, False), (True, False, True), (False, True, True)]
)
def test_a_refused_study_leaves_no_new_home_unless_data_was_prepared_in_it(
    tmp_path: Path, before: bool, written: bool, remains: bool
) -> None:
    home = tmp_path / "home"
    if before:
        home.mkdir()
    location = StudyLocation(str(home))

    def refuse() -> None:
        require_writable(location)
        if written:
            (home / "data").touch()
        raise ConfigError(["model: must train"])

    with pytest.raises(ConfigError), no_home_if_refused(location):
        refuse()
    assert home.exists() == remains
