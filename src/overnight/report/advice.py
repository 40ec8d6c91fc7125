"""Lines to paste: the winner trained again, and the search that should come next."""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from overnight.config.compose import Draft, compose
from overnight.config.sections import SEARCHABLE, to_json
from overnight.config.trees import has_key
from overnight.search.plan import Plan
from overnight.search.record import TrialRecord, config_of, ranked
from overnight.search.space import Parameter, contains, display_name, to_hydra

# A winner that lies in the outermost twentieth of a range, on its own scale, may be better still beyond it.
EDGE = 0.05
# A choice that was taken less often was hardly tried.
HARDLY = 3
# What a line that goes on elsewhere leaves out, and what one that trains a single configuration has no use for.
_NOT_ASKED = ("study.name", "study.until", "home", "slots")
_FIRST = ("study.enqueue", "study.warm_start_from")  # what a study began with, which the next one does not
_OF_A_SEARCH = (
    *("study.trials", "study.hours", "study.patience", "study.confirm", "study.keep_checkpoints"),
    *("sampler", "pruner", "terminator", *_FIRST),
)


@dataclass(frozen=True)
class AtEdge:
    """A parameter whose best values lie at an end of its range. wider: the range that reaches beyond, in grammar."""

    name: str
    end: Literal["lower", "upper"]
    value: float
    limit: float
    wider: str


def train_command(plan: Plan, best: TrialRecord) -> str:
    """The line that trains a trial's configuration again."""
    config = config_of(best, plan)
    groups = {g: str(best.params.get(g, plan.choices[g])) for g in plan.choices}
    return _line("train", *_folder(plan), *_overrides(plan, config, groups, _OF_A_SEARCH), *_home(plan))


def next_command(plan: Plan, records: Sequence[TrialRecord], best: TrialRecord) -> str:
    """The line that searches on around the finding: wider where it lies at an edge, narrower elsewhere."""
    searched, fixed = _next_space(plan, records, best)
    config = plan.config({k: v for k, v in fixed.items() if k in plan.choices})
    kept = {p.key for p in plan.space.parameters}
    groups = {g: str(fixed.get(g, plan.choices[g])) for g in plan.choices if g not in searched}
    written = _overrides(plan, config, groups, (*kept, *_FIRST))
    written = [w for w in written if w.split("=")[0] not in fixed]
    known = _base(plan, groups).config
    added = {key for key in (*fixed, *searched) if key.split(".")[0] in known and not has_key(known, key)}
    values = [f"{'+' if key in added else ''}{key}={to_hydra(value)}" for key, value in fixed.items()]
    sweeps = [f"{'+' if key in added else ''}{key}={sweep}" for key, sweep in searched.items()]
    unsaid = any(c.key in searched for p in plan.space.parameters for c in p.when)
    search = [] if unsaid else ["search=none"]
    first = [f"study.warm_start_from={plan.name}"] if searched else []  # so that nothing found is lost
    name = f"study.name={next_name(plan.name)}"
    return _line("tune", *_folder(plan), name, *search, *written, *values, *sweeps, *first, *_home(plan))


def next_name(name: str) -> str:
    """digits-mlp-2 after digits-mlp, digits-mlp-3 after that."""
    stem, number = re.fullmatch(r"(.*?)(?:-(\d{1,3}))?", name).groups()  # type: ignore[union-attr]
    return f"{stem}-{int(number or 1) + 1}"


def edges(plan: Plan, best: TrialRecord) -> list[AtEdge]:
    """Where the best trial lies at an end of what was searched, and the range there might be more in."""
    found = []
    for name, dist in {display_name(n): d for p in _active(plan, best) for n, d in p.names().items()}.items():
        value = best.params.get(name)
        numeric = isinstance(dist, FloatDistribution | IntDistribution) and dist.high > dist.low
        if not numeric or not contains(dist, value):
            continue
        assert isinstance(dist, FloatDistribution | IntDistribution)
        assert isinstance(value, int | float)
        at = _position(dist, value)
        for end, limit, is_there in (("lower", dist.low, at <= EDGE), ("upper", dist.high, at >= 1 - EDGE)):
            low, high = _widened(dist, end)
            if is_there and (low, high) != (dist.low, dist.high):
                found.append(AtEdge(name, end, value, limit, _interval(dist, low, high)))  # type: ignore[arg-type]
    return found


def _next_space(plan: Plan, records: Sequence[TrialRecord], best: TrialRecord) -> tuple[dict[str, str], dict[str, Any]]:
    """Key -> sweep of what is to be searched on, and key -> value of what is settled."""
    good = _good(plan, records, best)
    at_edge = {e.name: e for e in edges(plan, best)}
    searched: dict[str, str] = {}
    fixed: dict[str, Any] = {}
    for p in _active(plan, best):
        if any(c.key in searched for c in p.when):
            continue  # what is drawn only sometimes stays with its search file
        if p.length is not None:  # a list's sweep does not fit on a line
            count = best.params.get(f"{p.key}.length", 0)
            fixed[p.key] = [best.params[f"{p.key}.{i}"] for i in range(count)]
        elif isinstance(p.each, CategoricalDistribution):
            options = _options(p, records, good)
            if len(options) > 1:
                searched[p.key] = ",".join(map(to_hydra, options))
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


