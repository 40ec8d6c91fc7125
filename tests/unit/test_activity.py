"""A command says at once what it is doing, on a terminal only."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from overnight.cli import activity
from support.paths import python_path
from support.terminal import Terminal, TerminalFile, run_in_terminal


@contextlib.contextmanager
def shared_terminal() -> Iterator[Terminal]:
    """A terminal that standard output and standard error share. In a block, because pytest sets both before a test."""
    file = TerminalFile()
    with contextlib.redirect_stdout(file), contextlib.redirect_stderr(file), activity.on_terminal():
        yield file.terminal


@pytest.fixture(autouse=True)
def terminal_with_codes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")


def test_the_line_is_replaced_by_the_next_one() -> None:
    with shared_terminal() as terminal:
        activity.show("importing ...")
        assert terminal.lines == ["importing ..."]
        activity.show("reading ...")
        assert terminal.lines == ["reading ..."]


def test_what_is_printed_takes_the_place_of_the_line() -> None:
    with shared_terminal() as terminal:
        activity.show("importing ...")
        click.echo("an answer")
        activity.show("reading ...")
        click.echo("a mistake", err=True)
        activity.show("")
        assert terminal.lines == ["an answer", "a mistake"]


def test_the_line_is_erased_at_the_end_and_after_an_error() -> None:
    before = sys.stdout
    seen = []

    def fail() -> None:
        with shared_terminal() as terminal:
            seen.append(terminal)
            activity.show("importing ...")
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert seen[0].lines == []
    assert sys.stdout is before
    activity.show("after the block nothing is shown")


def test_a_long_line_is_cut_because_a_wrapped_one_cannot_be_erased() -> None:
    with shared_terminal() as terminal:
        activity.show("x" * 200)
        assert [len(line) for line in terminal.lines] == [79]
        assert terminal.lines[0].endswith("x...")


@pytest.mark.parametrize("why", ["a pipe", "a dumb terminal"])
def test_nothing_is_shown_where_a_line_cannot_be_erased(monkeypatch: pytest.MonkeyPatch, why: str) -> None:
    if why == "a pipe":
        monkeypatch.setattr(TerminalFile, "isatty", lambda _: False)
    else:
        monkeypatch.setenv("TERM", "dumb")
    with shared_terminal() as terminal:
        activity.show("importing ...")
        assert terminal.lines == []


# Runs every command with a body that reports which libraries are imported. What the command shows must be on the
# terminal by then: the body is what imports them.
_EVERY_COMMAND = """
import json, sys
from overnight.cli import activity, main
shown = []
activity.ActivityLine.show = lambda self, text: shown.append(text)
found = {}
for name, command in main.cli.commands.items():
    shown.clear()
    command.params = []
    command.callback = lambda: found.update({name: [list(shown), [m for m in HEAVY if m in sys.modules]]})
    sys.argv = ["overnight", name]
    try:
        main.main()
    except SystemExit:
        pass
json.dump(found, open(RESULT, "w"))
"""


def test_every_command_says_something_before_it_imports_a_library(tmp_path: Path) -> None:
    heavy = ("torch", "pytorch_lightning", "mlflow", "optuna", "hydra", "omegaconf", "sqlalchemy", "rich", "numpy")
    script = f"HEAVY, RESULT = {heavy!r}, {str(tmp_path / 'found.json')!r}\n{_EVERY_COMMAND}"
    environment = {**os.environ, "PYTHONPATH": python_path(), "TERM": "xterm"}
    printed, code = run_in_terminal([sys.executable, "-c", script], env=environment)
    assert code == 0, printed
    found = json.loads((tmp_path / "found.json").read_text())
    assert {"tune", "train", "status", "report", "ui", "list"} <= found.keys()
    for name, (shown, imported) in found.items():
        assert shown == ["importing ..."], name
        assert imported == [], name


def test_an_answer_on_a_terminal_has_no_line_left_in_it(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": python_path(), "TERM": "xterm"}
    command = [sys.executable, "-m", "overnight", "status", f"home={tmp_path}"]
    written, code = run_in_terminal(command, env=environment)
    assert code == 2
    assert written.startswith("\r\x1b[2Kimporting ...")
    assert "reading the studies ..." in written
    terminal = Terminal(columns=400)
    terminal.write(written)
    assert terminal.lines == [f"study: there is no study in {tmp_path}; start one with `overnight tune`"]


_INTERRUPTED = """
import sys, threading, time
from overnight.cli import main
def interrupt(standalone_mode):
    if "importing" in sys.argv:
        threading.Thread(target=time.sleep, args=(0.2,)).start()
    raise KeyboardInterrupt
main.cli.main = interrupt
main.main()
"""


def test_ctrl_c_says_that_an_import_has_to_end_first() -> None:
    environment = {**os.environ, "PYTHONPATH": python_path(), "TERM": "xterm"}
    for arguments, words in ((["importing"], "interrupted; an import ends first ...\n"), ([], "")):
        written, code = run_in_terminal([sys.executable, "-c", _INTERRUPTED, *arguments], env=environment)
        assert (written, code) == (words, 130)
