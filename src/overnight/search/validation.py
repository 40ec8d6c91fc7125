"""Checks of a search space against the configs it is searched in, and of a whole plan."""

from __future__ import annotations

import math
import time
from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace
from typing import Any

from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.pruners import BasePruner

from overnight.config import clock
from overnight.config.compose import Draft
from overnight.config.fields import nearest
from overnight.config.problems import Problems
from overnight.config.settings import COMPONENTS, SEARCHABLE, SECTIONS, Settings, build_settings
from overnight.config.trees import has_key, look_up, type_problem
from overnight.config.values import to_text
from overnight.search import optuna_objects
from overnight.search.distributions import values_equal
from overnight.search.plan import CONFIRM_SUFFIX, TRAIN_STUDY, Plan
from overnight.search.schedulers import own
from overnight.search.schedulers.halving import rungs
from overnight.search.space import Parameter, SearchSpace
from overnight.system.devices import accelerator_problem

# The search space against the configs -------------------------------------------------------------------------------


def apply_fixed_values(
    variants: Mapping[Any, dict[str, Any]],
    fixed: Mapping[str, Any],
    absent: Mapping[str, tuple[Any, str]],
    problems: Problems,
) -> None:
    """Set fixed values in every variant that has the key.

    Args:
        fixed: Key -> value that the search space fixes.
        absent: Key -> value from the command line, for keys that the baseline lacks, with the problem that was
            reported for it. The problem is removed where some variant has the key.
    """
    given = [(key, value, f"search.{key}", "") for key, value in fixed.items()]
    given += [(key, value, key, problem) for key, (value, problem) in absent.items()]
    for key, value, label, reported in given:
        parent, _, last = key.rpartition(".")
        matching = [v for v in variants.values() if parent and has_key(v, key)]
        if matching and reported in problems:
            problems.remove(reported)
        if not matching and not reported:
            problems.add(
                f"{label}: no such key, got {value!r}; a value here is for a key of {', '.join(SEARCHABLE)} that the "
                f"config holds, `overnight tune --cfg` prints them"
            )
        wrong = next(filter(None, (type_problem(look_up(v, key), value) for v in matching)), None)
        if wrong:
            problems.add(label, wrong)
        for variant in matching:
            look_up(variant, parent)[last] = value


def check_keys(
    space: SearchSpace,
    groups: tuple[str, ...],
    choices: Mapping[str, str],
    variants: Mapping[tuple[str, ...], dict[str, Any]],
    draft: Draft,
    fixed: Collection[str],
    problems: Problems,
) -> None:
    """Check that every searched key exists wherever it is drawn, and that its values have the type of the config's."""
    options = space.searched_options(groups)
    for parameter in space.parameters:
        label, section = f"search.{parameter.key}", parameter.key.split(".")[0]
        before = len(problems)
        _check_conditions(parameter, space, draft, fixed, problems)
        is_new = parameter.key in draft.added and section in COMPONENTS
        if len(problems) > before or parameter.key in groups or is_new:
            continue
        if section not in SEARCHABLE or "." not in parameter.key:
            problems.add(f"{label}: only keys of {', '.join(SEARCHABLE)} can be searched, got {parameter.describe()}")
            continue
        for combination, variant in variants.items():
            chosen = {**choices, **dict(zip(groups, combination, strict=True))}
            if any(chosen[g] not in options[g] for g in groups):
                continue  # the baseline's options, which the search never draws
            if any(c.key in chosen and not c.holds(chosen[c.key]) for c in parameter.when):
                continue
            problem = _mismatch(parameter, variant)
            if problem:
                problems.add(label, problem + (f" (with {section}={chosen[section]})" if section in groups else ""))
                break
        else:
            problems.extend(_broken_rules(parameter, draft))


def _check_conditions(
    parameter: Parameter, space: SearchSpace, draft: Draft, fixed: Collection[str], problems: Problems
) -> None:
    label = f"search.{parameter.key}.when"
    for condition in parameter.when:
        key, drawn = condition.key, space.parameters_of(condition.key)
        if not drawn and key not in fixed:
            problems.add(
                f"{label}: must name a key that is searched or fixed, got {str(condition)!r}; search {key}, fix it "
                f"({key}: VALUE), or drop the `when`"
            )
        known: list[Any] = [o for p in drawn for o in p.options]
        if key in COMPONENTS:
            known = list(draft.options(key))
        elif key in draft.sweeps or not all(p.options for p in drawn):
            known = []  # not a choice, or a choice that the command line narrows for this run
        if known:
            problems.extend(
                f"{label}: {key} is one of {', '.join(map(to_text, known))}, and never {to_text(value)!r}"
                for value in condition.values
                if not any(values_equal(value, o) for o in known)
            )


