"""What a study is, complete and checked: settings, search space, and a configuration for every point of it.

A plan needs neither conf/ nor a command line once it is made: `to_json` freezes it into the ledger, so that whoever
goes on with the study runs what was asked then.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import math
import random
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from overnight import search_space, settings
from overnight.search_space import SearchSpace
from overnight.settings import COMPONENTS, SEARCHABLE, ConfigError, Settings

# A study searches over at most so many combinations of config groups: each is composed once, before the start.
MAX_VARIANTS = 64
# The study, and MLflow experiment, of what `overnight train` trains.
TRAIN = "train"


@dataclass(frozen=True)
class Plan:
    """variants: for each combination of searched config groups (in `groups`' order) the composed tree, unresolved."""

    settings: Settings
    space: SearchSpace
    groups: tuple[str, ...]
    choices: dict[str, str]
    variants: dict[tuple[str, ...], dict[str, Any]]

    @property
    def name(self) -> str:
        return self.settings.study_name

    def config(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """What one trial is built from: data, model, optimizer and trainer, with `values` (key -> value) put in."""
        combination = tuple(str(values.get(g, self.choices[g])) for g in self.groups)
        variant = self.variants.get(combination) or self.variants[self._written_combination()]
        return settings.with_values(variant, {k: v for k, v in values.items() if k not in self.groups})

    def config_of(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """The config of a trial whose parameters (name -> value) are known; a key without them stays as written."""
        values: dict[str, Any] = {}
        for parameter in self.space.parameters:
            with contextlib.suppress(KeyError):
                values[parameter.key] = parameter.draw(lambda name, _: params[name])
        return self.config(values)

    def written(self, key: str) -> Any:
        """The value of a key in the configuration as written; for a config group, the option taken."""
        if key in self.choices and "." not in key:
            return self.choices[key]
        return settings.look_up(self.config({}), key)

    def baseline(self) -> dict[str, Any]:
        """Parameter name -> value of the configuration as written, as far as it lies in the space."""
        return self.space.written_point(self.written)

    def written_values(self) -> dict[str, Any]:
        """Searched key -> value of the configuration as written, in or out of the space."""
        values = {}
        for p in self.space.parameters:
            with contextlib.suppress(KeyError):  # a key that the search adds is written nowhere
                if p.when is None or p.when.met({}, self.written):
                    values[p.key] = self.written(p.key)
        return values

    def sample(self, rng: random.Random) -> dict[str, Any]:
        """A point drawn at random, key -> value."""
        return self.space.draw(lambda _, dist: _random(dist, rng), self.written)

    def trial_seed(self, number: int) -> int:
        """The seed that trial `number` trains with."""
        return derive_seed(self.settings.seed, "trial", number)

    def to_json(self) -> dict[str, Any]:
        return {
            "settings": settings.to_json(self.settings),
            "space": self.space.to_json(),
            "groups": list(self.groups),
            "choices": self.choices,
            "variants": [[list(k), v] for k, v in self.variants.items()],
        }

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Plan:
        return Plan(
            settings.from_json(data["settings"]),
            SearchSpace.from_json(data["space"]),
            tuple(data["groups"]),
            dict(data["choices"]),
            {tuple(k): v for k, v in data["variants"]},
        )

    def differences(self, old: Plan) -> list[str]:
        """Why trials of `old` and of this plan cannot stand side by side, one line each; empty where they can.

        Budget, slots, home, pruner, sampler, retries and the like may change: they move no trial's score.
        """
        # Where a condition fails a trial has the written value, so that one counts.
        searched = {p.key for plan in (self, old) for p in plan.space.parameters if p.when is None}
        mine, theirs = self._measure(searched), old._measure(searched)
        changed = {k for k in {*mine, *theirs} if mine.get(k, "absent") != theirs.get(k, "absent")}
        return [
            f"{key}: was {theirs.get(key, 'absent')}, is {mine.get(key, 'absent')}"
            for key in dict.fromkeys([*theirs, *mine])
            # What moved in the written combination of config groups is told once, not for every other one again.
            if key in changed and ("] " not in key or key.partition("] ")[2] not in changed)
        ]

    def _measure(self, searched: set[str]) -> dict[str, Any]:
        """Everything that a score depends on, flat; of the `searched` keys, what is drawn for them."""
        study = self.settings.study
        flat = {
            "study.metric": study.metric,
            "study.direction": study.direction,
            "study.objective": study.objective,
            "seed": self.settings.seed,
        }
        for combination in sorted(self.variants):
            taken = dict(zip(self.groups, combination, strict=True))
            config = self.config(taken)
            named = "" if combination == self._written_combination() else f"[{','.join(combination)}] "
            for node in SEARCHABLE:
                flat.update({f"{named}{k}": v for k, v in _flat(config.get(node), node).items()})
        flat = {k: v for k, v in flat.items() if k.rpartition(" ")[2] not in searched}
        return {**flat, **{f"search.{key}": draw for key, draw in self.space.describe().items()}}

    def _written_combination(self) -> tuple[str, ...]:
        return tuple(self.choices[g] for g in self.groups)


def derive_seed(*parts: int | str) -> int:
    """A seed from 0 to 2**32 - 1 that depends on every part, the same on every machine and in every version."""
    return int.from_bytes(hashlib.sha256("/".join(map(str, parts)).encode()).digest()[:4], "big")


def make(overrides: Iterable[str] = (), config_dir: str | Path | None = None, searching: bool = True) -> Plan:
    """Compose, check and plan. Raises ConfigError with every mistake at once; creates nothing on disk.

    Args:
        overrides: Hydra's; a plain value for a searched key takes the key out of the search, a sweep puts it in.
        config_dir: a folder of somebody's own configs.
        searching: False for one configuration as it stands; a sweep is then a mistake.
    """
    draft = settings.compose(overrides, config_dir)
    problems = draft.problems
    written = draft.config.get("search") or {}
    if not isinstance(written, Mapping):
        problems.append(f"search: must be a mapping from config key to draw, got {written!r}")
        written = {}
    if searching and draft.settings is not None and draft.settings.study_name == TRAIN:
        problems.append(f"study.name: {TRAIN} is where `overnight train` keeps its trials; take another")
    entries = dict(written) if searching else {}
    if not searching:
        problems.extend(
            f"{key}: `train` takes one value, got the sweep {text}; sweeps are for `tune`"
            for key, text in draft.sweeps.items()
        )
    entries = {k: v for k, v in entries.items() if k not in draft.fixed}
    entries.update(draft.sweeps)
    space, fixed = search_space.parse(entries, problems)
    if not draft.config:
        raise ConfigError(problems)
    choices = {g: option for g, option in draft.choices.items() if g in COMPONENTS}
    groups, combinations = _combinations(draft, space, choices, problems)
    variants: dict[tuple[str, ...], dict[str, Any]] = {}
    for combination in combinations:
        try:
            variants[combination] = draft.variant(dict(zip(groups, combination, strict=True)))
        except Exception as error:  # Hydra's and OmegaConf's share no base class
            named = ", ".join(f"{g}={o}" for g, o in zip(groups, combination, strict=True))
            problems.append(f"search: {named} must compose: {' '.join(str(error).split())}")
    _put_in(variants, fixed, problems)
    _check_keys(space, groups, choices, variants, draft, problems)
    if problems or draft.settings is None:
        raise ConfigError(problems)
    return Plan(draft.settings, space, groups, choices, variants)


def for_training(plan: Plan) -> Plan:
    """The plan of `overnight train`: one trial more in the study `train`, nothing searched, nothing pruned."""
    study = replace(plan.settings.study, name=TRAIN, trials=1)
    pruner = replace(plan.settings.pruner, name="none")
    return replace(plan, settings=replace(plan.settings, study=study, pruner=pruner, slots=1), space=SearchSpace(()))


def _combinations(
    draft: settings.Draft, space: SearchSpace, choices: Mapping[str, str], problems: list[str]
) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """The searched config groups, and every combination of their options, the written one included."""
    searched: dict[str, list[str]] = {}
    for group, options in space.group_choices(COMPONENTS).items():
        known = draft.options(group)
        problems.extend(
            f"search.{group}: must choose among {', '.join(known)}, got {option!r}"
            for option in options
            if option not in known
        )
        searched[group] = sorted({choices[group], *(o for o in options if o in known)})
    groups = tuple(searched)
    count = math.prod(len(options) for options in searched.values())
    if count > MAX_VARIANTS:
        problems.append(
            f"search: at most {MAX_VARIANTS} combinations of config groups, got {count}; "
            f"take fewer options of {', '.join(groups)}"
        )
        return groups, [tuple(choices[g] for g in groups)]
    return groups, list(itertools.product(*searched.values()))


def _put_in(variants: Mapping[Any, dict[str, Any]], fixed: Mapping[str, Any], problems: list[str]) -> None:
    """Put the values that the search space fixes into every variant."""
    for key, value in fixed.items():
        parent, _, last = key.rpartition(".")
        if not any(parent and settings.has_key(v, key) for v in variants.values()):
            problems.append(f"search.{key}: no such key, got {value!r}")
        for variant in variants.values():
            if parent and settings.has_key(variant, key):
                settings.look_up(variant, parent)[last] = value


def _check_keys(
    space: SearchSpace,
    groups: tuple[str, ...],
    choices: Mapping[str, str],
    variants: Mapping[tuple[str, ...], dict[str, Any]],
    draft: settings.Draft,
    problems: list[str],
) -> None:
    """Every searched key exists wherever it is drawn, and what is drawn is of the kind that is written there."""
    searched = {p.key for p in space.parameters}
    for parameter in space.parameters:
        where, when = f"search.{parameter.key}", parameter.when
        if when is not None and when.key not in searched and when.key not in draft.fixed:
            problems.append(
                f"{where}.when: must look at a searched key, got {when.key!r}; search it or drop the `when`"
            )
        known = _possible(space, when.key, draft) if when is not None else None
        if when is not None and known is not None:
            problems.extend(
                f"{where}.when: {when.key} is one of {', '.join(known)}, and never {value!r}"
                for value in when.values
                if value not in known
            )
        if parameter.key in groups or (parameter.key in draft.added and parameter.key.split(".")[0] in COMPONENTS):
            continue
        if parameter.key.split(".")[0] not in SEARCHABLE or "." not in parameter.key:
            problems.append(f"{where}: only keys of {', '.join(SEARCHABLE)} can be searched")
            continue
        for combination, variant in variants.items():
            taken = {**choices, **dict(zip(groups, combination, strict=True))}
            if when is not None and when.key in taken and not when.holds(taken[when.key]):
                continue
            problem = _misfit(parameter, variant)
            if problem:
                named = ", ".join(f"{g}={taken[g]}" for g in groups)
                problems.append(f"{where}: {problem}" + (f" (with {named})" if named else ""))
                break


def _possible(space: SearchSpace, key: str, draft: settings.Draft) -> list[str] | None:
    """The texts that a searched key may hold; None where that is open, or was narrowed for this once by a sweep."""
    if key in COMPONENTS:
        return draft.options(key)
    drawn = next((p.each for p in space.parameters if p.key == key), None)
    if key in draft.sweeps or not isinstance(drawn, CategoricalDistribution):
        return None
    return [search_space.in_grammar(option) for option in drawn.choices]


def _misfit(parameter: search_space.Parameter, variant: Mapping[str, Any]) -> str | None:
    if not settings.has_key(variant, parameter.key):
        known = ", ".join(settings.look_up(variant, parameter.key.split(".")[0]))
        return f"no such key; there are {known}; a key that only one option of a group has needs a `when`"
    written = settings.look_up(variant, parameter.key)
    if parameter.length is not None:
        return None if isinstance(written, list | None) else f"draws a list, and {written!r} is written there"
    if isinstance(parameter.each, CategoricalDistribution):
        options = parameter.options or parameter.each.choices
        return next(filter(None, (settings.kind_problem(written, o) for o in options)), None)
    if isinstance(written, int) and not isinstance(written, bool) and isinstance(parameter.each, FloatDistribution):
        return f"draws floats, and {written!r} is written there: take int(interval(LOW, HIGH)), or write {written}.0"
    problem = settings.kind_problem(written, 1)
    return f"draws numbers, and {written!r} is written there" if problem else None


def _random(dist: BaseDistribution, rng: random.Random) -> Any:
    """A value drawn at random, uniform on the scale of the distribution."""
    if isinstance(dist, CategoricalDistribution):
        return rng.choice(dist.choices)
    assert isinstance(dist, FloatDistribution | IntDistribution)
    if dist.log:
        value = math.exp(rng.uniform(math.log(dist.low), math.log(dist.high)))
        return value if isinstance(dist, FloatDistribution) else min(dist.high, max(dist.low, round(value)))
    if dist.step is None:
        return rng.uniform(dist.low, dist.high)
    value = dist.low + dist.step * rng.randint(0, round((dist.high - dist.low) / dist.step))
    return value if isinstance(dist, FloatDistribution) else int(value)


def _flat(node: Any, prefix: str) -> dict[str, Any]:
    if not isinstance(node, Mapping):
        return {prefix: node}
    return {k: v for key, child in node.items() for k, v in _flat(child, f"{prefix}.{key}").items()}
