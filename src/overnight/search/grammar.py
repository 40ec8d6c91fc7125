"""Reads one draw of a search space: a sweep in Hydra's grammar, an Optuna distribution, a list, or one value."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from optuna.distributions import BaseDistribution, FloatDistribution, IntDistribution

from overnight.config.override_parser import DRAW_INSIDE, holds_draw, parse_override
from overnight.config.problems import Problems
from overnight.config.values import fingerprint
from overnight.search.distributions import choices, exact
from overnight.search.space import Parameter

# Optuna's distributions with their arguments, and the short names that a dictionary may use.
_DISTRIBUTIONS = {
    "FloatDistribution": ("low", "high", "log", "step"),
    "IntDistribution": ("low", "high", "log", "step"),
    "CategoricalDistribution": ("choices",),
}
_SHORT_NAMES = {"float": "FloatDistribution", "int": "IntDistribution", "categorical": "CategoricalDistribution"}


@dataclass(frozen=True)
class FixedValue:
    """A value in place of a draw: the key is not searched."""

    value: Any


def read_draw(key: str, draw: Any, label: str, problems: Problems) -> Parameter | FixedValue | None:
    """Read the draw of a key. Adds mistakes to `problems` and then returns None.

    Args:
        label: The beginning of messages: where the draw is written.
    """
    if isinstance(draw, Mapping):
        if is_distribution(draw):
            return _read_distribution(key, draw, label, problems)
        return _read_list(key, draw, label, problems)
    if isinstance(draw, str):
        return _read_text(key, draw, label, problems)
    if isinstance(draw, list) and any(map(_is_draw, draw)):
        problems.add(f"{label}: {DRAW_INSIDE}, got {draw}")
        return None
    return FixedValue(draw)


def _is_draw(entry: Any) -> bool:
    """Whether an entry of a list in YAML is the text of a draw, which the list would hold as a text."""
    if not isinstance(entry, str) or "(" not in entry:
        return False
    try:
        return bool(parse_override(f"x={entry}").is_sweep_override())
    except ValueError:
        return False


def choice(key: str, values: Iterable[Any]) -> Parameter:
    """A choice among values. Raises ValueError with the rule that they break."""
    options = tuple(values)
    if len(set(map(fingerprint, options))) < len(options):
        raise ValueError("choices must differ from one another; leave one out")
    return Parameter(key, choices(options), options=options)


def unquoted(value: Any) -> Any:
    """A value of Hydra's parser as plain text, list or dict."""
    from hydra.core.override_parser.types import QuotedString

    if isinstance(value, QuotedString):
        return value.text
    if isinstance(value, list):
        return [unquoted(v) for v in value]
    if isinstance(value, dict):
        return {unquoted(k): unquoted(v) for k, v in value.items()}
    return value


def is_distribution(node: Mapping[str, Any]) -> bool:
    """Whether a mapping is an Optuna distribution, and not a list, a choice or a draw with conditions."""
    named = isinstance(node.get("name", node.get("type")), str)
    return named and not {"draw", "each", "length", "choice"} & set(node)


# Mappings -----------------------------------------------------------------------------------------------------------


def _read_list(key: str, draw: Mapping[str, Any], label: str, problems: Problems) -> Parameter | None:
    """Read a list of variable length: a mapping with `length` and `each`."""
    if set(draw) != {"length", "each"}:
        problems.add(f"{label}: a draw in a mapping is a list with length and each, or a distribution; got {draw}")
        return None
    each, counted = (read_draw(key, draw[part], f"{label}.{part}", problems) for part in ("each", "length"))
    if each is None or counted is None:
        return None
    length = counted.each if isinstance(counted, Parameter) else None
    if isinstance(counted, FixedValue) and type(counted.value) is int and counted.value > 0:
        length = IntDistribution(counted.value, counted.value)
    if not isinstance(length, IntDistribution) or length.low < 1 or length.step != 1:
        problems.add(f"{label}: length must be whole numbers from 1 up, e.g. int(interval(1, 3)), got {draw}")
        return None
    if not isinstance(each, Parameter) or each.length is not None:
        problems.add(f"{label}: each must be a draw of one value, e.g. int(interval(16, 256)), got {draw}")
        return None
    return Parameter(key, each.each, length, options=each.options)


def _read_distribution(key: str, draw: Mapping[str, Any], label: str, problems: Problems) -> Parameter | None:
    try:
        return _distribution(key, draw)
    except (ValueError, TypeError) as error:
        reason = str(error).removesuffix(".")
        problems.add(f"{label}: must be a distribution as Optuna writes it: {reason}; got {dict(draw)}")
        return None


def _distribution(key: str, draw: Mapping[str, Any]) -> Parameter:
    """The parameter of an Optuna distribution. Raises ValueError or TypeError with the rule that it breaks."""
    name = str(draw.get("name", draw.get("type")))
    kind = _SHORT_NAMES.get(name, name)
    rest = {k: v for k, v in draw.items() if k not in ("name", "type", "attributes")}
    attributes = draw.get("attributes", rest)
    if kind not in _DISTRIBUTIONS:
        raise ValueError(f"there are {', '.join([*_DISTRIBUTIONS, *_SHORT_NAMES])}")
    known = _DISTRIBUTIONS[kind]
    if not isinstance(attributes, Mapping) or ("attributes" in draw and rest) or not set(attributes) <= {*known}:
        raise ValueError(f"{kind} takes {', '.join(known)}")
    missing = [part for part in known if part in ("low", "high", "choices") and part not in attributes]
    if missing:
        raise ValueError(f"{kind} needs {', '.join(missing)}")
    if kind != "CategoricalDistribution":
        return Parameter(key, _numeric_distribution(kind, attributes))
    if not isinstance(attributes["choices"], list | tuple) or not attributes["choices"]:
        raise ValueError("choices must be a list")
    return choice(key, attributes["choices"])


