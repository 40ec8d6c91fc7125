"""The winner as a config: +experiment=best_STUDY trains it again, or starts a search from it.

It is written to a folder of the home that is on Hydra's search path. A file that was changed by hand is kept.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from optuna.distributions import BaseDistribution, FloatDistribution, IntDistribution

from overnight.config.compose import compose
from overnight.config.paths import StudyLocation, trial_name
from overnight.config.problems import Problems
from overnight.config.search_path import ConfigSearchPath
from overnight.config.settings import COMPONENTS
from overnight.config.trees import to_yaml
from overnight.config.values import escaped, same
from overnight.search import space_reader
from overnight.search.plan import LOCATION_KEYS, Plan
from overnight.search.record import TrialRecord, config_of
from overnight.search.space import Parameter, SearchSpace
from overnight.system.files import write_atomically

# Components that a user's model may do without.
_REPLACEABLE = ("optimizer", "schedule")
_MARK = "# Written by overnight, digest "
_OBJECTIVE_KEYS = ("metric", "direction", "objective")


def option_name(name: str) -> str:
    """Return the name of a study's winner as an option of a config group."""
    return f"best_{name}"


def write(plan: Plan, best: TrialRecord) -> tuple[Path, ...]:
    """Write the config of the winner to the home and return the files that were changed by hand, which are kept."""
    where = plan.settings.location.paths
    winner = _winner(plan, best)
    texts = {plan.paths.winner_config: _experiment(plan, winner)}
    for group, node in winner.own.items():
        texts[where.winners / group / f"{option_name(plan.name)}.yaml"] = to_yaml(escaped(node))
    changed = tuple(path for path in texts if path.exists() and not is_unmodified(path))
    for path, text in texts.items():
        if path not in changed:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(
                path, f"{text}{_MARK}{_digest(text)}. If you change this file, overnight keeps your version.\n"
            )
    return changed


def written_files(location: StudyLocation, name: str) -> list[Path]:
    """Return the files that `write` wrote for a study, without those that were changed by hand."""
    found = location.paths.winners.glob(f"*/{option_name(name)}.yaml")
    return sorted(path for path in found if is_unmodified(path))


def is_unmodified(path: Path) -> bool:
    """Whether a file is as `write` wrote it."""
    try:
        text, mark, rest = path.read_text("utf-8").rpartition(_MARK)
    except UnicodeDecodeError:  # another program has saved it in another encoding
        return False
    return bool(mark) and rest.startswith(f"{_digest(text)}.") and rest.count("\n") == 1


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _experiment(plan: Plan, winner: _Winner) -> str:
    groups = {g: option_name(plan.name) if g in winner.own else o for g, o in winner.groups.items()}
    experiment: dict[str, Any] = {"defaults": [{f"override /{g}": o} for g, o in {**groups, "search": "none"}.items()]}
    for node in (*COMPONENTS, "trainer"):
        if node in winner.config and node not in winner.own:
            experiment[node] = _changes(winner.config[node], winner.base.get(node) or {}, node)
    experiment = {key: escaped(value) for key, value in experiment.items() if value}
    s = plan.settings
    experiment["study"] = {"name": option_name(plan.name), **{k: getattr(s.study, k) for k in _OBJECTIVE_KEYS}}
    experiment["seed"] = s.seed
    experiment |= {group: None for group in _REPLACEABLE if group not in winner.config}
    if plan.start.import_path:
        experiment["import_path"] = os.pathsep.join(plan.start.import_path)
    if search := _search(plan, winner.groups):
        experiment["search"] = search
    line = f"overnight train +experiment={option_name(plan.name)}"
    return f"# @package _global_\n# {trial_name(winner.number)} of {plan.name}: {line}\n{to_yaml(experiment)}"


@dataclass(frozen=True)
class _Winner:
    """The winner's configuration, compared to the options that come with overnight.

    Attributes:
        groups: Config group -> selected option.
        base: The tree of the selected options that come with overnight.
        own: Config group -> whole node, where `base` plus changed keys cannot express it: an overlay cannot remove a
            key, and an option of the user is in a folder of their own.
    """

    number: int
    config: dict[str, Any]
    groups: dict[str, str]
    base: dict[str, Any]
    own: dict[str, dict[str, Any]]


def _winner(plan: Plan, best: TrialRecord) -> _Winner:
    config, groups = config_of(best, plan), {g: str(best.params.get(g, plan.choices[g])) for g in plan.choices}
    ours = {g: o for g, o in groups.items() if o in ConfigSearchPath().options(g)}
    base = compose([*(f"{g}={o}" for g, o in ours.items()), "search=none"]).config
    own = {g: config[g] for g in groups if g in config and (g not in ours or not _covers(config[g], base[g]))}
    return _Winner(best.number, config, groups, base, own)


def _covers(node: Any, base: Any) -> bool:
    """Whether a node has every key of another one."""
    if not isinstance(base, Mapping):
        return not isinstance(node, Mapping)
    return isinstance(node, Mapping) and all(key in node and _covers(node[key], base[key]) for key in base)


def _changes(node: Mapping[str, Any], base: Mapping[str, Any], path: str) -> dict[str, Any]:
    """Return the keys of a node that differ from another one, without paths that depend on the machine."""
    changes: dict[str, Any] = {}
    for key, value in node.items():
        if f"{path}.{key}" in LOCATION_KEYS or (key in base and same(value, base[key])):
            continue
        if isinstance(value, Mapping) and isinstance(base.get(key), Mapping):
            changes[key] = _changes(value, base[key], f"{path}.{key}")
        else:
            changes[key] = value
    return changes


def _search(plan: Plan, groups: Mapping[str, str]) -> dict[str, Any]:
    """Return the search space within the winner's config groups as a search file; empty if it cannot be written."""
    rest = SearchSpace(tuple(p for p in plan.space.parameters if p.key not in groups))
    inside = [replace(p, suffix="") for p in rest.restricted(groups).parameters]
    entries = {p.key: _entry(p) for p in inside}
    read, _ = space_reader.parse_space(entries, Problems())
    return entries if sorted(read.parameters, key=_key) == sorted(inside, key=_key) else {}


def _key(p: Parameter) -> str:
    return p.key


def _entry(p: Parameter) -> Any:
    if p.length is not None:
        draw: Any = {"length": _draw(p.length, ()), "each": _draw(p.each, p.options)}
    else:
        draw = _draw(p.each, p.options)
    return {"draw": draw, "when": [str(c) for c in p.when]} if p.when else draw


def _draw(dist: BaseDistribution, options: Sequence[Any]) -> dict[str, Any]:
    if options:
        return {"type": "categorical", "choices": list(options)}
    assert isinstance(dist, FloatDistribution | IntDistribution)
    kind = "float" if isinstance(dist, FloatDistribution) else "int"
    ends = {"type": kind, "low": dist.low, "high": dist.high}
    more = {"log": True} if dist.log else {"step": dist.step} if dist.step not in (None, 1) else {}
    return {**ends, **more}
