"""Shell completion, through the protocol of each shell and in the shells that are installed."""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from support.commands import LATE
from support.paths import ROOT

CONVNET = ROOT / "examples" / "convnet" / "conf"
OVERNIGHT = str(Path(sys.executable).with_name("overnight"))
Complete = Callable[..., list[str]]


def environment(**variables: str) -> dict[str, str]:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return {**os.environ, "PATH": path, **variables}


@pytest.fixture
def complete(tmp_path: Path) -> Complete:
    """Return the completions of zsh for the last word of a line. After a space the word is empty."""

    def run(line: str) -> list[str]:
        words = line.split(" ")
        env = environment(_OVERNIGHT_COMPLETE="zsh_complete", COMP_WORDS=line, COMP_CWORD=str(len(words) - 1))
        done = subprocess.run([OVERNIGHT], env=env, cwd=tmp_path, capture_output=True, text=True, check=True)
        assert not done.stderr
        lines = done.stdout.splitlines()
        return [value.replace("\\:", ":") for value in lines[1::3]]

    return run


@pytest.mark.parametrize(
    ("line", "completions"),
    [
        ("overnight sta", ["status"]),
        ("overnight tune --co", ["--config-dir", "--config-name"]),
        ("overnight tune model=", ["model=cnn", "model=mlp"]),
        ("overnight tune model=mlp,c", ["model=mlp,cnn"]),
        ("overnight tune schedule", ["schedule=", "scheduler=", "schedule.", "scheduler."]),
        ("overnight tune optimizer.l", ["optimizer.lr="]),
        ("overnight tune +optimizer.l", ["+optimizer.lr="]),
        ("overnight tune study.confirm.", ["study.confirm.top=", "study.confirm.seeds="]),
        ("overnight tune model=cnn model.k", ["model.kernel="]),
        ("overnight tune model.batch_norm=", ["model.batch_norm=true", "model.batch_norm=false"]),
        ("overnight tune +exp", ["+experiment="]),
        ("overnight tune +experiment=qu", ["+experiment=quickstart"]),
        ("overnight status st", ["storage="]),
        ("overnight status storage=", ["storage=postgres", "storage=sqlite"]),
        ("overnight status ", ["home=", "storage=", "tracking="]),
        ("overnight tune nothing.here", []),
    ],
)
def test_commands_options_groups_and_keys_are_completed(complete: Complete, line: str, completions: list[str]) -> None:
    assert complete(line) == completions


def test_configs_of_a_user_are_completed(complete: Complete) -> None:
    assert complete(f"overnight tune --config-dir {CONVNET} model=con") == ["model=convnet"]
    assert complete(f"overnight tune --config-dir {CONVNET} model=convnet model.k") == ["model.kernel="]


def test_studies_trials_and_winners_are_completed(complete: Complete, finished_home: Path) -> None:
    home = f"home={finished_home}"
    assert complete(f"overnight status {home} dig") == ["digits-mlp"]
    assert complete(f"overnight compare {home} digits-mlp/") == [f"digits-mlp/{n}" for n in range(6)]
    assert complete(f"overnight mark {home} digits-mlp/5 g") == ["good"]
    assert complete(f"overnight tune {home} study.warm_start_from=") == ["study.warm_start_from=digits-mlp"]
    assert "+experiment=best_digits-mlp" in complete(f"overnight train {home} +experiment=")


def test_a_home_that_is_not_a_database_completes_to_nothing(complete: Complete, tmp_path: Path) -> None:
    (tmp_path / "optuna.db").write_text("no database")
    assert complete(f"overnight status home={tmp_path} dig") == []


def test_a_completion_takes_less_than_a_third_of_a_second_and_imports_nothing_heavy(finished_home: Path) -> None:
    line = f"overnight status home={finished_home} d"
    env = environment(_OVERNIGHT_COMPLETE="zsh_complete", COMP_WORDS=line, COMP_CWORD="3", PYTHONPROFILEIMPORTTIME="1")
    took = []
    for _ in range(3):
        before = os.times()
        done = subprocess.run([OVERNIGHT], env=env, capture_output=True, text=True, check=True)
        after = os.times()
        took.append(after.children_user + after.children_system - before.children_user - before.children_system)
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "overnight.cli.completion" in imported
    assert not imported & {"torch", "optuna", "mlflow", "hydra", "omegaconf", "sqlalchemy", "rich", "pandas"}
    assert statistics.median(took) < 0.3 * LATE


def complete_in_bash(line: str, words: list[str], folder: Path) -> list[str]:
    """Return the completions of Bash for the last word of a line that it has split into `words`."""
    quoted = " ".join(f"'{word}'" for word in words)
    script = f"""
        source <(_OVERNIGHT_COMPLETE=bash_source overnight)
        COMP_LINE='{line}' COMP_POINT={len(line)} COMP_WORDS=({quoted}) COMP_CWORD={len(words) - 1}
        compopt() {{ echo "$@"; }}
        _overnight_completion overnight
        printf '%s\\n' "${{COMPREPLY[@]}}"
    """
    command = ["bash", "-c", script]
    return subprocess.run(
        command, cwd=folder, env=environment(), capture_output=True, text=True, check=True
    ).stdout.split("\n")[:-1]


def test_bash_which_splits_words_at_the_equals_sign_gets_the_rest_of_the_word(tmp_path: Path) -> None:
    assert complete_in_bash("overnight tune model=", ["overnight", "tune", "model", "="], tmp_path) == ["cnn", "mlp"]
    assert complete_in_bash("overnight tune model=ml", ["overnight", "tune", "model", "=", "ml"], tmp_path) == ["mlp"]
    assert complete_in_bash("overnight tune model=ml", ["overnight", "tune", "model=ml"], tmp_path) == ["model=mlp"]
    words = ["overnight", "tune", "model", "=", "cnn", "optimizer.l"]
    assert complete_in_bash("overnight tune model=cnn optimizer.l", words, tmp_path) == ["-o nospace", "optimizer.lr="]
    assert (
        complete_in_bash("overnight tune --config-dir ", ["overnight", "tune", "--config-dir", ""], tmp_path)[0]
        == "-o dirnames"
    )


@pytest.mark.skipif(shutil.which("fish") is None, reason="fish is not installed")
def test_fish_completes_keys_and_options(tmp_path: Path) -> None:
    script = "source (env _OVERNIGHT_COMPLETE=fish_source overnight | psub); complete -C 'overnight tune optimizer.l'; "
    script += "complete -C 'overnight tune model='"
    env = environment(HOME=str(tmp_path))
    done = subprocess.run(["fish", "-c", script], cwd=tmp_path, env=env, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["optimizer.lr=\tdefault: 1e-3", "model=cnn", "model=mlp"]


@pytest.mark.skipif(shutil.which("zsh") is None, reason="zsh is not installed")
def test_zsh_accepts_the_script(tmp_path: Path) -> None:
    script = "autoload -U compinit; compinit -u -D; source <(_OVERNIGHT_COMPLETE=zsh_source overnight); "
    script += "whence -w _overnight_completion"
    done = subprocess.run(
        ["zsh", "-f", "-c", script], env=environment(HOME=str(tmp_path)), capture_output=True, text=True
    )
    assert (done.stdout.strip(), done.stderr) == ("_overnight_completion: function", "")