def _mismatch(parameter: Parameter, variant: Mapping[str, Any]) -> str | None:
    """Why the parameter's values can't take the place of the variant's value, or None."""
    draw = parameter.describe()
    if not has_key(variant, parameter.key):
        section = parameter.key.split(".")[0]
        known = ", ".join(variant.get(section) or ()) or f"none in {section}"
        return f"no such key; there are {known}; a key that only one option of a group has needs a `when`; got {draw}"
    value = look_up(variant, parameter.key)
    if parameter.length is not None:
        return None if isinstance(value, list | None) else f"draws a list, and the config holds {value!r}"
    if isinstance(parameter.each, CategoricalDistribution):
        if parameter.holds(value):  # a key whose own value is a choice takes whatever the others are
            return None
        return next(filter(None, (type_problem(value, o) for o in parameter.options)), None)
    if isinstance(value, int) and not isinstance(value, bool) and isinstance(parameter.each, FloatDistribution):
        return f"draws floats, and the config holds {value!r}; take int(interval(LOW, HIGH)), or write {value}.0"
    if type_problem(value, 1):
        kind = "a list: take length with each, or choice([32], [64, 64])" if isinstance(value, list) else "no number"
        return f"draws numbers, and the config holds {value!r}, {kind}; got {draw}"
    return None


def _broken_rules(parameter: Parameter, draft: Draft) -> Iterator[str]:
    """Yield the rules of settings that values of the parameter break. Of a range both ends are checked."""
    section, _, name = parameter.key.partition(".")
    if section not in SECTIONS:
        return
    if parameter.key == "trainer.accelerator":
        yield f"search.{parameter.key}: can't be searched, because a slot has one device for all trials; choose one"
        return

    def problems_with(value: Any) -> Problems:
        found = Problems()
        build_settings({**draft.config, section: {**draft.config[section], name: value}}, draft.choices, found)
        return found

    others = problems_with(draft.config[section][name])
    ends = parameter.options or (parameter.each.low, parameter.each.high)  # type: ignore[attr-defined]
    for value in ends:
        yield from (p for p in problems_with(value) if p not in others)


# Samplers of Optuna that can do the same spaces as a shipped one.
_SHARED_RULES = {"optuna.samplers.BruteForceSampler": "grid", "optuna.samplers.CmaEsSampler": "cma_es"}

# Settings and plans -------------------------------------------------------------------------------------------------


def check_study_name(settings: Settings, problems: Problems) -> None:
    if settings.study_name == TRAIN_STUDY:
        problems.add(f"study.name: {TRAIN_STUDY} is where `overnight train` keeps its trials; take another")
    if settings.study_name.endswith(CONFIRM_SUFFIX):
        problems.add(f"study.name: must not end in {CONFIRM_SUFFIX}, which names confirmations; take another")


def check_accelerator(settings: Settings, problems: Problems) -> None:
    """Check that this machine has what trainer.accelerator asks for, where trials run on this machine."""
    accelerator = settings.trainer.accelerator
    problem = None if settings.launcher.uses_workers else accelerator_problem(accelerator)
    if problem:
        problems.add(f"trainer.accelerator: must be one that this machine has, got {accelerator}; {problem}")


def check_warm_start(settings: Settings, problems: Problems) -> None:
    """Check study.warm_start_from as far as that is possible without the study storage."""
    warm = settings.study.warm_start_from
    if warm is None:
        return
    if warm.study == settings.study_name:
        problems.add(f"study.warm_start_from: must be another study, got {warm.study}; take a new study.name")
    elif warm.study == TRAIN_STUDY or warm.study.endswith(CONFIRM_SUFFIX):
        problems.add(f"study.warm_start_from: must be a study with a search, got {warm.study}")


