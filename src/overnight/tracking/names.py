"""Names of metrics and parameters in MLflow.

A user's code may give a metric any name, and MLflow takes letters, digits, `_ - . / :` and blanks only, in at most 250
characters that read as a path. Each name passes through `metric_name` or `param_name`. A name that MLflow takes stays
as it is. In any other name, what MLflow refuses becomes a word between colons: `val/AP@50` is `val/AP:at:50`. The
mapping needs no table: each process of a study finds the same names, in any order, and no two names share one.
"""

from __future__ import annotations

import functools
import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping

OBJECTIVE = "objective"  # of a trial
BEST_OBJECTIVE = "best/objective"  # the best of a search, on the study's run
MEAN, HALF_WIDTH = "confirmed/mean", "confirmed/half_width"  # of the winner, on the study's run
SYSTEM = "system/"  # of the samples that tracking.system_metrics takes; MLflow shows them on a page of their own
SYSTEM_METRICS = tuple(
    SYSTEM + name
    for name in (
        "trial_cpu_percentage",
        "trial_memory_megabytes",
        "cpu_utilization_percentage",
        "system_memory_usage_megabytes",
        "system_memory_usage_percentage",
        "gpu_utilization_percentage",
        "gpu_memory_usage_megabytes",
    )
)
LOG10 = "log10_"  # prefix of the decimal logarithm of a parameter
BY_STEP = "by_step/"  # prefix of what a trial's code logs by step, through self.logger
HPARAMS = "hparams/"  # prefix of the parameters that it logs

_OUR_METRICS = frozenset((OBJECTIVE, BEST_OBJECTIVE, MEAN, HALF_WIDTH, *SYSTEM_METRICS))
_MAX_CHARS = 250
_WORDS = {
    "@": "at", "%": "percent", "+": "plus", "=": "equals", "*": "star", "#": "hash", "&": "and", "<": "less",
    ">": "more", "$": "dollar", "!": "bang", "?": "question", ",": "comma", ";": "semicolon", '"': "quote",
    "'": "apostrophe", "~": "tilde", "^": "caret", "|": "pipe", "\\": "backslash", "`": "backtick", "(": "lpar",
    ")": "rpar", "[": "lsqb", "]": "rsqb", "{": "lcub", "}": "rcub", "/": "slash", ".": "dot", ":": "colon",
}  # fmt: skip
_CHARACTERS = {word: character for character, word in _WORDS.items()}
_EMPTY, _USER = ":empty:", ":user:"
# In a mapped name every colon belongs to one of these.
_CUT = re.compile(r":cut-([0-9a-f]{20}):\Z")
_ESCAPE = re.compile(rf":(?:{'|'.join(_CHARACTERS)}|u[0-9a-f]+|empty|user|cut-[0-9a-f]{{20}}):")
# A character that MLflow refuses; a slash at the start, at the end or after another slash; a dot that begins a path of
# dots, such as . and .. or ..x
_REFUSED = re.compile(r"[^\w.\- :/]|^/|(?<=/)/|/\Z|(?:^|(?<=/))\.(?=\.?(?:/|\Z))|^\.(?=\.)")
_REFUSED_OR_COLON = re.compile(rf"{_REFUSED.pattern}|:")


@functools.cache
def metric_name(name: str) -> str:
    """Return the name that MLflow has for a metric of a user's code: `name` itself, if MLflow takes it and it is none
    of the names that overnight gives."""
    return _mapped(name, name in _OUR_METRICS or name.startswith(BY_STEP))


@functools.cache
def by_step_name(name: str) -> str:
    """Return the name of a metric that a trial's code logs by step. The metric by epoch may have the same name."""
    return _mapped(f"{BY_STEP}{name}", is_ours=False)


def of_fold(name: str, fold: int | None) -> str:
    """Return the name that a metric of a fold of a cross-validation has: fold-0/val/accuracy."""
    return name if fold is None else f"fold-{fold}/{name}"


