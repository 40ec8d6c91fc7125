"""Builds a plan from overrides: composes the configuration, reads the search space, and checks both."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from overnight.config.compose import Draft
from overnight.config.compose_tree import compose_any
from overnight.config.overrides import check_list
from overnight.config.problems import ConfigError, Problems
from overnight.config.search_path import (
    add_to_import_path,
    describe_failure,
    folders_of,
    import_folders,
    users_import_path,
)
from overnight.config.settings import COMPONENTS
from overnight.config.trees import has_key
from overnight.config.values import to_text
from overnight.search import space_reader, validation
from overnight.search.plan import TRAIN_STUDY, Plan, Start
from overnight.search.space import Condition, SearchSpace

# The largest number of combinations of config groups in a study. Each is composed once, before the study starts.
MAX_VARIANTS = 64

Variants = dict[tuple[str, ...], dict[str, Any]]


def build_plan(
    overrides: Iterable[str] = (),
    config_dir: str | Path | None = None,
    searching: bool = True,
    config_name: str | None = None,
) -> Plan:
    """Build the plan that `overrides` ask for. Creates nothing on disk.

    Args:
        overrides: In Hydra's grammar. A plain value for a searched key takes the key out of the search space, a sweep
            puts it in.
        config_dir: The user's config folder. Its parent joins sys.path, so that configs can name the user's classes.
        searching: False for a single configuration, where a sweep is a mistake.
        config_name: The primary config of the user's own tree in `config_dir`, which is then composed in place of ours.

    Raises:
        ConfigError: Lists every mistake.
    """
    overrides = check_list(overrides)
    compose = functools.partial(compose_any, config_dir=config_dir, config_name=config_name)
    draft = compose(overrides)
    if not draft.config:
        raise ConfigError(draft.problems)
    add_to_import_path(_import_path(draft))
    space_problems = Problems()
    entries, sweeps = _search_entries(draft, searching, space_problems)
    space, fixed = space_reader.parse_space(entries, space_problems, draft.fixed, sweeps)
    draft, fixed = _compose_fixed(draft, fixed, overrides, compose, space_problems)
    problems = Problems([*draft.problems, *space_problems])
    if draft.settings is not None:
        validation.check_accelerator(draft.settings, problems)
    if searching and draft.settings is not None:
        validation.check_study_name(draft.settings, problems)
        validation.check_warm_start(draft.settings, problems)
    choices = {g: option for g, option in draft.choices.items() if g in COMPONENTS}
    space = space.restricted({g: o for g, o in choices.items() if g in draft.fixed})
    groups, variants = _compose_variants(draft, space, choices, problems)
    validation.apply_fixed_values(variants, fixed, draft.absent, problems)
    space = _add_group_conditions(space, groups, variants, sweeps)
    validation.check_keys(space, groups, choices, variants, draft, {*draft.fixed, *fixed}, problems)
    problems.raise_if_any()
    assert draft.settings is not None, "a draft without settings has problems"
    folder = str(draft.config_dir) if draft.config_dir is not None else None
    start = Start(users_import_path(), draft.tree)
    plan = Plan(draft.settings, space, groups, choices, variants, config_dir=folder, start=start)
    if searching:
        plan = validation.with_kind_of_scheduler(plan)
        validation.check_sampler(plan, problems)
        validation.check_scheduler(plan, problems)
        validation.check_enqueued(plan, problems)
        validation.check_limits(plan, problems)
        problems.raise_if_any()
    return plan


def _import_path(draft: Draft) -> list[str]:
    """The folders that the user's modules are imported from, besides the start folder."""
    named = folders_of(draft.settings.import_path) if draft.settings is not None else []
    return [*named, *(draft.tree.folders if draft.tree is not None else import_folders(draft.config_dir))]


def plan_for_training(plan: Plan) -> Plan:
    """The plan of `overnight train`: one more trial in the study `train`, without a search and without pruning."""
    study = replace(plan.settings.study, name=TRAIN_STUDY, trials=1, folds=None)
    scheduler = replace(plan.settings.scheduler, name="none")
    return replace(
        plan, settings=replace(plan.settings, study=study, scheduler=scheduler, slots=1), space=SearchSpace(())
    )


