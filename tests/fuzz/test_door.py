"""Hostile input at every door: commands, options, config keys, config files and Python calls.

An input is refused with sentences or accepted. A traceback of ours, an exit code that docs/commands.md does not list,
and a write outside the home are failures. `make fuzz` runs this for two minutes; a failure names its input.
"""

from __future__ import annotations

import contextlib
import copy
import json
import random
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import optuna
import pytest

from overnight.cli import main as command
from overnight.cli import unexpected
from overnight.config import values
from overnight.config.compose import compose
from overnight.config.overrides import option_problem, parse_overrides, value_problem
from overnight.config.problems import ConfigError, Problems
from overnight.config.search_path import ConfigSearchPath
from overnight.config.settings import build_settings, from_json, to_json
from overnight.config.trees import keys_of
from overnight.config.yaml_files import file_problem
from overnight.runner import preflight
from overnight.search import space_reader
from overnight.search.build_plan import build_plan
from overnight.search.plan import Plan, random_value
from overnight.search.sampler import SeededSampler
from support.hostile import Hostile
from support.paths import copied_home
from support.sandbox import Sandbox

pytestmark = [pytest.mark.fuzz, pytest.mark.filterwarnings("ignore"), pytest.mark.timeout(900)]

LIMIT_S = 150  # of one input on a busy machine; a process gets 60 s, and 60 more to end
MAX_FAILURES = 8  # that are reported, of different places
# Commands that answer without a child process and a server.
IN_PROCESS = ("status", "report", "compare", "logs", "list", "mark", "export", "delete", "doctor", "stop", "init")
GROUPS = ("model", "data", "optimizer", "schedule", "search", "sampler", "scheduler", "terminator", "storage",
          "tracking", "launcher", "experiment", "hydra", "hydra.run.dir", "hydra/launcher")  # fmt: skip
LOCATION_KEYS = ("home", "storage", "tracking", "storage.url", "tracking.uri", "tracking.artifacts", "storage.lease_s")


@pytest.fixture(scope="module")
def tree() -> dict[str, Any]:
    return compose([]).config


@pytest.fixture
def hostile(tree: dict[str, Any], request: pytest.FixtureRequest) -> Hostile:
    return Hostile(int(request.config.getoption("--fuzz-seed")), [*keys_of(tree), *GROUPS])


Run = Callable[[float, Callable[[], tuple[object, Callable[[], None]]]], None]


@pytest.fixture
def run(request: pytest.FixtureRequest, record_property: Callable[[str, object], None]) -> Run:
    """Try inputs for a share of the time. An input is what it is, for the report, and the call that tries it."""

    def tries(share: float, draw: Callable[[], tuple[object, Callable[[], None]]]) -> None:
        ends_at = time.monotonic() + share * float(request.config.getoption("--fuzz-seconds"))
        count, failures = 0, dict[str, str]()
        while time.monotonic() < ends_at and len(failures) < MAX_FAILURES:
            given, attempt = draw()
            count += 1
            try:
                with _time_limit():
                    attempt()
            except ConfigError as error:
                assert error.problems, f"{given!r}: refused without a reason"  # noqa: PT017
            except Exception as error:
                place = str(traceback.extract_tb(error.__traceback__)[-1])
                failures.setdefault(place, f"{given!r}\n{''.join(traceback.format_exception(error)[-6:])}")
        record_property("inputs", count)
        assert not failures, "\n".join(failures.values())

    return tries


@contextlib.contextmanager
def _time_limit() -> Iterator[None]:
    """Raise TimeoutError where an input takes so long that a user would think that the command hangs."""

    def give_up(*_: object) -> None:
        raise TimeoutError(f"takes more than {LIMIT_S} s")

    before = signal.signal(signal.SIGALRM, give_up)
    signal.setitimer(signal.ITIMER_REAL, LIMIT_S)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


# In this process ------------------------------------------------------------------------------------------------------


def test_settings(run: Run, hostile: Hostile, tree: dict[str, Any]) -> None:
    keys = keys_of(tree)

    def draw() -> tuple[object, Callable[[], None]]:
        changed = {hostile.random.choice(keys): hostile.value() for _ in range(hostile.random.randint(1, 3))}

        def attempt() -> None:
            config: Any = copy.deepcopy(tree)
            for key, value in changed.items():
                *path, last = key.split(".")
                node = config
                for part in path:
                    node = node.get(part) if isinstance(node, dict) else None
                if isinstance(node, dict):
                    node[last] = value
            problems = Problems()
            built = build_settings(config, {"data": "digits", "model": "mlp"}, problems)
            assert (built is None) == bool(problems), problems
            if built is not None:
                assert from_json(to_json(built)) is not None

        return changed, attempt

    run(0.08, draw)


def test_search_spaces(run: Run, hostile: Hostile) -> None:
    draw_keys = ("draw", "when", "length", "each", "choice", "type", "name", "low", "high", "step", "log", "choices")

    def entry(depth: int = 0) -> Any:
        kind = hostile.random.random()
        if kind < 0.6 or depth > 2:
            return hostile.text()
        if kind < 0.7:
            return hostile.value()
        values = [entry(depth + 1) for _ in range(3)]
        if kind < 0.75:
            return values
        if kind < 0.85:
            kind_name = hostile.random.choice(("float", "int", "categorical", "FloatDistribution", "x"))
            return {"type": kind_name, **{hostile.random.choice(draw_keys): hostile.value() for _ in range(3)}}
        return dict(zip(hostile.random.sample(draw_keys, 3), values, strict=True))

    def draw() -> tuple[object, Callable[[], None]]:
        entries = {hostile.key(): entry() for _ in range(hostile.random.randint(1, 3))}

        def attempt() -> None:
            problems = Problems()
            space, _ = space_reader.parse_space(entries, problems)
            for parameter in space.parameters if not problems else ():
                parameter.describe()
            if not problems:
                rng = random.Random(0)
                space.draw(lambda _, dist: random_value(dist, rng), lambda key: None)  # noqa: ARG005

        return entries, attempt

    run(0.12, draw)