def without_fold(name: str) -> tuple[int, str]:
    """Return the fold and the name that `of_fold` joined; -1 for a name without a fold."""
    found = re.fullmatch(r"fold-(\d+)/(.*)", name, re.DOTALL)
    return (int(found[1]), found[2]) if found else (-1, name)


def param_name(name: str) -> str:
    """Return the name that MLflow has for a parameter, as `metric_name` does for a metric."""
    return _mapped(name, name.startswith((LOG10, HPARAMS)))


def hparam_name(name: str) -> str:
    """Return the name of a parameter that a trial's code logs."""
    return _mapped(f"{HPARAMS}{name}", is_ours=False)


def log10_name(name: str) -> str:
    """Return the name of the decimal logarithm of a parameter."""
    return _mapped(f"{LOG10}{name}", is_ours=False)


def _mapped(name: str, is_ours: bool) -> str:
    mapped = name
    if not name or is_ours or _REFUSED.search(name) or _ESCAPE.search(name):
        mapped = (_REFUSED_OR_COLON.sub(_escape, name) or _EMPTY) + (_USER if is_ours else "")
    if len(mapped) <= _MAX_CHARS:
        return mapped
    cut = f":cut-{hashlib.sha256(name.encode('utf-8', 'surrogatepass')).hexdigest()[:20]}:"
    return mapped[: _MAX_CHARS - len(cut)] + cut


def is_of_overnight(mapped: str) -> bool:
    """Return whether a metric in MLflow is none that is logged by epoch: it is ours, or logged by step."""
    return mapped == OBJECTIVE or mapped in SYSTEM_METRICS or mapped.startswith(BY_STEP)


def from_mlflow(mapped: str, long_names: Iterable[str] = ()) -> str:
    """Return the name in the user's code.

    Args:
        long_names: Names that may have been cut, because they are too long for MLflow.

    Raises:
        LookupError: The name was cut and is none of `long_names`.
    """
    if is_cut(mapped):
        found = next((name for name in long_names if mapped in (metric_name(name), param_name(name))), None)
        if found is None:
            raise LookupError(f"{mapped} is the beginning of a name that is not known")
        return found
    return _ESCAPE.sub(_unescape, mapped)


def is_cut(mapped: str) -> bool:
    """Return whether MLflow has only the beginning of a name."""
    return _CUT.search(mapped) is not None


def cut_id(mapped: str) -> str:
    """Return what distinguishes a name that was cut from others with the same beginning."""
    found = _CUT.search(mapped)
    assert found is not None, "the name was cut"
    return found[1]


def notes_on_metrics(names: Iterable[str]) -> list[str]:
    """Return what to tell the user about the metrics whose names MLflow does not take, one line for each."""
    return [*_notes("metric", {name: metric_name(name) for name in names})]


def notes_on_params(names: Iterable[str]) -> list[str]:
    """Return what to tell the user about the parameters whose names MLflow does not take, one line for each."""
    return [*_notes("parameter", {name: param_name(name) for name in names})]


def _notes(kind: str, mapped: Mapping[str, str]) -> Iterator[str]:
    for name, shown in mapped.items():
        if shown != name:
            yield f"MLflow shows the {kind} {name!r} as {shown!r}: {_reason(name, shown)}"


def _reason(name: str, shown: str) -> str:
    if is_cut(shown):
        return f"it takes at most {_MAX_CHARS} characters"
    if shown.endswith(_USER):
        return "overnight writes a value of its own under that name"
    if _ESCAPE.search(name):
        return "a word between colons stands for a character that MLflow does not take"
    return "it takes letters, digits, _ - . / : and blanks, in the form of a path"


def _escape(match: re.Match[str]) -> str:
    character = match[0]
    return f":{_WORDS.get(character) or f'u{ord(character):x}'}:"


def _unescape(match: re.Match[str]) -> str:
    word = match[0].strip(":")
    if word in _CHARACTERS:
        return _CHARACTERS[word]
    return "" if word in ("empty", "user") else chr(int(word[1:], 16))
