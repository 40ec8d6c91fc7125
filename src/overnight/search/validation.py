"""Whether a search space fits the configs that it is drawn into."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from optuna.distributions import CategoricalDistribution, FloatDistribution

from overnight.config.compose import Draft
from overnight.config.problems import Problems
from overnight.config.sections import COMPONENTS, SEARCHABLE
from overnight.config.trees import has_key, kind_problem, look_up
from overnight.search.space import Parameter, SearchSpace, in_grammar, same


def put_in(
    variants: Mapping[Any, dict[str, Any]],
    fixed: Mapping[str, Any],
    absent: Mapping[str, tuple[Any, str]],
    problems: Problems,
) -> None:
    """Put fixed values into every variant that has the key: the search space's, and those of the command line that
    the configuration as written does not hold."""
    given = [(key, value, f"search.{key}", "") for key, value in fixed.items()]
    given += [(key, value, key, problem) for key, (value, problem) in absent.items()]
    for key, value, where, otherwise in given:
        parent, _, last = key.rpartition(".")
        having = [v for v in variants.values() if parent and has_key(v, key)]
        if having:
            problems.withdraw(otherwise)
        if not having and not otherwise:
            problems.add(
                f"{where}: no such key, got {value!r}; a value here is for a key of {', '.join(SEARCHABLE)} that the "
                f"config holds, `overnight tune --cfg` prints them"
            )
        wrong = next(filter(None, (kind_problem(look_up(v, key), value) for v in having)), None)
        if wrong:
            problems.add(f"{where}: {wrong}")
        for variant in having:
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
    """Every searched key exists wherever it is drawn, and what is drawn is of the kind that is written there."""
    options = space.group_choices(groups)
    for parameter in space.parameters:
        where = f"search.{parameter.key}"
        told = len(problems)
        _check_conditions(parameter, space, draft, fixed, problems)
        if (
            len(problems) > told
            or parameter.key in groups
            or (parameter.key in draft.added and parameter.key.split(".")[0] in COMPONENTS)
        ):
            continue
        if parameter.key.split(".")[0] not in SEARCHABLE or "." not in parameter.key:
            problems.add(f"{where}: only keys of {', '.join(SEARCHABLE)} can be searched, got {parameter.describe()}")
            continue
        for combination, variant in variants.items():
            taken = {**choices, **dict(zip(groups, combination, strict=True))}
            if any(taken[g] not in options[g] for g in groups):
                continue  # the written options, which the search never draws
            if any(c.key in taken and not c.holds(taken[c.key]) for c in parameter.when):
                continue
            problem = _misfit(parameter, variant)
            if problem:
                group = parameter.key.split(".")[0]
                problems.add(f"{where}: {problem}" + (f" (with {group}={taken[group]})" if group in groups else ""))
                break


def _check_conditions(
    parameter: Parameter, space: SearchSpace, draft: Draft, fixed: Collection[str], problems: Problems
) -> None:
    where = f"search.{parameter.key}.when"
    for condition in parameter.when:
        key, asked = condition.key, space.of(condition.key)
        if not asked and key not in fixed:
            problems.add(
                f"{where}: must look at a key that is searched or fixed, got {str(condition)!r}; search {key}, fix it "
                f"({key}: VALUE), or drop the `when`"
            )
        known: list[Any] = [o for p in asked for o in (p.options or getattr(p.each, "choices", ()))]
        if key in COMPONENTS:
            known = list(draft.options(key))
        elif key in draft.sweeps or not all(isinstance(p.each, CategoricalDistribution) for p in asked):
            known = []  # open, or narrowed for this once
        if known:
            problems.merge(
                f"{where}: {key} is one of {', '.join(map(in_grammar, known))}, and never {in_grammar(value)!r}"
                for value in condition.values
                if not any(same(value, o) for o in known)
            )


def _misfit(parameter: Parameter, variant: Mapping[str, Any]) -> str | None:
    draw = parameter.describe()
    if not has_key(variant, parameter.key):
        known = ", ".join(look_up(variant, parameter.key.split(".")[0]))
        return f"no such key; there are {known}; a key that only one option of a group has needs a `when`; got {draw}"
    written = look_up(variant, parameter.key)
    if parameter.length is not None:
        return None if isinstance(written, list | None) else f"draws a list, and {written!r} is written there"
    if isinstance(parameter.each, CategoricalDistribution):
        options = parameter.options or parameter.each.choices
        return next(filter(None, (kind_problem(written, o) for o in options)), None)
    if isinstance(written, int) and not isinstance(written, bool) and isinstance(parameter.each, FloatDistribution):
        return f"draws floats, and {written!r} is written there: take int(interval(LOW, HIGH)), or write {written}.0"
    if kind_problem(written, 1):
        kind = "a list: take length with each, or choice([32], [64, 64])" if isinstance(written, list) else "no number"
        return f"draws numbers, and {written!r} is written there, {kind}; got {draw}"
    return None