def _numeric_distribution(kind: str, attributes: Mapping[str, Any]) -> BaseDistribution:
    low, high, log, step = (attributes.get(k) for k in ("low", "high", "log", "step"))
    whole = kind == "IntDistribution"
    for number in [n for n in (low, high, step) if n is not None]:
        if isinstance(number, bool) or not isinstance(number, int if whole else int | float):
            raise ValueError(f"{kind} needs {'whole ' if whole else ''}numbers, not {number!r}")
        if not math.isfinite(number):
            raise ValueError("both ends must be finite")
    if log is not None and not isinstance(log, bool):
        raise ValueError(f"log must be true or false, not {log!r}")
    if whole:
        return IntDistribution(low, high, log=bool(log), step=1 if step is None else step)  # type: ignore[arg-type]
    return FloatDistribution(low, high, log=bool(log), step=step)  # type: ignore[arg-type]


# Texts --------------------------------------------------------------------------------------------------------------


def _read_text(key: str, text: str, label: str, problems: Problems) -> Parameter | FixedValue | None:
    pasted = _pasted_distribution(text)
    if pasted is not None:
        return _read_distribution(key, pasted, label, problems)
    text = text.strip()
    try:
        override = parse_override(f"{key}={text}")
    except ValueError as error:
        problems.add(
            f"{label}: must be in Hydra's sweep grammar, e.g. interval(0, 1), int(interval(1, 8)), "
            f"range(32, 257, 32) or choice(a, b), got {text!r}: {error}"
        )
        return None
    is_sweep = override.is_sweep_override()
    if holds_draw(getattr(override._value, "list", []) if is_sweep else override.value()):
        problems.add(f"{label}: {DRAW_INSIDE}, got {text!r}")
        return None
    if not is_sweep:
        return FixedValue(override.value())
    tags: set[str] = getattr(override._value, "tags", set())  # a glob has none
    unknown = sorted(tags - {"log"})
    if unknown:
        problems.add(f"{label}: the only tag is log, got {', '.join(unknown)} in {text!r}")
        return None
    try:
        return _sweep(key, override, "log" in tags)
    except ValueError as error:
        problems.add(label, str(error), text)
        return None


def _pasted_distribution(text: str) -> Mapping[str, Any] | None:
    """The distribution in a text that `optuna.distributions.distribution_to_json` wrote."""
    if not text.lstrip().startswith("{"):
        return None
    try:
        found = json.loads(text)
    except ValueError:
        return None
    return found if isinstance(found, Mapping) and is_distribution(found) else None


def _sweep(key: str, override: Any, log: bool) -> Parameter:
    """The parameter of a sweep. Raises ValueError with the rule that it breaks."""
    from hydra.core.override_parser.types import ChoiceSweep, IntervalSweep, RangeSweep

    sweep: Any = override._value  # Hydra has no public way to the ends of a sweep
    if isinstance(sweep, IntervalSweep):
        return Parameter(key, _interval(sweep.start, sweep.end, log))
    if isinstance(sweep, RangeSweep):
        return Parameter(key, _range(sweep, log))
    if not isinstance(sweep, ChoiceSweep):
        raise ValueError("must be an interval, a range or a choice")
    if log:
        raise ValueError("log has no meaning for a choice; take tag(log, interval(LOW, HIGH))")
    _check_not_shuffled(sweep)
    return choice(key, override.sweep_iterator(transformer=unquoted))


def _interval(low: Any, high: Any, log: bool) -> BaseDistribution:
    if not (math.isfinite(low) and math.isfinite(high)):
        raise ValueError("interval needs two finite ends")
    if not low < high:
        raise ValueError("interval needs low < high")
    if log and low <= 0:
        raise ValueError("a logarithmic interval needs low > 0")
    if isinstance(low, int) and isinstance(high, int):
        return IntDistribution(low, high, log=log)
    return FloatDistribution(float(low), float(high), log=log)


def _range(sweep: Any, log: bool) -> BaseDistribution:
    if log:
        raise ValueError("a range has steps and can't be logarithmic; take tag(log, int(interval(LOW, HIGH)))")
    _check_not_shuffled(sweep)
    if sweep.step <= 0:
        raise ValueError("range needs a step above 0")
    if not all(map(math.isfinite, (sweep.start, sweep.stop, sweep.step))):
        raise ValueError("range needs a finite start, stop and step")
    start, step = exact(sweep.start), exact(sweep.step)
    count = math.ceil((exact(sweep.stop) - start) / step)  # of the numbers as they are written, without rounding
    if count < 2:
        raise ValueError("range(START, STOP, STEP) needs two values or more, its stop is excluded")
    last = start + (count - 1) * step
    if all(isinstance(v, int) for v in (sweep.start, sweep.stop, sweep.step)):
        return IntDistribution(sweep.start, int(last), step=sweep.step)
    return FloatDistribution(float(start), float(last), step=float(step))


def _check_not_shuffled(sweep: Any) -> None:
    if sweep.shuffle:
        raise ValueError("shuffle has no meaning here, the sampler decides on the order; leave it out")
