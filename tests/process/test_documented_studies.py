"""The command lines, YAML blocks and Python blocks of the README and of docs/ do what they are there for.

The command lines run one after the other, in the order of the pages, in one process and one folder. Studies are tiny:
the test replaces the number of trials and epochs, and leaves out what takes time and has tests of its own.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import textwrap
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from support import documented
from support.documented import Line
from support.paths import ROOT, SUPPORT

pytestmark = [pytest.mark.long, pytest.mark.timeout(1500)]

_TINY = {
    "study.trials": "2",
    "trainer.max_epochs": "1",
    "study.confirm.seeds": "0",
    "pictures.when": "never",
    "preflight": "never",
    "slots": "1",
}
# What runs nowhere without more than this machine, and why. Lines of overnight among them are composed.
_NOT_RUN = {
    r"^(make|git|pip|docker|ssh) ": "needs a network, Docker, a server, or the checkout itself",
    r"^(export|eval|echo|mv|cp|source|_OVERNIGHT_COMPLETE)\b": "is the shell's; test_completion runs what it evaluates",
    r"^overnight source$": "is fish's",
    r"data=(fashion_)?mnist|\+experiment=(mnist|fashion)": "downloads data",
    r"storage=postgres|tracking=server|launcher=ray": "needs a PostgreSQL, a server or Ray; `make service` has them",
    r"^overnight (ui|worker|migrate)\b": "serves until it is stopped; test_tether, `make service`",
    r"^overnight (export|mark|delete|doctor)$": "names a command without its arguments",
}
_CODES = {"overnight tune model.hiden_sizes=3 optimizer.lr=fast study.trials=-1": 2}
# Studies that pages write about, with the number of trials that they name.
_FIRST = [
    ["tune", "study.name=digits-mlp", "study.trials=10", "trainer.max_epochs=1", "study.keep_checkpoints=10"],
    ["tune", "study.name=patients", "data=diabetes", "study.trials=2", "trainer.max_epochs=1"],
]
_QUICK = ["study.confirm.seeds=0", "pictures.when=never", "preflight=never", "slots=1"]
_SERVICE = {"OVERNIGHT_STORAGE_URL": "postgresql://a:b@127.0.0.1/c", "MLFLOW_TRACKING_URI": "http://127.0.0.1:1"}


def why_not_run(line: Line) -> str | None:
    return next((reason for pattern, reason in _NOT_RUN.items() if re.search(pattern, line.text)), None)


def all_lines() -> list[Line]:
    """Every line once; those that take trials away come last."""
    found = {line.text: line for line in documented.lines()}.values()
    return sorted(found, key=lambda line: line.text.startswith(("overnight mark", "overnight delete")))


def tiny(words: list[str]) -> list[str]:
    """Return the arguments of `overnight` with a tiny study in place of a long one."""
    if words[1] not in ("tune", "train"):
        return ["patients" if "patients.csv" in words and w == "digits-mlp" else w for w in words[1:]]
    kept = [w for w in words[1:] if w.split("=")[0] not in _TINY]
    # Two enqueued configurations and the baseline need three trials.
    tiny = {**_TINY, "study.trials": "3"} if any(w.startswith("study.enqueue=") for w in kept) else _TINY
    if any("my_schedulers" in w for w in kept):  # it sends trials to the 20 epochs of the default
        tiny = {**_TINY, "trainer.max_epochs": "20"}
    short = [*kept, *(f"{key}={value}" for key, value in tiny.items())]
    has_name = any(w.startswith("study.name=") for w in kept) or {"--extend", "--config-dir", "train"} & {*kept}
    # Lines that search different spaces in a study of the same name would not be comparable.
    return short if has_name else [*short, f"study.name=documented-{zlib.crc32(repr(kept).encode())}"]


def composed(words: list[str]) -> list[str]:
    return [*(w for w in words[1:] if w not in ("--dry-run", "--extend", "--detach")), "--cfg"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what the pages take for granted: images, rows, the examples, YAML blocks as search spaces."""
    from PIL import Image

    folder = tmp_path_factory.mktemp("documented")
    shutil.copytree(ROOT / "examples", folder / "examples")
    shutil.copytree(SUPPORT / "user_project", folder, dirs_exist_ok=True)  # what a page calls the root of your project
    (folder / "images").mkdir()
    Image.new("L", (8, 8)).save(folder / "images" / "0.png")
    (folder / "patients.csv").write_text("age,sex,bmi,bp,s1,s2,s3,s4,s5,s6\n59,2,32.1,101,157,93.2,38,4,4.8598,87\n")
    (scheduler,) = (b.text for b in documented.blocks() if b.language == "python" and "class BestOfThree" in b.text)
    (folder / "my_schedulers.py").write_text(scheduler)
    (folder / "own" / "search").mkdir(parents=True)
    for number, block in enumerate(search_spaces()):
        (folder / "own" / "search" / f"documented{number}.yaml").write_text(block)
    return folder


