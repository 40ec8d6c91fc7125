"""Shell completion: commands, study names, trial numbers, and Hydra's groups, options and keys.

Click runs `overnight` once for each completion, so this module reads the YAML files and the SQLite file directly and
imports neither Hydra nor Optuna. docs/shell-completion.md says how to install it.
"""

from __future__ import annotations

import os
import re
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import click
from click.shell_completion import BashComplete, CompletionItem, ZshComplete, add_completion_class, split_arg_string

from overnight.config.paths import HomePaths, StudyLocation, conf_dir
from overnight.config.search_path import ConfigSearchPath
from overnight.config.trees import read_yaml
from overnight.search import attributes

# Groups that say where studies are stored; every command takes them.
_LOCATION_GROUPS = ("storage", "tracking")
_PACKAGE_GLOBAL = "experiment"  # a group that is added with +experiment=OPTION
_SQLITE_TIMEOUT_S = 0.1
_MAX_TRIALS = 1000


def complete_overrides(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:  # noqa: ARG001
    """Complete GROUP=OPTION and KEY=VALUE."""
    sign = re.match(r"[+~]*", incomplete)[0]  # type: ignore[index]
    body, given, configs = incomplete[len(sign) :], _given(ctx), _configs(ctx)
    if "=" in body:
        key, _, value = body.partition("=")
        found = _values(key, value, given, configs)
    else:
        found = (c for c in _keys(body, given, configs) if c.value.split("=")[0] not in given)
    items = [CompletionItem(sign + c.value, help=c.help) for c in found if c.value.startswith(body)]
    added = f"+{_PACKAGE_GLOBAL}="
    return [*items, CompletionItem(added)] if "=" not in body and added.startswith(incomplete) else items


def complete_location(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:  # noqa: ARG001
    """Complete the overrides that say where studies are stored."""
    key, equals, value = incomplete.partition("=")
    if equals:
        return list(_values(key, value, _given(ctx), _configs(ctx))) if key in _LOCATION_GROUPS else []
    return [CompletionItem(f"{k}=") for k in ("home", *_LOCATION_GROUPS) if k.startswith(key)]


def complete_study(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Complete the name of a study, or an override that says where studies are stored."""
    names = [CompletionItem(n, help=f"{count} trials") for n, count in _studies(_given(ctx)).items()]
    location = complete_location(ctx, param, incomplete) if param.nargs == -1 else []
    return [*(item for item in names if item.value.startswith(incomplete)), *location]


def complete_trial(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Complete STUDY/NUMBER."""
    name, slash, number = incomplete.partition("/")
    studies = _studies(_given(ctx))
    if not slash:
        location = complete_location(ctx, param, incomplete) if param.nargs == -1 else []
        return [*(CompletionItem(f"{n}/") for n in studies if n.startswith(name)), *location]
    numbers = map(str, range(min(studies.get(name, 0), _MAX_TRIALS)))
    return [CompletionItem(f"{name}/{n}") for n in numbers if n.startswith(number)]


def complete_study_or_trial(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Complete STUDY or STUDY/NUMBER."""
    return (complete_trial if "/" in incomplete else complete_study)(ctx, param, incomplete)


def complete_marks(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Complete STUDY/NUMBER, or what to mark it as."""
    verdicts = [CompletionItem(word) for word in ("bad", "good") if word.startswith(incomplete) and ctx.params["refs"]]
    return [*verdicts, *complete_trial(ctx, param, incomplete)]


def complete_file(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:  # noqa: ARG001
    """Have the shell complete a file."""
    return [CompletionItem(incomplete, type="file")]


def complete_folder(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:  # noqa: ARG001
    """Have the shell complete a folder."""
    return [CompletionItem(incomplete, type="dir")]


# Configuration --------------------------------------------------------------------------------------------------------


def _given(ctx: click.Context) -> dict[str, str]:
    """Return the overrides on the command line, key -> text."""
    words = [w for value in ctx.params.values() for w in (value if isinstance(value, tuple) else (value,))]
    pairs = (w.lstrip("+").partition("=") for w in words if isinstance(w, str) and "=" in w)
    return {key: value for key, _, value in pairs}


def _configs(ctx: click.Context) -> ConfigSearchPath:
    """Return the configs of overnight, of --config-dir, and of the winners in the home."""
    own = ctx.params.get("config_dir")
    folders = (*([Path(os.path.expanduser(own))] if own else []), _home(_given(ctx)).winners)
    return ConfigSearchPath(tuple(folder for folder in folders if folder.is_dir()))


def _home(given: Mapping[str, str]) -> HomePaths:
    return StudyLocation(given.get("home") or _read(conf_dir() / "config.yaml")["home"]).paths


def _read(path: Path) -> dict[str, Any]:
    try:
        return dict(read_yaml(path) or {})
    except Exception:  # an unreadable file completes to nothing; `overnight tune` reports it
        return {}


def _values(key: str, value: str, given: Mapping[str, str], configs: ConfigSearchPath) -> Iterator[CompletionItem]:
    """Complete the value of a group (also one of several, `model=mlp,cnn`), of a switch, or of a study's name."""
    before, comma, last = value.rpartition(",")
    options = configs.options(key)
    if not options and key == "study.warm_start_from":
        options = list(_studies(given))
    if not options and isinstance(_find(_tree(given, configs), key), bool):
        options = ["true", "false"]
    for option in options:
        if option.startswith(last):
            yield CompletionItem(f"{key}={before}{comma}{option}")


def _keys(body: str, given: Mapping[str, str], configs: ConfigSearchPath) -> Iterator[CompletionItem]:
    parent, dot, _ = body.rpartition(".")
    tree = _tree(given, configs)
    node = _find(tree, parent) if parent else tree
    if not parent:
        groups = sorted(configs.groups() - {_PACKAGE_GLOBAL})
        yield from (CompletionItem(f"{group}=", help="config group") for group in groups)
    for key, value in node.items() if isinstance(node, Mapping) else ():
        if isinstance(value, Mapping) and value:
            yield CompletionItem(f"{parent}{dot}{key}.")
        elif not key.startswith("_"):
            yield CompletionItem(f"{parent}{dot}{key}=", help=f"default: {_text(value)}")


def _tree(given: Mapping[str, str], configs: ConfigSearchPath) -> dict[str, Any]:
    """Return the keys of config.yaml and of the options that are selected, with their defaults."""
    config, folders = _read(conf_dir() / "config.yaml"), (conf_dir(), *configs.folders)
    chosen = {g: o for entry in config.pop("defaults") if isinstance(entry, Mapping) for g, o in entry.items()}
    chosen |= {g: o for g, o in given.items() if g in chosen}
    for group, options in chosen.items():
        paths = [f / group / f"{option}.yaml" for option in options.split(",") for f in folders]
        nodes = [_read(path) for path in paths if group != "search" and path.exists()]
        if nodes:
            config[group] = {k: v for node in nodes for k, v in node.items() if k != "defaults"}
    return config


def _text(value: Any) -> str:
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _find(tree: Any, key: str) -> Any:
    for part in key.split("."):
        tree = tree.get(part) if isinstance(tree, Mapping) else None
    return tree


# Studies --------------------------------------------------------------------------------------------------------------


def _studies(given: Mapping[str, str]) -> dict[str, int]:
    """Return the studies of the home, name -> number of trials, the newest first; none for a shared storage."""
    path = _home(given).optuna_db
    if given.get("storage", "sqlite") != "sqlite" or not path.exists():
        return {}
    query = """SELECT study_name, (SELECT count(*) FROM trials WHERE trials.study_id = studies.study_id) FROM studies
        WHERE study_id IN (SELECT study_id FROM study_user_attributes WHERE key = ?)
        ORDER BY study_id DESC"""
    try:
        with closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True, timeout=_SQLITE_TIMEOUT_S)) as db:
            rows = db.execute(query, [attributes.READY]).fetchall()
    except sqlite3.Error:
        return {}
    found: dict[str, int] = {}
    for name, trials in rows:
        if not name.partition("~")[0].endswith(".confirm"):
            found.setdefault(name.partition("~")[0], trials)  # NAME~2 extends NAME
    return found


# Shells ---------------------------------------------------------------------------------------------------------------


class _Bash(BashComplete):
    """Bash splits words at `=` and adds a space to each completion; KEY=VALUE needs neither."""

    source_template = """\
%(complete_func)s() {
    local IFS=$'\\n' response type value
    response=$(env COMP_LINE="${COMP_LINE:0:COMP_POINT}" COMP_WORD="${COMP_WORDS[COMP_CWORD]}" \\
        %(complete_var)s=bash_complete $1)
    for completion in $response; do
        IFS=',' read type value <<< "$completion"
        case $type in
            dir) compopt -o dirnames ;;
            file) compopt -o default ;;
            plain) COMPREPLY+=("$value"); [[ $value == *[=./] ]] && compopt -o nospace ;;
        esac
    done
    return 0
}

complete -o nosort -F %(complete_func)s %(prog_name)s
"""
    _kept = 0  # characters of the incomplete word that Bash does not replace

    def get_completion_args(self) -> tuple[list[str], str]:
        line, replaced = os.environ["COMP_LINE"], os.environ["COMP_WORD"].removeprefix("=")
        words = split_arg_string(line)
        incomplete = "" if line[-1:].isspace() else words.pop()
        self._kept = len(incomplete.removesuffix(replaced))
        return words[1:], incomplete

    def format_completion(self, item: CompletionItem) -> str:
        return f"{item.type},{item.value[self._kept :]}"


class _Zsh(ZshComplete):
    """Adds no space to a completion that ends in `=`, `.` or `/`."""

    source_template = """\
#compdef %(prog_name)s

%(complete_func)s() {
    local type key description
    local -a response space=() no_space=() space_described=() no_space_described=()
    (( ! $+commands[%(prog_name)s] )) && return 1
    response=("${(@f)$(env COMP_WORDS="${words[*]}" COMP_CWORD=$((CURRENT-1)) \\
        %(complete_var)s=zsh_complete %(prog_name)s)}")
    for type key description in ${response}; do
        case $type-$description-$key in
            dir-*) _path_files -/ ;;
            file-*) _path_files -f ;;
            plain-_-*[=./]) no_space+=("$key") ;;
            plain-_-*) space+=("$key") ;;
            plain-*[=./]) no_space_described+=("$key:$description") ;;
            plain-*) space_described+=("$key:$description") ;;
        esac
    done
    (( $#space_described )) && _describe -V unsorted space_described -U
    (( $#no_space_described )) && _describe -V unsorted no_space_described -U -S ''
    (( $#space )) && compadd -U -V unsorted -a space
    (( $#no_space )) && compadd -U -V unsorted -S '' -a no_space
}

if [[ $zsh_eval_context[-1] == loadautofunc ]]; then
    %(complete_func)s "$@"
else
    compdef %(complete_func)s %(prog_name)s
fi
"""


def install() -> None:
    """Replace click's completion of Bash and zsh."""
    add_completion_class(_Bash)
    add_completion_class(_Zsh)
