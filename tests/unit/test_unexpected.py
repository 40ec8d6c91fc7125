"""An error that no check foresaw is one sentence on the screen, with its traceback in a file."""

from __future__ import annotations

import re
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import click
import pytest

from overnight.cli import main as command
from overnight.cli import unexpected

Fails = Callable[[BaseException], tuple[int, str]]


@pytest.fixture
def fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Fails:
    """Run a command that raises an error, and return its exit code and what it printed."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.delenv(unexpected.TRACEBACK, raising=False)

    def run(error: BaseException) -> tuple[int, str]:
        @click.command("fails")
        def failing() -> None:
            raise error

        monkeypatch.setitem(command.cli.commands, "fails", failing)
        monkeypatch.setattr(sys, "argv", ["overnight", "fails"])
        monkeypatch.setattr(sys, "path", [*sys.path])
        with pytest.raises(SystemExit) as ended:
            command.main()
        assert isinstance(ended.value.code, int)
        return ended.value.code, capsys.readouterr().err

    return run


@pytest.mark.parametrize(
    "error",
    [ZeroDivisionError("division by zero"), KeyError("a"), RecursionError(), RuntimeError("odd"), OSError(5, "x")],
)
def test_the_screen_shows_one_sentence_and_the_file_the_traceback(fails: Fails, error: Exception) -> None:
    code, printed = fails(error)
    assert code == 1
    assert len(printed.splitlines()) == 1
    assert printed.startswith(f"unexpected error: {type(error).__name__}")
    assert "Traceback" not in printed
    path = re.search(r"the traceback is in (\S+), and OVERNIGHT_TRACEBACK=1 shows it here", printed)
    assert path is not None
    assert "Traceback (most recent call last)" in Path(path[1]).read_text()


def test_a_variable_shows_the_traceback_on_the_screen(
    fails: Fails, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv(unexpected.TRACEBACK, "1")
    code, printed = fails(ZeroDivisionError("division by zero"))
    assert code == 1
    assert "Traceback (most recent call last)" in printed
    assert not list(tmp_path.glob("overnight-error-*"))


def test_the_sentence_stands_alone_where_no_file_can_be_written(
    fails: Fails, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "nowhere"))
    code, printed = fails(ZeroDivisionError("division by zero"))
    assert code == 1
    assert printed.endswith("; OVERNIGHT_TRACEBACK=1 shows the traceback\n")


def test_neither_the_sentence_nor_the_file_holds_a_password(fails: Fails, tmp_path: Path) -> None:
    _, printed = fails(ValueError("could not open postgresql://ada:hunter2secret@db/x"))
    (file,) = tmp_path.glob("overnight-error-*")
    assert "hunter2secret" not in printed + file.read_text()


def test_ctrl_c_is_no_error(fails: Fails) -> None:
    assert fails(KeyboardInterrupt()) == (130, "\n"), "click ends the line that shows ^C"
