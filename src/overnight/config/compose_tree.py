"""From overrides and a user's own tree to a draft. The user's keys are theirs; ours are the settings of the study."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from overnight.config import credentials, sweeper, user_tree
from overnight.config.compose import Draft, check_values, compose, resolve, settings_of, sort_overrides
from overnight.config.fields import nearest
from overnight.config.overrides import check_list, option_problem, parse_overrides
from overnight.config.paths import StudyLocation
from overnight.config.problems import ConfigError, Problems
from overnight.config.search_path import ConfigSearchPath, describe_failure
from overnight.config.settings import COMPONENTS, SEARCHABLE, SECTIONS
from overnight.config.trees import flatten, has_key, keys_of, look_up, to_plain, type_problem
from overnight.config.user_tree import TreeComposition, TreeLook, TreeUse, UserTree
from overnight.config.values import escaped, to_text

_OWN = "overnight."  # the beginning of a key that is always ours
_KEYS = "keys."
_T = TypeVar("_T")


def compose_tree(overrides: Iterable[str], config_dir: str | Path, config_name: str) -> Draft:
    """Compose a user's own tree, and read the settings of a study from it. Creates nothing on disk.

    Args:
        overrides: Of the user's keys and of ours, in Hydra's grammar. A key that both have is the user's.
        config_dir: The folder of the tree.
        config_name: The primary config in it.

    Raises:
        ConfigError: There is no such tree, or it does not compose, or has no data or model.
    """
    problems = Problems()
    folder = Path(os.path.expanduser(config_dir)).absolute()
    if not folder.is_dir():
        raise ConfigError([f"--config-dir: must be a folder, and {folder} is none"])
    user_tree.set_project_root(folder)
    parsed = parse_overrides(credentials.reject_secrets(check_list(overrides), problems), problems)
    named, own, rest = _split_own(parsed, problems)
    home = next((str(o.value()) for o in [*reversed(own), *reversed(parsed)] if o.key_or_group == "home"), "./mlruns")
    output = StudyLocation(home).paths.root / "output"
    tree = dataclasses.replace(user_tree.find_tree(folder, config_name), named=named, output_dir=str(output))
    groups = tree.groups()
    options: list[Any] = []
    values: list[Any] = []
    for override in rest:
        (options if override.key_or_group in groups or "@" in override.key_or_group else values).append(override)
    chosen = [o for o in options if not o.is_sweep_override()]
    problems.extend(filter(None, (_option_problem(o, tree) for o in chosen)))
    problems.raise_if_any()
    classes = [o for o in values if o.key_or_group.endswith(("._target_", ".class_path"))]
    base = _in_one_line(tree, lambda: tree.look(str(o.input_line) for o in (*chosen, *classes)))
    tree = dataclasses.replace(tree, renames=base.nodes)
    theirs = [o for o in values if _is_theirs(o, base)]
    space = base.own.pop("search", None) or {}
    given = [*own, *(o for o in values if o not in theirs)]
    ours = [*_own_overrides(base.own, own, problems), *given]
    accepted = [str(o.input_line) for o in chosen]
    accepted += [_in_tree(o, tree, base) for o in theirs if not o.is_sweep_override()]
    problems.extend(filter(None, (_value_problem(o, tree, base) for o in theirs)))
    problems.raise_if_any()
    settings_tree = _settings_tree(ours, problems)
    tree = dataclasses.replace(tree, trainer=settings_tree.get("trainer") or {})
    composed = _in_one_line(tree, lambda: tree.compose(accepted))
    sweeps = {tree.key_of_trial(o.key_or_group): _sweep(o) for o in (*options, *theirs) if o.is_sweep_override()}
    _check_sweeps(sweeps, problems)
    composed.sweeper["params"] = {**(composed.sweeper.get("params") or {}), **space}
    draft = _draft(tree, composed, settings_tree, ours, [*chosen, *theirs], sweeps, accepted, problems)
    line = [
        f"{_OWN if o in own else ''}{o.input_line}" for o in (*chosen, *theirs, *given) if not o.is_sweep_override()
    ]
    names = (f"{_OWN}{_KEYS}{node}={key}" for node, key in named.items())
    assert draft.tree is not None
    return dataclasses.replace(draft, tree=dataclasses.replace(draft.tree, overrides=(*line, *names)))


def _draft(
    tree: UserTree,
    composed: TreeComposition,
    settings_tree: dict[str, Any],
    ours: list[Any],
    theirs: list[Any],
    sweeps: dict[str, str],
    accepted: list[str],
    problems: Problems,
) -> Draft:
    nodes = to_plain(composed.config)
    taken = sweeper.read({**composed.rest, **nodes}, composed.sweeper, problems)
    given = {o.key_or_group for o in ours}
    merged = {k: v for k, v in settings_tree.items() if k not in (*COMPONENTS, "trainer", "search")} | nodes
    used = {key: value for key, value in taken.settings.items() if not _is_given(key, given)}
    for key, value in used.items():
        _set(merged, key, value)
    if merged["study"].get("metric") is None:
        problems.add(f"study.metric: must be given where {tree.label} has no optimized_metric; add study.metric=NAME")
    merged["search"] = escaped({tree.key_of_trial(key): draw for key, draw in taken.space.items()})
    settings = settings_of(_of_settings(merged), composed.choices, problems)
    use = TreeUse(
        tree.name,
        tree.label,
        (),
        tuple(f"{key}={to_text(value)} (from {taken.origin[key]})" for key, value in used.items()),
        (*composed.unused, *taken.unused),
        {k: _unread(v, composed.raw.get(k)) for k, v in composed.rest.items() if k not in ("seed", "logger")},
        tuple(map(str, user_tree.import_folders(tree.folder))),
    )
    plain = [o for o in (*theirs, *ours) if not o.is_sweep_override() and not o.is_delete()]
    return Draft(
        merged,
        composed.choices,
        sweeps,
        added=tuple(tree.key_of_trial(o.key_or_group) for o in theirs if o.is_sweep_override() and o.is_add()),
        fixed=tuple(tree.key_of_trial(o.key_or_group) for o in plain),
        absent={},
        settings=settings,
        problems=problems,
        config_dir=tree.folder,
        _search_path=tree,
        _overrides=accepted,
        tree=use,
        _composed=composed,
    )


def _unread(value: Any, written: Any) -> Any:
    """A value to keep with the study. Environment variables stay unread in it, because they may be secret."""
    if isinstance(written, str) and "oc.env" in written:
        return written
    if isinstance(value, Mapping) and isinstance(written, Mapping):
        return {k: _unread(v, written.get(k)) for k, v in value.items()}
    if isinstance(value, list) and isinstance(written, list) and len(value) == len(written):
        return [*map(_unread, value, written)]
    return value


def compose_any(
    overrides: Iterable[str], config_dir: str | Path | None = None, config_name: str | None = None
) -> Draft:
    """Compose the user's own tree where `config_name` names one, and else ours with the user's configs."""
    if config_name is None:
        return compose(overrides, config_dir)
    if config_dir is None:
        raise ConfigError(
            [f"--config-name: needs --config-dir, the folder of {config_name}.yaml; add --config-dir=DIR"]
        )
    return compose_tree(overrides, config_dir, config_name)


# Whose key it is ----------------------------------------------------------------------------------------------------


def _split_own(parsed: Iterable[Any], problems: Problems) -> tuple[dict[str, str], list[Any], list[Any]]:
    """The keys of nodes that the command line names, the overrides that begin with `overnight.`, and all others."""
    named: dict[str, str] = {}
    own, rest = [], []
    for override in parsed:
        key = override.key_or_group
        if not key.startswith(_OWN):
            rest.append(override)
        elif key.startswith(_OWN + _KEYS):
            named[key.removeprefix(_OWN + _KEYS)] = str(override.value())
        else:
            text = str(override.input_line).lstrip("+").removeprefix(_OWN)
            own.extend(parse_overrides([text], problems))
    return named, own, rest


def _own_overrides(node: Mapping[str, Any], given: list[Any], problems: Problems) -> list[Any]:
    """The settings in the node `overnight` of a tree, as overrides, without those that the command line gives."""
    known = {o.key_or_group for o in given}
    texts = [f"{key}={to_text(value)}" for key, value in flatten(node).items() if key not in known]
    return parse_overrides(texts, problems)


def _is_theirs(override: Any, base: TreeLook) -> bool:
    """Whether an override is of a key of the user's tree: one that the tree has, or that we don't have either."""
    section = override.key_or_group.split(".")[0]
    if section in base.raw or section == "hydra" or section in base.nodes:
        return True
    return section not in SECTIONS and section not in ConfigSearchPath().groups() - {"data", "model", "experiment"}


def _in_tree(override: Any, tree: UserTree, base: TreeLook) -> str:
    """An override of a value with the user's key, as Hydra takes it. Arguments may be added to the trainer."""
    key, text = override.key_or_group, str(override.input_line)
    named = tree.key_in_tree(key, base.raw)
    text = text.replace(key, named, 1)
    trainer = base.nodes.get("trainer")
    is_new = trainer is not None and named.startswith(f"{trainer}.") and not text.startswith(("+", "~"))
    return f"++{text}" if is_new or (tree.is_cli and not text.startswith(("+", "~"))) else text