def test_checks_of_overrides(run: Run, hostile: Hostile) -> None:
    """Without composing, which takes most of the time."""
    path = ConfigSearchPath()
    groups, config = path.groups(), path.compose([]).config

    def draw() -> tuple[object, Callable[[], None]]:
        text = hostile.override()

        def attempt() -> None:
            for override in parse_overrides([text], Problems()):
                if override.is_sweep_override():
                    space_reader.parse_space({}, Problems(), (), {override.key_or_group: text.split("=", 1)[1]})
                elif override.key_or_group in groups:
                    option_problem(override, path)
                else:
                    value_problem(override, config, path)

        return text, attempt

    run(0.1, draw)


def test_overrides_of_tune_and_train(run: Run, hostile: Hostile) -> None:
    def draw() -> tuple[object, Callable[[], None]]:
        overrides, searching = hostile.overrides(), hostile.random.random() < 0.8
        return overrides, lambda: use(build_plan(overrides, searching=searching))

    run(0.25, draw)


def use(plan: Plan) -> None:
    """Do with an accepted plan what a study does with it before its first trial, and ask for two points."""
    Plan.from_json(json.loads(json.dumps(plan.to_json())))
    for dry_run in preflight.dry_runs_for(plan):
        preflight.dry_run_spec(plan, 0, dry_run, "cpu")
    if plan.settings.sampler.name == "gp":  # needs a helper process
        return
    study = optuna.create_study(sampler=SeededSampler(plan), direction=plan.settings.study.direction)
    for _ in range(2):
        trial = study.ask()
        drawn = plan.space.draw(trial._suggest, plan.baseline)
        plan.config(drawn)
        [values.short_text(v) and values.to_text(v) for v in drawn.values() if values.is_typable(v)]
        study.tell(trial, 0.5)


def test_config_files(run: Run, hostile: Hostile, tmp_path: Path) -> None:
    group = tmp_path / "model"
    group.mkdir()
    path = group / "net.yaml"

    def draw() -> tuple[object, Callable[[], None]]:
        text, composed = hostile.yaml(), hostile.random.random() < 0.05

        def attempt() -> None:
            path.write_bytes(text.encode("utf-8", "surrogateescape"))
            problem = file_problem(path)
            assert problem is None or problem.startswith(str(path))
            if composed:
                build_plan(["model=net", "search=none"], tmp_path)

        return text, attempt

    run(0.12, draw)


def test_python_calls(run: Run, hostile: Hostile) -> None:
    def draw() -> tuple[object, Callable[[], None]]:
        overrides, folder = hostile.value(), hostile.random.choice((None, hostile.value()))
        if hostile.random.random() < 0.5:
            overrides = [overrides]
        return (overrides, folder), lambda: build_plan(overrides, folder) and None

    run(0.08, draw)


def test_commands(run: Run, hostile: Hostile, sandbox: Sandbox) -> None:
    def draw() -> tuple[object, Callable[[], None]]:
        words = command_line(hostile, hostile.random.choice(IN_PROCESS), sandbox.home)
        return words, lambda: sandbox.run(words)

    run(0.15, draw)


def command_line(hostile: Hostile, name: str, home: Path) -> list[str]:
    """A command with hostile arguments and options, for the home unless it names another."""
    words: list[str] = []
    for _ in range(hostile.random.randint(0, 3)):
        known = (
            "digits-mlp",
            "digits-mlp/0",
            "digits-mlp/99",
            "digits-mlp.confirm",
            "digits-mlp/trial-0001",
            "good",
            "out.csv",
        )
        words.append(hostile.random.choice(known) if hostile.random.random() < 0.5 else hostile.argument())
    for parameter in command.cli.commands[name].params:
        if isinstance(parameter, click.Option) and hostile.random.random() < 0.3:
            option = hostile.random.choice([*parameter.opts, *parameter.secondary_opts])
            words += [option] if parameter.is_flag else [option, hostile.argument()]
    if hostile.random.random() < 0.3:
        words.append(f"{hostile.random.choice(LOCATION_KEYS)}={hostile.argument()}")
    return [name, *(w for w in words if w != "--yes"), f"home={home}"]


# As processes ---------------------------------------------------------------------------------------------------------


def test_processes(run: Run, hostile: Hostile, sandbox: Sandbox) -> None:
    def draw() -> tuple[object, Callable[[], None]]:
        name = hostile.random.choice(sorted(command.cli.commands))
        if name in ("tune", "train"):
            words = [name, *(o.replace("\x00", "\x01") for o in hostile.overrides()), "--cfg"]
        else:
            words = command_line(hostile, name, sandbox.home)
        return words, lambda: sandbox.run_process(words)

    run(0.1, draw)


@pytest.fixture
def sandbox(tmp_path: Path, finished_home: Path, monkeypatch: pytest.MonkeyPatch) -> Sandbox:
    home = tmp_path / "home"
    copied_home(finished_home, home)
    made = Sandbox(tmp_path, home)
    monkeypatch.chdir(made.folder)
    monkeypatch.setenv("HOME", str(made.user))
    monkeypatch.setenv(unexpected.TRACEBACK, "1")  # a failure shows where it comes from
    monkeypatch.setattr(sys, "argv", sys.argv)
    return made
