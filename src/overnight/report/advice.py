"""Commands to paste: one that trains the winner again, and one that starts the next search."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from optuna.distributions import FloatDistribution, IntDistribution

from overnight.config import shell
from overnight.config.compose import Draft, compose
from overnight.config.settings import SEARCHABLE, to_json
from overnight.config.trees import flatten, has_key, is_dotted
from overnight.config.values import escaped, is_typable, same, to_text
from overnight.report.winner_config import option_name
from overnight.search.distributions import contains, exact
from overnight.search.plan import Plan, config_dir_option
from overnight.search.record import TrialRecord, config_of, ranked, searched_values
from overnight.search.space import Parameter, display_name

# A value in the outermost 5% of its range, on the scale of sampling, is at the edge: beyond it may be better values.
EDGE = 0.05
# A choice in fewer trials is rarely tried.
RARE = 3
# Keys that no command repeats, and keys that training a single configuration does not use.
_NEVER_REPEATED = ("study.name", "study.until", "home", "slots")
_FIRST_TRIALS = ("study.enqueue", "study.warm_start_from")  # of the finished study, not of the next one
_SEARCH_KEYS = (
    *("study.budget", "study.trials", "study.hours", "study.patience", "study.confirm", "study.keep_checkpoints"),
    *("sampler", "scheduler", "terminator", *_FIRST_TRIALS),
)


@dataclass(frozen=True)
class AtEdge:
    """A parameter whose best value is at an end of its range. wider: a range beyond that end, in Hydra's syntax."""

    name: str
    end: Literal["lower", "upper"]
    value: float
    limit: float
    wider: str


class _NotTypableError(ValueError):
    """A command can't hold a value, such as a mapping with a key in quotes."""


def train_command(plan: Plan, best: TrialRecord) -> str:
    """Return the command that trains the configuration of a trial again."""
    if plan.start.tree is not None:
        return _line(
            "train", *config_dir_option(plan), *_of_tree(plan, searched_values(best, plan), _SEARCH_KEYS), *_home(plan)
        )
    config = config_of(best, plan)
    groups = {g: str(best.params.get(g, plan.choices[g])) for g in plan.choices}
    try:
        overrides = _overrides(plan, config, groups, _SEARCH_KEYS)
    except _NotTypableError:
        overrides = [_experiment(plan)]
    return _line("train", *config_dir_option(plan), *overrides, *_home(plan))


def next_command(plan: Plan, records: Sequence[TrialRecord], best: TrialRecord) -> str:
    """Return the command of the next search: ranges are wider where the winner is at an edge, narrower elsewhere."""
    try:
        overrides = _next_overrides(plan, records, best)
    except _NotTypableError:
        overrides = [_experiment(plan), _warm_start(plan)]  # the same space
    return _line("tune", *config_dir_option(plan), f"study.name={next_name(plan.name)}", *overrides, *_home(plan))


def _next_overrides(plan: Plan, records: Sequence[TrialRecord], best: TrialRecord) -> list[str]:
    searched, fixed = _next_space(plan, records, best)
    if plan.start.tree is not None:
        sweeps = [f"{key}={sweep}" for key, sweep in searched.items()]
        return [*_of_tree(plan, fixed, _FIRST_TRIALS), *sweeps, *([_warm_start(plan)] if searched else [])]
    config = plan.config({k: v for k, v in fixed.items() if k in plan.choices})
    kept = {p.key for p in plan.space.parameters}
    groups = {g: str(fixed.get(g, plan.choices[g])) for g in plan.choices if g not in searched}
    overrides = _overrides(plan, config, groups, (*kept, *_FIRST_TRIALS))
    overrides = [o for o in overrides if o.split("=")[0] not in fixed]
    known = _base(plan, groups).config
    added = {key for key in (*fixed, *searched) if key.split(".")[0] in known and not has_key(known, key)}
    values = [f"{'+' if key in added else ''}{_assignment(key, value)}" for key, value in fixed.items()]
    sweeps = [f"{'+' if key in added else ''}{key}={sweep}" for key, sweep in searched.items()]
    needs_search_file = any(c.key in searched for p in plan.space.parameters for c in p.when)
    search = [] if needs_search_file else ["search=none"]
    return [*search, *overrides, *values, *sweeps, *([_warm_start(plan)] if searched else [])]