def check_sampler(plan: Plan, problems: Problems) -> None:
    """Check that the sampler can handle the space."""
    settings = plan.settings.sampler
    name: str = settings.name
    if settings.target is not None:
        if problem := optuna_objects.hub_problem(settings.target, "sampler"):
            problems.add(problem)
        elif settings.target["_target_"] == "optuna.samplers.GridSampler":
            problems.add(
                "sampler._target_: must not be GridSampler, which takes a search space of its own; take sampler=grid, "
                "which tries every point of the study's"
            )
        elif optuna_objects.is_of_optuna(settings.target):  # what may import torch is checked in a helper process
            optuna_objects.check(settings.target, "sampler", problems)
        name = _SHARED_RULES.get(str(settings.target["_target_"]), "")
    if name == "grid":
        problems.extend(
            f"search.{p.key}: sampler={settings.label} needs a countable number of values, got {p.describe()}; take "
            f"range(LOW, HIGH, STEP) or choice(A, B), or another sampler"
            for p in plan.space.parameters
            if p.size() == math.inf
        )
    numbers = [n for n, d in plan.space.unconditional().items() if not isinstance(d, CategoricalDistribution)]
    if name == "cma_es" and plan.space.parameters and not numbers:
        searched = ", ".join(plan.space.keys())
        problems.add(
            f"sampler: {settings.label} needs a number that every trial draws, got {searched}; take another sampler, "
            f"e.g. tpe"
        )


def check_scheduler(plan: Plan, problems: Problems) -> None:
    """Check that a scheduler fits the study, and that one which is named by `_target_` can be built."""
    settings = plan.settings
    if settings.scheduler.target is not None:
        own.build(settings.scheduler, problems)
    if settings.scheduler.name == "own" and plan.obstacle_to_pauses is not None:
        rule = f"must not pause trials here: {plan.obstacle_to_pauses}"
        problems.add("scheduler", rule, settings.scheduler.label, "change that, or take scheduler=median")
    if not plan.pauses:
        return
    first, max_epochs = settings.scheduler.min_epochs, plan.units
    if first is not None and max_epochs > 1 and len(rungs(max_epochs, first)) == 1:
        most = max(n for n in range(1, max_epochs) if len(rungs(max_epochs, n)) > 1)
        problems.add(
            "scheduler.min_epochs",
            f"must leave a pause before the last of {max_epochs} {plan.unit}s, so be at most {most}",
            first,
            "lower it, train longer, or take scheduler=median",
        )
    instead = "add scheduler=median, or take study.patience"
    if settings.terminator.improvement != "none":
        rule = f"must be none with scheduler={settings.scheduler.name}, under which few trials are complete"
        problems.add("terminator", rule, settings.terminator.improvement, instead)


def with_kind_of_scheduler(plan: Plan) -> Plan:
    """The plan with `scheduler.name` own where its `_target_` is no pruner of Optuna."""
    scheduler = plan.settings.scheduler
    if scheduler.name != "custom" or isinstance(own.build(scheduler, Problems()), BasePruner | None):
        return plan
    settings = replace(plan.settings, scheduler=replace(scheduler, name="own"))
    return replace(plan, settings=settings)


def check_enqueued(plan: Plan, problems: Problems) -> None:
    """Check the entries of study.enqueue."""
    known = plan.space.keys()
    entries = plan.settings.study.enqueue
    for i, (entry, first) in enumerate(zip(entries, map(plan.first_trial, entries), strict=True)):
        for key, value in entry.items():
            label, parameters = f"study.enqueue[{i}].{key}", plan.space.parameters_of(key)
            if not parameters:
                close = nearest(key, known)
                problems.add(f"{label}: must be a searched key, one of {', '.join(known)}, got {value!r}{close}")
            elif key not in first.values:
                when = "; or ".join(" and ".join(map(str, p.when)) for p in parameters)
                problems.add(label, f"is drawn only when {when}, which this entry does not have", value)
            elif key in first.outside:
                draws = " or ".join(p.describe() for p in parameters)
                remedy = "change it, or widen the space"
                problems.add(label, f"must be inside the search space, {draws}", value, remedy)
    needed, trials = 1 + len(entries), plan.budget.trials
    if needed > trials:
        has_limit = plan.settings.study.trials is not None
        limit = "study.trials" if has_limit else "study.budget"
        remedy = f"raise {limit}" + (f" to {needed}" if has_limit else "")
        problems.add("study.enqueue", f"{len(entries)} entries and the baseline must fit in {limit}", trials, remedy)


def check_limits(plan: Plan, problems: Problems) -> None:
    """Check that a deadline is in the future and that a terminator can be evaluated."""
    until, terminator, now = plan.settings.study.until, plan.settings.terminator.improvement, time.time()
    if until is not None and clock.next_time(until, now) <= now:
        problems.add(f"study.until: must be in the future, got {until}; take a later time, or a time of day: '07:00'")
    if terminator in ("emmr", "regret_bound") and not plan.space.unconditional():
        problems.add(
            f"terminator: {terminator} needs a key that every trial draws, got "
            f"{', '.join(plan.space.keys()) or 'none'}; take terminator=stagnation, or study.patience"
        )
