"""Trials, values and durations as short texts, for screens, logs and reports."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from overnight.config.paths import trial_name
from overnight.config.values import short_text
from overnight.search.record import TrialRecord

# Metrics that are shown in percent if they are between 0 and 1.
_SHARES = ("accuracy", "acc", "precision", "recall", "f1", "auroc", "auc")


def trial_title(record: TrialRecord) -> str:
    """The name of a trial on the screen and in MLflow: trial-0007, or trial-0007-seed-2 for its confirmation."""
    c = record.confirms
    return trial_name(record.number) if c is None else f"{trial_name(c.trial)}-seed-{c.nth_seed}"


def describe(record: TrialRecord) -> str:
    """The parameters of a trial in one short line; a list as one value."""
    return _in_one_line(short_params(record))


def titled(record: TrialRecord) -> str:
    """The name of a trial, and its parameters in parentheses if it has any."""
    parameters = describe(record)
    return f"{trial_name(record.number)} ({parameters})" if parameters else trial_name(record.number)


def describe_params(params: Mapping[str, Any]) -> str:
    """Values by display name in one line."""
    return _in_one_line(_short_texts(params))


def short_params(record: TrialRecord) -> dict[str, str]:
    """Short name -> value of the parameters of a trial. A trial of `train` has no parameters; its classes name it."""
    if record.config is None or record.confirms is not None:
        return _short_texts(record.params)
    targets = {node: given.get("_target_") for node, given in record.config.items() if isinstance(given, Mapping)}
    return {node: str(target).rpartition(".")[2] for node, target in targets.items() if target}


def _in_one_line(texts: Mapping[str, str]) -> str:
    return " ".join(f"{name}={text}" for name, text in texts.items())


def _short_texts(params: Mapping[str, Any]) -> dict[str, str]:
    """Short name -> text of each key. A list has its length and its entries as parameters, and one text."""
    lists = {
        n.removesuffix(".length") for n in params if n.endswith(".length") and f"{n.removesuffix('length')}0" in params
    }
    parts: dict[str, str] = {}
    for name, value in params.items():
        key, _, last = name.rpartition(".")
        if key not in lists or not (last.isdigit() or last == "length"):
            parts[name] = short_text(value)
        elif last != "length":
            parts[key] = f"{parts[key]}-{short_text(value)}" if key in parts else short_text(value)
    return {_short_name(key, parts): text for key, text in parts.items()}


def _short_name(key: str, keys: Iterable[str]) -> str:
    """The shortest end of a dotted key that no other key has: model.encoder.width is width, or else encoder.width."""
    path, others = key.split("."), [other.split(".") for other in keys if other != key]
    for n in range(1, len(path)):
        if all(other[-n:] != path[-n:] for other in others):
            return ".".join(path[-n:])
    return key


def format_value(value: float, metric: str) -> str:
    """Format a value of a metric: 97.78%, 0.1234."""
    if _is_share(metric, value):
        return f"{value:.2%}"
    return f"{value:.4g}"


def format_interval(mean: float, half_width: float | None, metric: str) -> str:
    """Format a mean and half the width of its interval: 98.51% ± 0.06, 0.1234 ± 0.0011."""
    if half_width is None:
        return format_value(mean, metric)
    width = f"{100 * half_width:.2f}" if _is_share(metric, mean) else f"{half_width:.2g}"
    return f"{format_value(mean, metric)} ± {width}"


def _is_share(metric: str, value: float) -> bool:
    return metric.replace("_", "/").split("/")[-1].lower() in _SHARES and -1 <= value <= 1


def format_duration(seconds: float | None) -> str:
    """Format as 1:05:09, 5:09 or 9 s."""
    if seconds is None:
        return "?"
    whole = max(round(seconds), 0)
    hours, minutes, rest = whole // 3600, whole // 60 % 60, whole % 60
    if hours:
        return f"{hours}:{minutes:02}:{rest:02}"
    return f"{minutes}:{rest:02}" if minutes else f"{rest} s"