def _of_tree(plan: Plan, values: Mapping[str, Any], without: tuple[str, ...]) -> list[str]:
    """Return the overrides that a study of the user's own tree was started with, and values for searched keys."""
    assert plan.start.tree is not None
    left_out = (*_NEVER_REPEATED, *without)
    given = [(o.split("=")[0].lstrip("+~").removeprefix("overnight."), o) for o in plan.start.tree.overrides]
    kept = [o for key, o in given if not any(key == w or key.startswith(f"{w}.") for w in left_out)]
    return [*kept, *(_assignment(key, escaped(value)) for key, value in values.items())]


def _warm_start(plan: Plan) -> str:
    return f"study.warm_start_from={plan.name}"  # keeps what was found


def next_name(name: str) -> str:
    """Return the name of the next study: digits-mlp-2 after digits-mlp, then digits-mlp-3."""
    stem, number = re.fullmatch(r"(.*?)(?:-(\d{1,3}))?", name).groups()  # type: ignore[union-attr]
    return f"{stem}-{int(number or 1) + 1}"


def find_edges(plan: Plan, best: TrialRecord) -> list[AtEdge]:
    """Return the parameters of the best trial that are at an end of their range."""
    found = []
    for name, dist in {display_name(n): d for p in _active(plan, best) for n, d in p.names().items()}.items():
        value = best.params.get(name)
        numeric = isinstance(dist, FloatDistribution | IntDistribution) and dist.high > dist.low
        if not numeric or not contains(dist, value):
            continue
        assert isinstance(dist, FloatDistribution | IntDistribution)
        assert isinstance(value, int | float)
        at = position(dist, value)
        for end, limit, is_there in (("lower", dist.low, at <= EDGE), ("upper", dist.high, at >= 1 - EDGE)):
            low, high = _widened(dist, end)
            if is_there and (low, high) != (dist.low, dist.high):
                found.append(AtEdge(name, end, value, limit, _interval(dist, low, high)))  # type: ignore[arg-type]
    return found


def _next_space(plan: Plan, records: Sequence[TrialRecord], best: TrialRecord) -> tuple[dict[str, str], dict[str, Any]]:
    """Return key -> range of what to search next, and key -> value of what is fixed."""
    good = _good(plan, records, best)
    at_edge = {e.name: e for e in find_edges(plan, best)}
    searched: dict[str, str] = {}
    fixed: dict[str, Any] = {}
    for p in _active(plan, best):
        if any(c.key in searched for c in p.when):
            continue  # conditional parameters stay in the search file
        if f"{p.key}.length" not in best.params and p.key not in best.params:
            if p.length is None:  # the winner is a baseline without a key that was added: search it as before
                searched[p.key] = _whole(p)
        elif p.length is not None:  # a list's range has no form for the command line
            count = best.params.get(f"{p.key}.length", 0)
            fixed[p.key] = [best.params[f"{p.key}.{i}"] for i in range(count)]
        elif p.options:
            options = _options(p, records, good)
            if len(options) > 1:
                searched[p.key] = _choice(p.key, options)
            else:
                fixed[p.key] = best.params[p.key]
        elif p.key in at_edge:
            searched[p.key] = at_edge[p.key].wider
        else:
            assert isinstance(p.each, FloatDistribution | IntDistribution)
            values = [r.params[p.key] for r in good if contains(p.each, r.params.get(p.key))]
            low, high = _narrowed(p.each, values)
            searched[p.key] = _interval(p.each, low, high)
    return searched, fixed