def _search_entries(draft: Draft, searching: bool, problems: Problems) -> tuple[Mapping[str, Any], Mapping[str, str]]:
    """The entries of the `search` node, and the sweeps that replace some of them.

    Where models are searched with the space that belongs to the model, each model brings its own space.
    """
    if not searching:
        for key, text in draft.sweeps.items():
            problems.add(f"{key}: `train` takes one value, got the sweep {text}; sweeps are for `tune`")
        return {}, {}
    entries, sweeps = draft.config.get("search") or {}, draft.sweeps
    if not isinstance(entries, Mapping):
        problems.add("search", "must be a mapping from config key to distribution", entries)
        return {}, sweeps
    follows_model = "search" not in draft.fixed and draft.choices.get("search") == draft.choices.get("model")
    models = space_reader.options_of(sweeps["model"]) if follows_model and "model" in sweeps else []
    if not models or not set(models) <= set(draft.options("model")):
        return entries, sweeps
    missing = [m for m in models if m not in draft.options("search")]
    for model in missing:
        problems.add(f"search: there is no search/{model}.yaml for model={model}; write one, or take search=none")
    if missing:
        return entries, sweeps
    return {"model": {"choice": {m: draft.search_of(m) for m in models}}}, sweeps


def _compose_fixed(
    draft: Draft,
    fixed: Mapping[str, Any],
    overrides: list[str],
    compose: Callable[[list[str]], Draft],
    problems: Problems,
) -> tuple[Draft, dict[str, Any]]:
    """The draft with the options and trainer settings that the search space fixes, and the other fixed values."""
    composed = {k: v for k, v in fixed.items() if k in COMPONENTS or k.startswith("trainer.")}
    rest = {k: v for k, v in fixed.items() if k not in composed}
    for group in [k for k in composed if k in COMPONENTS]:
        known = draft.options(group)
        if composed[group] not in known:
            problems.add(f"search.{group}", f"must be one of {', '.join(known)}", composed.pop(group))
    if composed:
        search = [] if "search" in draft.fixed or draft.tree is not None else [f"search={draft.choices['search']}"]
        draft = compose([*overrides, *search, *(f"{k}={to_text(v)}" for k, v in composed.items())])
    return draft, rest


def _compose_variants(
    draft: Draft, space: SearchSpace, choices: Mapping[str, str], problems: Problems
) -> tuple[tuple[str, ...], Variants]:
    """The searched config groups, and the composed tree for every combination of their options."""
    groups, combinations = _combinations(draft, space, choices, problems)
    variants: Variants = {}
    for combination in combinations:
        options = dict(zip(groups, combination, strict=True))
        try:
            variants[combination] = draft.variant(options)
        except Exception as error:
            named = ", ".join(f"{g}={o}" for g, o in options.items())
            problems.add(f"{describe_failure(error)} ({named})")
    return groups, variants


def _combinations(
    draft: Draft, space: SearchSpace, choices: Mapping[str, str], problems: Problems
) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """The searched config groups, and every combination of their options, the baseline's included."""
    searched: dict[str, list[str]] = {}
    for group, options in space.searched_options(COMPONENTS).items():
        known = draft.options(group)
        for option in options:
            if option not in known:
                problems.add(f"search.{group}", f"must choose among {', '.join(known)}", option)
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


def _add_group_conditions(
    space: SearchSpace, groups: tuple[str, ...], variants: Variants, sweeps: Mapping[str, str]
) -> SearchSpace:
    """Add conditions to the sweeps of keys that only some searched options of their config group have."""
    parameters = []
    for p in space.parameters:
        group = p.key.split(".")[0]
        if p.key in sweeps and "." in p.key and group in groups and not any(c.key == group for c in p.when):
            index = groups.index(group)
            options = sorted({combination[index] for combination, v in variants.items() if has_key(v, p.key)})
            if options and len(options) < len({combination[index] for combination in variants}):
                p = replace(p, when=(*p.when, Condition(group, tuple(options))))
        parameters.append(p)
    return SearchSpace(tuple(space_reader.in_order(parameters, Problems())))