def _sweep(override: Any) -> str:
    return str(override.input_line).split("=", 1)[1].strip()


# Checks -------------------------------------------------------------------------------------------------------------


def _in_one_line(tree: UserTree, compose: Callable[[], _T]) -> _T:
    """Call a method of a tree; what Hydra and OmegaConf raise becomes a mistake of the user."""
    try:
        return compose()
    except ConfigError:
        raise
    except Exception as error:
        problem = describe_failure(error)
        raise ConfigError([problem.replace("conf: must", f"{tree.label}: must", 1)]) from error


def _option_problem(override: Any, tree: UserTree) -> str | None:
    """What is wrong with a GROUP=OPTION of the user's tree that Hydra would say at length."""
    key = override.key_or_group
    if "@" in key or override.is_add() or override.is_delete() or not isinstance(override.value(), str):
        return None
    return option_problem(override, tree)  # type: ignore[arg-type]


def _value_problem(override: Any, tree: UserTree, base: TreeLook) -> str | None:
    """What is wrong with a value of the user's tree that Hydra would say at length, or not at all."""
    key = tree.key_of_trial(override.key_or_group)
    section = key.split(".")[0]
    is_plain = not (override.is_sweep_override() or override.is_add() or override.is_force_add())
    if not is_plain or section in ("hydra", "trainer", "callbacks"):
        return None
    moved = base.moved
    if section not in moved:
        return f"{key}: no such key in {tree.label}" + nearest(key, [*moved, *SECTIONS])
    if not has_key(moved, key):
        return f"{key}: no such key" + nearest(key, keys_of(moved), and_add=section in COMPONENTS)
    present = look_up(moved, key)
    if override.is_delete() or section not in COMPONENTS or present == "???" or "${" in str(present):
        return None
    problem = type_problem(present, override.value())
    return f"{key}: {problem}" if problem else None


