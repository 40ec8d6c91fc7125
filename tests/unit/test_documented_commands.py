"""Every command line of the documents has arguments and options that exist, and every code block is in its language."""

from __future__ import annotations

import ast
import re

import click
import pytest
import yaml

from overnight.cli.main import cli
from support import documented
from support.paths import ROOT

OURS = [line for line in [*documented.lines(), *documented.inline()] if line.text.startswith("overnight ")]
NAMES_ONLY = [line for line in OURS if len(line.words) == 2]  # they name a command, without its arguments
TARGETS = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))


@pytest.mark.parametrize("line", {line.text: line for line in OURS}.values(), ids=lambda line: line.text)
def test_a_command_line_is_parsed(line: documented.Line) -> None:
    name, *arguments = line.words[1:]
    if name == "COMMAND":
        return
    command = cli.commands[name]
    if line not in NAMES_ONLY:
        arguments = [word for word in arguments if word != "..."]
        with command.make_context(name, arguments, resilient_parsing=False) as context:
            assert isinstance(context, click.Context)


def test_there_are_many_command_lines() -> None:
    assert len(OURS) > 90


def test_the_targets_of_make_exist() -> None:
    named = {t for line in documented.lines() for t in re.findall(r"\bmake ([a-z-]+)", line.text)}
    assert named <= TARGETS
    assert len(named) > 3


def test_python_blocks_are_python() -> None:
    found = [block for block in documented.blocks() if block.language == "python"]
    for block in found:
        ast.parse(block.text)
    assert len(found) > 6


def test_yaml_blocks_are_yaml() -> None:
    found = [block for block in documented.blocks() if block.language == "yaml"]
    assert all(isinstance(yaml.safe_load(block.text), dict) for block in found)
    assert len(found) > 6
