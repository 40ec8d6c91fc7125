"""Addresses and secrets come from the environment, or from files that it names, and are not passed on."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from overnight.config import credentials
from overnight.config.compose import compose, study_location
from overnight.config.credentials import PASSWORD, SECRET_VARIABLES, STORAGE_URL, TOKEN, TRACKING_URI, USERNAME
from overnight.config.problems import ConfigError
from overnight.search.build_plan import build_plan
from overnight.search.plan import Plan

SECRET = "pl4nted-word"
URL = f"postgresql://night:{SECRET}@db.example.com/studies"


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in SECRET_VARIABLES:
        monkeypatch.delenv(name, raising=False)


def test_addresses_come_from_the_environment_and_are_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(STORAGE_URL, URL)
    monkeypatch.setenv(TRACKING_URI, "http://mlflow.example.com:5000/")
    monkeypatch.setenv(USERNAME, "night")
    monkeypatch.setenv(PASSWORD, SECRET)
    made = build_plan(["storage=postgres", "tracking=server", "storage.lease_s=12"])
    location = made.settings.location
    assert location.storage_url == URL.replace("postgresql://", "postgresql+psycopg://")
    assert (location.shared, location.lease_s) == (True, 12.0)
    assert location.server == "http://mlflow.example.com:5000"
    assert location.artifact_root is None, "the server decides"
    assert location.overrides == ["storage=postgres", "tracking=server"]
    restored = Plan.from_json(made.to_json())
    assert restored.relocated(location).settings.location == location
    shown = [
        made.to_json(),
        restored.relocated(location).to_json(),
        made,
        location,
        compose(["storage=postgres"]).config,
    ]
    for text in map(repr, shown):
        assert SECRET not in text
        assert "db.example.com" not in text


def test_stores_in_the_home_need_no_environment_and_no_overrides() -> None:
    location = study_location([])
    assert (location.storage_url, location.server, location.shared, location.overrides) == (None, None, False, [])
    assert str(location.artifact_root).startswith("file://")


@pytest.mark.parametrize("scheme", ["postgres", "postgresql", "postgresql+psycopg"])
def test_an_address_can_be_read_from_a_file_and_uses_psycopg(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scheme: str
) -> None:
    (tmp_path / "url").write_text(f"  {URL.replace('postgresql', scheme)}\n")
    monkeypatch.setenv(STORAGE_URL, "")  # counts as not set: a compose file can't leave it out
    monkeypatch.setenv(f"{STORAGE_URL}_FILE", str(tmp_path / "url"))
    assert study_location(["storage=postgres"]).storage_url == URL.replace("postgresql", "postgresql+psycopg")


def test_all_missing_variables_are_reported_at_once() -> None:
    first, second = compose(["storage=postgres", "tracking=server"]).problems
    assert first.startswith(f"{STORAGE_URL}: must be set with storage=postgres, to postgresql://NAME:PASSWORD@HOST")
    assert f"or {STORAGE_URL}_FILE to a file" in first
    assert second.startswith(f"{TRACKING_URI}: must be set with tracking=server")


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        ({STORAGE_URL: f"mysql://a:{SECRET}@h/d"}, f"{STORAGE_URL}: must be the address of a PostgreSQL"),
        ({STORAGE_URL: f"sqlite:///{SECRET}.db"}, f"{STORAGE_URL}: must be the address of a PostgreSQL"),
        ({STORAGE_URL: f"postgresql://a:{SECRET}@x@h/d"}, "@ : / ? # and % in a password are written %40"),
        ({STORAGE_URL: f"postgresql://a:{SECRET}/x@h/d"}, "@ : / ? # and % in a password are written %40"),
        ({STORAGE_URL: f"postgresql://a:{SECRET}@h"}, "must be postgresql://NAME:PASSWORD@HOST:PORT/DATABASE"),
        ({f"{STORAGE_URL}_FILE": "absent"}, f"{STORAGE_URL}_FILE: must name a file that can be read, got 'absent'"),
        ({f"{STORAGE_URL}_FILE": "empty"}, "must name a file that holds the value, and 'empty' is empty"),
        ({f"{STORAGE_URL}_FILE": "other", STORAGE_URL: URL}, "names a file with another value; unset one of them"),
        (
            {TRACKING_URI: f"http://a:{SECRET}@h:5000"},
            f"must not contain a name or a password, because it is shown; set {USERNAME}",
        ),
        ({TRACKING_URI: f"sqlite:///{SECRET}.db"}, f"{TRACKING_URI}: must be a server's address"),
        ({USERNAME: "night"}, f"{PASSWORD}: must be set, or {PASSWORD}_FILE, where {USERNAME} is"),
        ({PASSWORD: SECRET}, f"{USERNAME}: must be set, or {USERNAME}_FILE, where {PASSWORD} is"),
        ({PASSWORD: SECRET, USERNAME: "night", TOKEN: SECRET}, f"{TOKEN}: must not be set together with {USERNAME}"),
        ({f"{TOKEN}_FILE": "absent"}, f"{TOKEN}_FILE: must name a file that can be read"),
    ],
)
def test_a_mistake_names_variable_rule_and_remedy_without_the_value(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").write_text("\n")
    (tmp_path / "other").write_text(URL.replace("studies", "another"))
    for name, value in {STORAGE_URL: URL, TRACKING_URI: "http://h:5000", **environment}.items():
        if f"{name}_FILE" not in environment or name in environment:
            monkeypatch.setenv(name, value)
    (problem,) = compose(["storage=postgres", "tracking=server"]).problems
    assert words in problem
    assert SECRET not in problem


@pytest.mark.parametrize(
    "override",
    [
        f"storage.url=postgresql://a:{SECRET}@h/d",
        f"++storage.url='postgresql://h/d?password={SECRET}'",
        f"storage={{url: 'postgresql://a:{SECRET}@h/d'}}",
        f"tracking.uri=http://a:{SECRET}@h:5000",
    ],
)
def test_a_password_on_a_command_line_is_refused_with_the_remedy(override: str) -> None:
    with pytest.raises(ConfigError) as error:
        build_plan([override])
    (problem,) = error.value.problems
    assert "a password must not be on a command line, which others can read; take " in problem
    assert STORAGE_URL in problem or PASSWORD in problem
    assert SECRET not in problem


def test_a_password_in_a_config_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "storage").mkdir()
    (tmp_path / "storage" / "mine.yaml").write_text(f"url: postgresql://a:{SECRET}@h/d\n")
    (problem,) = compose(["storage=mine"], tmp_path).problems
    assert problem.startswith("storage.url: must be a database address such as sqlite:///FILE, without a password")
    assert SECRET not in problem


def test_a_missing_driver_is_reported_with_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(STORAGE_URL, URL)
    monkeypatch.setitem(sys.modules, "psycopg", None)  # marks it as missing
    (problem,) = compose(["storage=postgres"]).problems
    assert problem == f"{STORAGE_URL}: needs the package psycopg; pip install 'overnight[service]'"


def test_a_lease_of_less_than_five_seconds_is_a_mistake(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(STORAGE_URL, URL)
    (problem,) = compose(["storage=postgres", "storage.lease_s=4"]).problems
    assert problem.startswith("storage.lease_s: must be at least 5 seconds")


def test_redact_masks_every_known_secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(STORAGE_URL, "postgresql://night:p%40ss-w0rd@h/d?sslpassword=inner-word")
    (tmp_path / "token").write_text("t0ken-of-mine")
    monkeypatch.setenv(f"{TOKEN}_FILE", str(tmp_path / "token"))
    message = "at postgresql+psycopg://night:p%40ss-w0rd@h/d with p@ss-w0rd, inner-word, t0ken-of-mine; http://a:b@c/d"
    text = credentials.redact(message)
    for secret in ("p%40ss-w0rd", "p@ss-w0rd", "inner-word", "t0ken-of-mine", "a:b@"):
        assert secret not in text
    assert text.startswith("at postgresql+psycopg://")


def test_the_login_in_a_file_is_read_again_for_every_export(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "token"
    monkeypatch.setenv(f"{TOKEN}_FILE", str(file))
    monkeypatch.setenv(TOKEN, "")  # restored after the test
    for token in ("first", "second"):
        file.write_text(token)
        credentials.export_login()
        assert os.environ[TOKEN] == token
    file.unlink()
    with pytest.raises(LookupError, match="must name a file that can be read"):
        credentials.export_login()


def test_a_process_started_with_hidden_secrets_inherits_none(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in SECRET_VARIABLES:
        monkeypatch.setenv(name, SECRET)
    shown = "import os; print(dict(os.environ))"
    with credentials.hidden_secrets():
        inherited = subprocess.run([sys.executable, "-c", shown], capture_output=True, text=True, check=True).stdout
    assert "PATH" in inherited
    assert SECRET not in inherited
    assert all(os.environ[name] == SECRET for name in SECRET_VARIABLES)