def _whole(p: Parameter) -> str:
    """Return the whole range of a parameter as a sweep."""
    if p.options:
        return _choice(p.key, p.options)
    assert isinstance(p.each, FloatDistribution | IntDistribution)
    return _interval(p.each, p.each.low, p.each.high)


def _choice(key: str, options: Iterable[Any]) -> str:
    return ",".join(_assignment(key, o).partition("=")[2] for o in options)


def _active(plan: Plan, best: TrialRecord) -> list[Parameter]:
    """Return the parameters that the best trial used: one for each key."""
    return [p for p in plan.space.parameters if p.active(best.params, plan.baseline)]


def _good(plan: Plan, records: Sequence[TrialRecord], best: TrialRecord) -> list[TrialRecord]:
    """Return the best quarter of the complete trials, at least five, and the winner."""
    complete = ranked(records, plan.settings)
    good = complete[: max(5, math.ceil(len(complete) / 4))]
    return good if best in good else [*good, best]


def _options(p: Parameter, records: Sequence[TrialRecord], good: Sequence[TrialRecord]) -> list[Any]:
    """Return the choices that good trials have, and those that are rarely tried."""
    trained = [r for r in records if r.done or r.waits_at_rung]
    tried = [to_text(r.params[p.key]) for r in trained if p.key in r.params]
    among = {to_text(r.params[p.key]) for r in good if p.key in r.params}
    return [o for o in p.options if to_text(o) in among or tried.count(to_text(o)) < RARE]


def position(dist: FloatDistribution | IntDistribution, value: float) -> float:
    """Map a value to its position in its range, 0 to 1, on the scale of sampling (linear or logarithmic)."""
    low, high, at = (math.log(v) if dist.log else v for v in (dist.low, dist.high, value))
    return (at - low) / (high - low) if high > low else 0.5


def value_at(dist: FloatDistribution | IntDistribution, at: float) -> float:
    """Map a position to its value; the inverse of `position`."""
    low, high = (math.log(v) if dist.log else v for v in (dist.low, dist.high))
    value = low + at * (high - low)
    return math.exp(value) if dist.log else value


def _narrowed(dist: FloatDistribution | IntDistribution, values: Sequence[float]) -> tuple[float, float]:
    """Return the part of a range that holds the good values, with a margin of 10% of the range on both sides."""
    positions = [position(dist, v) for v in values] or [0.0, 1.0]
    low, high = max(min(positions) - 0.1, 0.0), min(max(positions) + 0.1, 1.0)
    return max(value_at(dist, low), dist.low), min(value_at(dist, high), dist.high)


def _widened(dist: FloatDistribution | IntDistribution, end: str) -> tuple[float, float]:
    """Extend a range beyond one end by its own width, and drop the half at the other end.

    A range that starts at or above 0 stays above 0. A range of floats that ends in (0.5, 1] is taken for a fraction and
    stays below 1.
    """
    middle = value_at(dist, 0.5)
    if end == "lower":
        low = dist.low**2 / dist.high if dist.log else dist.low - (dist.high - dist.low)
        low = max(low, dist.low / 100) if dist.log else low if dist.low < 0 else max(low, 0.0)
        if isinstance(dist, IntDistribution):
            low = max(low, 1 if dist.low >= 1 else low)
        return (low, middle) if low < dist.low else (dist.low, dist.high)
    high = dist.high**2 / dist.low if dist.log else dist.high + (dist.high - dist.low)
    high = min(high, dist.high * 100) if dist.log else high
    if isinstance(dist, FloatDistribution) and dist.low >= 0 and 0.5 < dist.high <= 1:
        high = (dist.high + 1) / 2
    return middle, high


