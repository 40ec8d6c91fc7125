"""What a study is, complete and checked: settings, search space, and a configuration for every point of it.

A plan needs neither conf/ nor a command line once it is made: `to_json` freezes it into the ledger, so that whoever
goes on with the study runs what was asked then.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import itertools
import math
import random
import sys
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from overnight.config import clock
from overnight.config.compose import Draft, compose
from overnight.config.paths import StudyLocation, StudyPaths
from overnight.config.problems import ConfigError, Problems
from overnight.config.rules import nearest
from overnight.config.sections import COMPONENTS, SEARCHABLE, Settings, from_json, to_json
from overnight.config.trees import has_key, look_up, with_values
from overnight.search import grammar, validation
from overnight.search.space import Condition, SearchSpace, in_grammar, shown

# A study searches over at most so many combinations of config groups: each is composed once, before the start.
MAX_VARIANTS = 64
# Where things lie moves no score.
WHEREABOUTS = ("data.root",)
# Of a confirmation, unless somebody says otherwise: fewer make the 95% interval of a mean several times as wide.
CONFIRM_SEEDS = 5
# The study, and MLflow experiment, of what `overnight train` trains.
TRAIN = "train"
# The ledger's study of a confirmation is named after the search's.
CONFIRM = ".confirm"


@dataclass(frozen=True)
class FirstTrial:
    """A configuration to try before anything is drawn.

    entry: what was asked for it; empty for the configuration as written. values: searched key -> value. point:
    parameter name -> value, as far as that lies in the space; outside: the keys whose values do not.
    """

    entry: dict[str, Any]
    values: dict[str, Any]
    point: dict[str, Any]
    outside: tuple[str, ...]


@dataclass(frozen=True)
class Plan:
    """variants: for each combination of searched config groups (in `groups`' order) the composed tree, unresolved.

    taken: searched key -> value of each configuration that study.warm_start_from brought, the best first. config_dir:
    somebody's own folder of configs, which only a line to paste asks for again.
    """

    settings: Settings
    space: SearchSpace
    groups: tuple[str, ...]
    choices: dict[str, str]
    variants: dict[tuple[str, ...], dict[str, Any]]
    taken: tuple[dict[str, Any], ...] = ()
    config_dir: str | None = None

    @property
    def name(self) -> str:
        return self.settings.study_name

    @functools.cached_property
    def budget(self) -> int:
        """How many trials there are to be in all; a grid ends when each of its points has one."""
        trials = self.settings.study.trials
        if self.settings.sampler.name != "grid":
            return trials
        return int(min(trials, self.points + sum(bool(first.outside) for first in self.first_trials())))

    @property
    def paths(self) -> StudyPaths:
        return self.settings.location.paths.study(self.name)

    @property
    def experiment(self) -> str:
        """MLflow's experiment: a confirmation's runs lie beside the search's."""
        return self.name.removesuffix(CONFIRM)

    @property
    def confirm_seeds(self) -> int:
        """Seeds of the confirmation: as given; else five, or none where that would train more than the search does."""
        confirm = self.settings.study.confirm
        if confirm.seeds is not None:
            return confirm.seeds
        return CONFIRM_SEEDS if self.budget >= CONFIRM_SEEDS * (confirm.top + 1) else 0

    @property
    def confirmation_trials(self) -> int:
        """How many trials the confirmation trains at most; none where nothing is searched, and so nothing chosen."""
        return self.confirm_seeds * (self.settings.study.confirm.top + 1) if self.space.parameters else 0

    def config(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """What one trial is built from: data, model, optimizer and trainer, with `values` (key -> value) put in."""
        variant = self.variants.get(self._combination(values)) or self.variants[self._combination({})]
        return with_values(variant, {k: v for k, v in values.items() if k not in self.groups})

    def config_of(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """The config of a trial whose parameters (name, or name as shown -> value) are known; else as written."""
        values: dict[str, Any] = {}
        for parameter in self.space.parameters:
            if parameter.active(values, self.written):
                with contextlib.suppress(KeyError):
                    values[parameter.key] = parameter.draw(lambda n, _: params[n if n in params else shown(n)])
        return self.config(values)

    def written(self, key: str, values: Mapping[str, Any] | None = None) -> Any:
        """The value of a key as written, for a config group the option taken; with the options in `values`, if any.

        Raises KeyError where there is no such key.
        """
        if key in self.choices and "." not in key:
            return self.choices[key]
        combination = self._combination(values or {})
        if combination not in self._resolved:
            self._resolved[combination] = self.config(dict(zip(self.groups, combination, strict=True)))
        return look_up(self._resolved[combination], key)

    @functools.cached_property
    def _resolved(self) -> dict[tuple[str, ...], dict[str, Any]]:
        return {}

    def first_trials(self) -> list[FirstTrial]:
        """The configuration as written, then what `study.enqueue` lists and what another study brought; one for each
        that differs."""
        found: dict[str, FirstTrial] = {}
        for first in map(self.first_trial, [{}, *self.settings.study.enqueue, *self.taken]):
            found.setdefault(repr(first.values), first)
        return list(found.values())

    def first_trial(self, entry: Mapping[str, Any]) -> FirstTrial:
        """The configuration as written but for what `entry`, searched key -> value, says."""

        def value_of(key: str, had: Mapping[str, Any]) -> Any:
            return entry[key] if key in entry else self.written(key, {**entry, **had})

        return FirstTrial(dict(entry), *self.space.find(value_of))

    @functools.cached_property
    def points(self) -> float:
        """How many there are in the space; inf where a float is searched."""
        return self.space.size(self.written)

    def sample(self, rng: random.Random) -> dict[str, Any]:
        """A point drawn at random, key -> value."""
        return self.space.draw(lambda _, dist: _random(dist, rng), self.written)

    def trial_seed(self, number: int) -> int:
        """The seed that trial `number` trains with."""
        return derive_seed(self.settings.seed, "trial", number)

    def to_json(self) -> dict[str, Any]:
        return {
            "settings": to_json(self.settings),
            "space": self.space.to_json(),
            "groups": list(self.groups),
            "choices": self.choices,
            "variants": [[list(k), v] for k, v in self.variants.items()],
            "taken": list(self.taken),
            "config_dir": self.config_dir,
        }

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Plan:
        """The plan that `to_json` wrote, now or in an older version. Raises ConfigError where it can't be read."""
        try:
            return Plan(
                from_json(data["settings"]),
                SearchSpace.from_json(data["space"]),
                tuple(data["groups"]),
                dict(data["choices"]),
                {tuple(k): v for k, v in data["variants"]},
                tuple(data.get("taken", ())),  # 0.1 kept neither
                data.get("config_dir"),
            )
        except ConfigError:
            raise
        except (KeyError, TypeError, ValueError, AttributeError, AssertionError) as error:
            raise ConfigError([f"plan: {type(error).__name__}: {error}"]) from error

    def at(self, location: StudyLocation) -> Plan:
        """The same study where it lies now: a home may be moved, or looked at from another folder."""
        return replace(self, settings=replace(self.settings, home=location.home, found_location=location))

    def differences(self, old: Plan) -> list[str]:
        """Why trials of `old` and of this plan cannot stand side by side, one line each; empty where they can.

        Budget, slots, home, data.root, pruner, sampler, retries and the like may change: they move no trial's score.
        """
        # Where a condition fails a trial has the written value, so that one counts.
        searched = {p.key for plan in (self, old) for p in plan.space.parameters if not p.when}
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
            named = "" if combination == self._combination({}) else f"[{','.join(combination)}] "
            for node in SEARCHABLE:
                flat.update({f"{named}{k}": v for k, v in _flat(config.get(node), node).items()})
        flat = {k: v for k, v in flat.items() if k.rpartition(" ")[2] not in {*searched, *WHEREABOUTS}}
        return {**flat, **{f"search.{key}": draw for key, draw in self.space.describe().items()}}

    def _combination(self, values: Mapping[str, Any]) -> tuple[str, ...]:
        return tuple(str(values.get(g, self.choices[g])) for g in self.groups)


def derive_seed(*parts: int | str) -> int:
    """A seed from 0 to 2**32 - 1 that depends on every part, the same on every machine and in every version."""
    return int.from_bytes(hashlib.sha256("/".join(map(str, parts)).encode()).digest()[:4], "big")


def make(overrides: Iterable[str] = (), config_dir: str | Path | None = None, searching: bool = True) -> Plan:
    """Compose, check and plan. Raises ConfigError with every mistake at once; creates nothing on disk.

    Args:
        overrides: Hydra's; a plain value for a searched key takes the key out of the search, a sweep puts it in.
        config_dir: a folder of somebody's own configs; the folder around it joins the import path, for their classes.
        searching: False for one configuration as it stands; a sweep is then a mistake.
    """
    given, told = list(overrides), Problems()
    draft = compose(given, config_dir)
    if not draft.config:
        raise ConfigError(draft.problems)
    if draft.config_dir is not None and str(draft.config_dir.parent) not in sys.path:
        sys.path.append(str(draft.config_dir.parent))  # trial processes inherit it
    if not searching:
        told.merge(
            f"{k}: `train` takes one value, got the sweep {v}; sweeps are for `tune`" for k, v in draft.sweeps.items()
        )
    written, sweeps = _written_search(draft, told) if searching else ({}, {})
    space, fixed = grammar.parse(written, told, draft.fixed, sweeps)
    draft, fixed = _with_fixed(draft, fixed, given, config_dir, told)
    problems = Problems([*draft.problems, *told])
    if searching and draft.settings is not None and draft.settings.study_name == TRAIN:
        problems.add(f"study.name: {TRAIN} is where `overnight train` keeps its trials; take another")
    if searching and draft.settings is not None and draft.settings.study_name.endswith(CONFIRM):
        problems.add(f"study.name: must not end in {CONFIRM}, which names confirmations; take another")
    if searching and draft.settings is not None:
        _check_warm_start(draft.settings, problems)
    choices = {g: option for g, option in draft.choices.items() if g in COMPONENTS}
    space = settled(space, {g: o for g, o in choices.items() if g in draft.fixed})
    groups, combinations = _combinations(draft, space, choices, problems)
    variants: dict[tuple[str, ...], dict[str, Any]] = {}
    for combination in combinations:
        try:
            variants[combination] = draft.variant(dict(zip(groups, combination, strict=True)))
        except Exception as error:  # Hydra's and OmegaConf's share no base class
            named = ", ".join(f"{g}={o}" for g, o in zip(groups, combination, strict=True))
            problems.add(f"search: {named} must compose: {' '.join(str(error).split())}")
    validation.put_in(variants, fixed, draft.absent, problems)
    space = _where_there(space, groups, variants, sweeps)
    validation.check_keys(space, groups, choices, variants, draft, {*draft.fixed, *fixed}, problems)
    if problems or draft.settings is None:
        raise ConfigError(problems)
    folder = str(draft.config_dir) if draft.config_dir is not None else None
    plan = Plan(draft.settings, space, groups, choices, variants, config_dir=folder)
    if searching:
        _check_sampler(plan, problems)
        _check_enqueued(plan, problems)
        _check_limits(plan, problems)
        problems.raise_if_any()
    return plan


def for_training(plan: Plan) -> Plan:
    """The plan of `overnight train`: one trial more in the study `train`, nothing searched, nothing pruned."""
    study = replace(plan.settings.study, name=TRAIN, trials=1)
    pruner = replace(plan.settings.pruner, name="none")
    return replace(plan, settings=replace(plan.settings, study=study, pruner=pruner, slots=1), space=SearchSpace(()))


def _written_search(draft: Draft, problems: Problems) -> tuple[Mapping[str, Any], dict[str, str]]:
    """What is written under `search`, and the sweeps to be put over it.

    Where models are searched, and the space is the one that goes with the model, each brings its own.
    """
    written, sweeps = draft.config.get("search") or {}, dict(draft.sweeps)
    if not isinstance(written, Mapping):
        problems.add(f"search: must be a mapping from config key to draw, got {written!r}")
        return {}, sweeps
    goes_with_it = "search" not in draft.fixed and draft.choices.get("search") == draft.choices.get("model")
    models = grammar.options_of(sweeps["model"]) if goes_with_it and "model" in sweeps else []
    if not models or not set(models) <= set(draft.options("model")):
        return written, sweeps
    lacking = [m for m in models if m not in draft.options("search")]
    problems.merge(
        f"search: there is no search/{m}.yaml for model={m}; write one, or take search=none" for m in lacking
    )
    spaces = {m: draft.search_of(m) for m in models if m not in lacking}
    return ({"model": {"choice": spaces}} if not lacking else written), sweeps


def _with_fixed(
    draft: Draft,
    fixed: Mapping[str, Any],
    given: list[str],
    config_dir: str | Path | None,
    problems: Problems,
) -> tuple[Draft, dict[str, Any]]:
    """The draft with the options and trainer's settings that the search space fixes, and what else it fixes."""
    taken = {k: v for k, v in fixed.items() if k in COMPONENTS or k.startswith("trainer.")}
    for group in [k for k in taken if k in COMPONENTS]:
        known = draft.options(group)
        if taken[group] not in known:
            problems.add(f"search.{group}: must be one of {', '.join(known)}, got {taken.pop(group)!r}")
    if taken:
        pinned = [] if "search" in draft.fixed else [f"search={draft.choices['search']}"]
        draft = compose([*given, *pinned, *(f"{k}={in_grammar(v)}" for k, v in taken.items())], config_dir)
    return draft, {k: v for k, v in fixed.items() if k not in COMPONENTS and not k.startswith("trainer.")}


def settled(space: SearchSpace, chosen: Mapping[str, str]) -> SearchSpace:
    """The space less the conditions on options that are chosen once for all, and less what they rule out."""
    searched = space.keys()
    settled = []
    for p in space.parameters:
        decided = [c for c in p.when if c.key in chosen and c.key not in searched]
        if all(c.holds(chosen[c.key]) for c in decided):
            settled.append(replace(p, when=tuple(c for c in p.when if c not in decided)))
    return SearchSpace(tuple(settled))


def _where_there(
    space: SearchSpace,
    groups: tuple[str, ...],
    variants: Mapping[tuple[str, ...], dict[str, Any]],
    sweeps: Mapping[str, str],
) -> SearchSpace:
    """The space in which a sweep of the command line is drawn for the options of its group that have the key."""
    placed = []
    for p in space.parameters:
        group = p.key.split(".")[0]
        if p.key in sweeps and "." in p.key and group in groups and not any(c.key == group for c in p.when):
            index = groups.index(group)
            options = sorted({combination[index] for combination, v in variants.items() if has_key(v, p.key)})
            if options and len(options) < len({combination[index] for combination in variants}):
                p = replace(p, when=(*p.when, Condition(group, tuple(options))))
        placed.append(p)
    return SearchSpace(tuple(grammar.in_order(placed, Problems())))


def _combinations(
    draft: Draft, space: SearchSpace, choices: Mapping[str, str], problems: Problems
) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """The searched config groups, and every combination of their options, the written one included."""
    searched: dict[str, list[str]] = {}
    for group, options in space.group_choices(COMPONENTS).items():
        known = draft.options(group)
        problems.merge(
            f"search.{group}: must choose among {', '.join(known)}, got {option!r}"
            for option in options
            if option not in known
        )
        searched[group] = sorted({choices[group], *(o for o in options if o in known)})
    groups = tuple(searched)
    count = math.prod(len(options) for options in searched.values())
    if count > MAX_VARIANTS:
        problems.add(
            f"search: at most {MAX_VARIANTS} combinations of config groups, got {count}; "
            f"take fewer options of {', '.join(groups)}"
        )
        return groups, [tuple(choices[g] for g in groups)]
    return groups, list(itertools.product(*searched.values()))


def _check_sampler(plan: Plan, problems: Problems) -> None:
    """What the sampler can't do with the space."""
    name = plan.settings.sampler.name
    if name == "grid":
        problems.merge(
            f"search.{p.key}: sampler=grid needs a countable number of values, got {p.describe()}; take "
            f"range(LOW, HIGH, STEP) or choice(A, B), or another sampler"
            for p in plan.space.parameters
            if p.size() == math.inf
        )
    numbers = [n for n, d in plan.space.always().items() if not isinstance(d, CategoricalDistribution)]
    if name == "cma_es" and plan.space.parameters and not numbers:
        searched = ", ".join(plan.space.keys())
        problems.add(
            f"sampler: cma_es needs a number that every trial draws, got {searched}; take another sampler, e.g. tpe"
        )


def _check_warm_start(settings: Settings, problems: Problems) -> None:
    """What can be known to be wrong with study.warm_start_from before there is a ledger to look into."""
    warm = settings.study.warm_start_from
    if warm is None:
        return
    if warm.study == settings.study_name:
        problems.add(f"study.warm_start_from: must be another study, got {warm.study}; take a new study.name")
    elif warm.study == TRAIN or warm.study.endswith(CONFIRM):
        problems.add(f"study.warm_start_from: must be a study that searched, got {warm.study}")


def _check_enqueued(plan: Plan, problems: Problems) -> None:
    """What is wrong with the configurations of study.enqueue, all of it."""
    known = plan.space.keys()
    entries = plan.settings.study.enqueue
    for i, (entry, first) in enumerate(zip(entries, map(plan.first_trial, entries), strict=True)):
        for key, value in entry.items():
            where, drawn = f"study.enqueue[{i}].{key}", plan.space.of(key)
            if not drawn:
                close = nearest(key, known)
                problems.add(f"{where}: must be a searched key, one of {', '.join(known)}, got {value!r}{close}")
            elif key not in first.values:
                when = "; or ".join(" and ".join(map(str, p.when)) for p in drawn)
                problems.add(f"{where}: is drawn only when {when}, which this entry does not have, got {value!r}")
            elif key in first.outside:
                draws = " or ".join(p.describe() for p in drawn)
                problems.add(
                    f"{where}: must lie in the search space, {draws}, got {value!r}; change it, or widen the space"
                )
    lacking = 1 + len(entries) - plan.settings.study.trials
    if lacking > 0:
        problems.add(
            f"study.enqueue: {len(entries)} entries and the configuration as written must fit in study.trials, got "
            f"{plan.settings.study.trials}; raise study.trials to {1 + len(entries)}"
        )


def _check_limits(plan: Plan, problems: Problems) -> None:
    """What would end a launch before it began, or never."""
    until, judge, now = plan.settings.study.until, plan.settings.terminator.improvement, time.time()
    if until is not None and clock.next_time(until, now) <= now:
        problems.add(
            f"study.until: must lie ahead, got {until}, which is past; take a later one, or a time of day: '07:00'"
        )
    if judge in ("emmr", "regret_bound") and not plan.space.always():
        problems.add(
            f"terminator: {judge} needs a key that every trial draws, got {', '.join(plan.space.keys()) or 'none'}; "
            f"take terminator=stagnation, or study.patience"
        )


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