def _active(plan: Plan, best: TrialRecord) -> list[Parameter]:
    """The draws that the best trial took: of a key that has several, one."""
    return [p for p in plan.space.parameters if p.active(best.params, plan.baseline)]


def _good(plan: Plan, records: Sequence[TrialRecord], best: TrialRecord) -> list[TrialRecord]:
    """The best quarter of the complete trials, five at least, and the winner."""
    complete = ranked(records, plan.settings)
    good = complete[: max(5, math.ceil(len(complete) / 4))]
    return good if best in good else [*good, best]


def _options(p: Parameter, records: Sequence[TrialRecord], good: Sequence[TrialRecord]) -> list[Any]:
    """The choices that are among the good, or were hardly tried."""
    assert isinstance(p.each, CategoricalDistribution)
    tried = [r.params.get(p.key) for r in records if r.done]
    among = [r.params.get(p.key) for r in good]
    return [o for o in p.each.choices if o in among or tried.count(o) < HARDLY]


def _position(dist: FloatDistribution | IntDistribution, value: float) -> float:
    """Where in its range a value lies, 0 to 1, on the scale on which it is drawn."""
    low, high, at = (math.log(v) if dist.log else v for v in (dist.low, dist.high, value))
    return (at - low) / (high - low) if high > low else 0.5


def _value(dist: FloatDistribution | IntDistribution, position: float) -> float:
    low, high = (math.log(v) if dist.log else v for v in (dist.low, dist.high))
    at = low + position * (high - low)
    return math.exp(at) if dist.log else at


def _narrowed(dist: FloatDistribution | IntDistribution, values: Sequence[float]) -> tuple[float, float]:
    """The part of a range that holds the good values, with a tenth of it to spare on both sides."""
    positions = [_position(dist, v) for v in values] or [0.0, 1.0]
    low, high = max(min(positions) - 0.1, 0.0), min(max(positions) + 0.1, 1.0)
    return max(_value(dist, low), dist.low), min(_value(dist, high), dist.high)


def _widened(dist: FloatDistribution | IntDistribution, end: str) -> tuple[float, float]:
    """A range moved past one end, by as much as it is wide, and by half of that given up at the other.

    What starts above 0 stays there, and what ends at or below 1 is taken for a share, which it stays.
    """
    middle = _value(dist, 0.5)
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
    """A range in Hydra's grammar, its ends rounded outwards to three digits."""
    if isinstance(dist, IntDistribution):
        first, last = math.floor(low), max(math.ceil(high), math.floor(low) + 1)
        text = f"int(interval({first},{last}))" if dist.step == 1 else f"range({first},{last + dist.step},{dist.step})"
        return f"tag(log,{text})" if dist.log else text
    text = f"interval({_rounded(low)},{_rounded(high)})"
    return f"tag(log,{text})" if dist.log else text


def _rounded(value: float) -> str:
    return f"{float(f'{value:.3g}')!r}"


def _overrides(plan: Plan, config: Mapping[str, Any], groups: Mapping[str, str], without: tuple[str, ...]) -> list[str]:
    """What to write so that the defaults compose to a plan and `config`; what `without` names is left out."""
    base = _base(plan, groups)
    lacking = [g for g in base.choices if g in groups and base.choices[g] != groups[g]]
    assert base.settings is not None
    mine = {**to_json(plan.settings), **{n: config[n] for n in SEARCHABLE if n in config}}
    theirs = {**to_json(base.settings), **{n: base.config[n] for n in SEARCHABLE if n in base.config}}
    had, has = _flat(theirs), _flat(mine)
    default = compose([]).choices
    said = [f"{g}={o}" for g, o in groups.items() if o != default.get(g) and g not in without]
    for key, value in has.items():
        left_out = any(key == w or key.startswith(f"{w}.") for w in (*_NOT_ASKED, *without, *lacking))
        if not left_out and had.get(key, ...) != value:
            said.append(f"{'' if key in had else '+'}{key}={to_hydra(value)}")
    said += [f"~{key}" for key in had if key not in has and key.split(".")[0] in SEARCHABLE]
    return said


def _base(plan: Plan, groups: Mapping[str, str]) -> Draft:
    """The defaults with these options taken."""
    base = compose([f"{g}={option}" for g, option in groups.items()], plan.config_dir)
    # Options of a folder of configs that is gone, or that an older version did not keep, are left as they are.
    return base if base.settings is not None else compose([])


def _folder(plan: Plan) -> list[str]:
    return [] if plan.config_dir is None else ["--config-dir", plan.config_dir]


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            flat.update(_flat(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _home(plan: Plan) -> list[str]:
    return plan.settings.location.overrides


def _line(*words: str) -> str:
    return shlex.join(["overnight", *words])