def search_spaces() -> list[str]:
    pages = ("README.md", "search-space.md")
    blocks = (b.text for b in documented.blocks() if b.language == "yaml" and b.page in pages)
    return [text for text in blocks if "_target_:" not in text]  # samplers: tests/unit/test_optuna_objects.py


def run(folder: Path, commands: list[list[str]], **environment: str) -> list[tuple[list[str], Any, str]]:
    """Run commands of overnight in one process; return the words, the exit code and the output of each."""
    (folder / "commands.json").write_text(json.dumps(commands))
    path = os.pathsep.join(filter(None, [str(ROOT / "src"), os.environ.get("PYTHONPATH")]))
    done = subprocess.run(
        [sys.executable, "-P", str(SUPPORT / "documented.py"), "commands.json"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(SUPPORT.parent), path]), **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    parts = re.findall(r"^@begin ([^\n]*)\n(.*?)^@end ([^\n]*)$", done.stdout, re.M | re.S)
    assert len(parts) == len(commands), done.stdout[-3000:]
    return [(json.loads(words), json.loads(code), output) for words, output, code in parts]


def test_every_command_line_works(folder: Path) -> None:
    lines = [line for line in all_lines() if why_not_run(line) is None]
    assert all(line.text.startswith("overnight ") for line in lines)
    expected = {json.dumps(tiny(line.words)): _CODES.get(line.text, 0) for line in lines}
    commands: Iterator[list[str]] = map(json.loads, expected)
    # `init mine` runs before the studies of mine, once: the folder must be empty.
    done = run(
        folder, [["init", "mine"], *([*w, *_QUICK] for w in _FIRST), *(c for c in commands if c != ["init", "mine"])]
    )
    wrong = [(w, code, output[-1500:]) for w, code, output in done if code != expected.get(json.dumps(w), 0)]
    assert wrong == []
    assert len(done) > 30


def test_every_command_line_that_cannot_run_here_composes(folder: Path) -> None:
    lines = [line for line in all_lines() if why_not_run(line) and re.search(r"overnight (tune|train) \S", line.text)]
    words = [line.words[line.words.index("overnight") :] for line in lines]
    done = run(folder, [composed(w) for w in words], **_SERVICE)
    assert [(w, code, output[-1500:]) for w, code, output in done if code != 0] == []
    assert len(done) > 5


def test_every_search_space_of_the_documents_is_valid(folder: Path) -> None:
    spaces = [["tune", "--config-dir", "own", f"search=documented{n}", "--cfg"] for n in range(len(search_spaces()))]
    done = run(folder, spaces)
    assert [(w, code, output[-1500:]) for w, code, output in done if code != 0] == []
    assert len(done) > 2


_PYTHON = """
import overnight, sys
real = overnight.tune
def tune(overrides=(), *args, **options):
    return real([o for o in overrides if not o.startswith("study.trials=2")] + {quick!r}, *args, **options)
overnight.tune = tune
"""
_CHANGES: Mapping[str, str] = {
    r"trial-\d{4}": "trial-0000",
    r"class MyData": "import pytorch_lightning as pl\nclass MyData",
}


def test_every_python_block_runs(folder: Path) -> None:
    """After the command lines, in the same folder, which has their studies."""
    quick = [*_QUICK, "study.trials=2", "trainer.max_epochs=1", "study.name=from-python"]
    found = [b.text for b in documented.blocks() if b.language == "python" and b.page != "tutorial.md"]
    kept = "study.keep_checkpoints=10"
    run(folder, [["tune", "study.name=digits-mlp", "study.trials=2", "trainer.max_epochs=1", kept, *_QUICK]])
    program = _PYTHON.format(quick=quick) + "\n".join(textwrap.dedent(text) for text in found)
    for old, new in _CHANGES.items():
        program = re.sub(old, new, program)
    path = os.pathsep.join(filter(None, [str(ROOT / "src"), os.environ.get("PYTHONPATH")]))
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