def _check_sweeps(sweeps: dict[str, str], problems: Problems) -> None:
    for key in list(sweeps):
        if key.split(".")[0] not in SEARCHABLE:
            problems.add(f"{key}: only keys of {', '.join(SEARCHABLE)} can be searched, got a sweep")
            del sweeps[key]


# Settings -----------------------------------------------------------------------------------------------------------


def _settings_tree(ours: list[Any], problems: Problems) -> dict[str, Any]:
    """Our own tree with the overrides that are ours. Its components are replaced later."""
    path = ConfigSearchPath()
    options, values, sweeps = sort_overrides(ours, path, problems)
    for key, text in sweeps.items():
        problems.add(f"{key}: only keys of {', '.join(SEARCHABLE)} can be searched, got the sweep {text}")
    base = path.compose_or_default([*options, "search=none"], problems)
    accepted, _ = check_values(values, base.config, path, problems)
    composed = path.compose_or_default([*options, "search=none", *accepted], problems) if accepted else base
    return resolve(composed, problems)


def _of_settings(merged: Mapping[str, Any]) -> dict[str, Any]:
    """What settings are built from. A task of the user's data module means something else than ours."""
    data = {k: v for k, v in (merged.get("data") or {}).items() if k != "task"}
    known = {k: v for k, v in merged.items() if k in (*SECTIONS, *COMPONENTS, "search")}
    return {**known, "data": data}


def _is_given(key: str, given: Iterable[str]) -> bool:
    """Whether the command line has set one of our keys, or all of its section."""
    return any(g == key or key.startswith(f"{g}.") or (g.startswith(f"{key}.") and "." not in key) for g in given)


def _set(tree: dict[str, Any], key: str, value: Any) -> None:
    section, _, name = key.partition(".")
    tree[section] = {**tree[section], name: value} if name else value