def _interval(dist: FloatDistribution | IntDistribution, low: float, high: float) -> str:
    """Write a range in Hydra's syntax; integer ends are rounded outwards, others to three digits. Steps stay."""
    if dist.step is not None and (isinstance(dist, FloatDistribution) or dist.step != 1):
        return _steps(dist, low, high)
    if isinstance(dist, IntDistribution):
        text = f"int(interval({math.floor(low)},{max(math.ceil(high), math.floor(low) + 1)}))"
        return f"tag(log,{text})" if dist.log else text
    text = f"interval({_rounded(low)},{_rounded(high)})"
    return f"tag(log,{text})" if dist.log else text


def _steps(dist: FloatDistribution | IntDistribution, low: float, high: float) -> str:
    """Write the steps of a range that lie between two ends; a step that an end cuts counts if the range has it."""
    start, step = exact(dist.low), exact(dist.step or 1)
    from_low, from_high = (float((exact(end) - start) / step) for end in (low, high))
    first = math.floor(from_low + 1e-9) if low >= dist.low else math.ceil(from_low - 1e-9)
    last = math.ceil(from_high - 1e-9) if high <= dist.high else math.floor(from_high + 1e-9)
    ends = (start + first * step, start + (max(last, first + 1) + 1) * step, step)
    kind = int if isinstance(dist, IntDistribution) else float
    return f"range({','.join(repr(kind(end)) for end in ends)})"


def _rounded(value: float) -> str:
    return f"{float(f'{value:.3g}')!r}"


def _overrides(plan: Plan, config: Mapping[str, Any], groups: Mapping[str, str], without: tuple[str, ...]) -> list[str]:
    """Return the overrides that compose to a plan and `config`, without the keys in `without`."""
    scheduler = plan.settings.scheduler
    if scheduler.target is None:  # each has keys of its own
        groups = {**groups, "scheduler": scheduler.name}
    base = _base(plan, groups)
    lacking = [g for g in base.choices if g in groups and base.choices[g] != groups[g]]
    assert base.settings is not None
    wanted = {**to_json(plan.settings), **{n: config[n] for n in SEARCHABLE if n in config}}
    given = {**to_json(base.settings), **{n: base.config[n] for n in SEARCHABLE if n in base.config}}
    had, has = flatten(given), flatten(wanted)
    default = compose([]).choices
    overrides = [_assignment(g, o) for g, o in groups.items() if o != default.get(g) and g not in without]
    gone = [key for key in had if key not in has and key.split(".")[0] in SEARCHABLE]
    overrides += [f"~{key}" for key in gone if had[key] is not None]  # Hydra deletes no null, and a mapping replaces it
    for key, value in has.items():
        left_out = any(key == w or key.startswith(f"{w}.") for w in (*_NEVER_REPEATED, *without, *lacking))
        if left_out or (key in had and same(had[key], value)):
            continue
        would_merge = isinstance(value, Mapping) and isinstance(had.get(key), Mapping)
        if would_merge:
            overrides.append(f"~{key}")
        overrides.append(("+" if would_merge or key not in had else "") + _assignment(key, escaped(value)))
    return overrides


def _assignment(key: str, value: Any) -> str:
    """Write KEY=VALUE. Raises _NotTypableError where Hydra's grammar has no such key or value."""
    if not is_typable(value) or not is_dotted(key) or (key in SEARCHABLE and isinstance(value, Mapping)):
        raise _NotTypableError(key)
    return f"{key}={to_text(value)}"


def _experiment(plan: Plan) -> str:
    return f"+experiment={option_name(plan.name)}"


def _base(plan: Plan, groups: Mapping[str, str]) -> Draft:
    """Compose the defaults with these options."""
    base = compose([f"{g}={option}" for g, option in groups.items()], plan.config_dir)
    # If the folder of an option does not exist any more, compare with the defaults.
    return base if base.settings is not None else compose([])


def _home(plan: Plan) -> list[str]:
    return plan.settings.location.overrides


def _line(*words: str) -> str:
    return shell.join(["overnight", *words])
