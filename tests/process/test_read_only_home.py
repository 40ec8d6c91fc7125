"""A home that can only be read is read, and a command that would write to it says so in one sentence."""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from overnight.config.paths import StudyLocation
from overnight.config.problems import ConfigError
from overnight.study.snapshot import view
from overnight.study.storage import access
from overnight.study.storage.access import require_readable, require_writable
from support.commands import SMALL
from support.paths import copied_home

# Root writes everywhere, unless it runs without this right.
_AS_USER = ["setpriv", "--bounding-set=-dac_override,-dac_read_search"] if os.getuid() == 0 else []

needs_a_user = pytest.mark.skipif(bool(_AS_USER) and not shutil.which("setpriv"), reason="root writes everywhere")


def run(*words: str, home: Path) -> subprocess.CompletedProcess[str]:
    line = [*_AS_USER, sys.executable, "-m", "overnight", *words, f"home={home}"]
    return subprocess.run(line, cwd=home.parent, capture_output=True, text=True, timeout=120, check=False)


def forbid_writing(home: Path) -> None:
    for path in (home, *home.rglob("*")):
        path.chmod(stat.S_IMODE(path.stat().st_mode) & ~0o222 | 0o444 | (0o111 if path.is_dir() else 0))


def allow_writing(home: Path) -> None:
    for path in (home, *home.rglob("*")):
        path.chmod(0o755)


@pytest.fixture(scope="module")
def read_only(finished_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Return a copy that was never opened at its place."""
    home = copied_home(finished_home, tmp_path_factory.mktemp("read-only") / "home")
    forbid_writing(home)
    yield home
    allow_writing(home)


@needs_a_user
@pytest.mark.long
@pytest.mark.parametrize(
    ("words", "printed"),
    [
        (["status"], "digits-mlp: complete, 6 of 6 trials done"),
        (["list"], "digits-mlp"),
        (["report"], "can only be read, so the page is not written"),
        (["compare", "digits-mlp/0", "digits-mlp/1"], "digits-mlp/0  digits-mlp/1"),
        (["logs", "digits-mlp/0"], "digits-mlp/0 printed nothing"),
        (["doctor", "--dry-run"], "digits-mlp: no problems"),
    ],
    ids=lambda words: words[0] if isinstance(words, list) else "",
)
def test_commands_that_read_read_it(read_only: Path, words: list[str], printed: str) -> None:
    done = run(*words, home=read_only)
    assert printed in done.stdout + done.stderr
    assert done.returncode == 0
    assert "Traceback" not in done.stderr


@needs_a_user
@pytest.mark.long
@pytest.mark.parametrize(
    "words",
    [["mark", "digits-mlp/0", "bad"], ["tune", *SMALL], ["delete", "digits-mlp", "--yes"], ["register"]],
    ids=lambda words: words[0],
)
def test_commands_that_write_say_in_one_sentence_that_they_cannot(read_only: Path, words: list[str]) -> None:
    done = run(*words, home=read_only)
    lines = [line for line in done.stderr.splitlines() if line]
    assert lines == [
        f"home: must be a folder that can be written, got '{read_only}': Permission denied; take another home=..."
    ]
    assert done.returncode == 2


def test_a_database_that_can_only_be_read_has_one_copy_of_its_last_transaction(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    location = StudyLocation(str(tmp_path))
    monkeypatch.setattr(access, "is_read_only", lambda _: True)
    source, copies = location.paths.optuna_db, []
    with contextlib.closing(sqlite3.connect(source, isolation_level=None)) as writer:
        writer.execute("PRAGMA journal_mode=WAL")
        writer.execute("CREATE TABLE t (n INTEGER)")
        for n in range(3):
            writer.execute("INSERT INTO t VALUES (?)", (n,))
            copies.append(access.database_to_read(location, source))
            assert access.database_to_read(location, source) == copies[-1]
            with contextlib.closing(sqlite3.connect(copies[-1])) as reader:
                assert reader.execute("SELECT max(n) FROM t").fetchall() == [(n,)]
    assert [copy.parent.exists() for copy in copies] == [False, False, True]


def test_a_file_that_is_no_database_is_copied_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    location = StudyLocation(str(tmp_path))
    monkeypatch.setattr(access, "is_read_only", lambda _: True)
    location.paths.optuna_db.write_text("no database")
    assert access.database_to_read(location, location.paths.optuna_db).read_text() == "no database"


def test_a_home_is_created_only_where_it_can_be(tmp_path: Path) -> None:
    require_writable(StudyLocation(str(tmp_path / "a" / "b")))
    assert (tmp_path / "a" / "b").is_dir()
    (tmp_path / "file").touch()
    for home in (tmp_path / "file", tmp_path / "file" / "below", tmp_path / ("x" * 300), Path("/proc/none")):
        with pytest.raises(ConfigError, match=r"^home: must be a folder that can be (read|written), got '"):
            require_writable(StudyLocation(str(home)))
    loop = tmp_path / "loop"
    loop.symlink_to(loop)
    with pytest.raises(ConfigError, match=r"Too many levels of symbolic links; take another home"):
        require_readable(StudyLocation(str(loop)))


def test_a_home_that_does_not_exist_has_no_studies_and_stays_away(tmp_path: Path) -> None:
    assert view(StudyLocation(str(tmp_path / "none"))) == (None, [])
    assert not (tmp_path / "none").exists()


@given(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=300))
def test_any_text_is_a_home_or_a_mistake_that_is_reported(text: str) -> None:
    with tempfile.TemporaryDirectory() as folder, contextlib.suppress(ConfigError):
        require_readable(StudyLocation(f"{folder}/{text}"))
