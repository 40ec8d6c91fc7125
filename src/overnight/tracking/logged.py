"""What a trial's code has logged through `self.logger` and its run in MLflow lacks.

A tag of the run says how much of the trial's log it has: the id of the log's history and a position. It is written
after each part. A part that was written without its tag, because a kill came between, is written again, and MLflow
drops what it has already: a value with the same step and time.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from overnight.tracking import names
from overnight.tracking.run_update import LoggedMetric
from overnight.trial.log_file import FILE, HEADER_BYTES, METRICS, PARAMS, TAGS, read_header, read_lines

ARTIFACTS = "logged"  # the folder of the run's artifacts for files
_LINES_AT_ONCE = 5000
_TEXT_CHARS = 5000  # of a tag


@dataclass(frozen=True)
class Part:
    """Part of a log.

    Attributes:
        files: Names below the folder `files`, each once.
        mark: The value of the tag once the run has the part.
    """

    metrics: list[LoggedMetric]
    files: list[str]
    params: dict[str, str]
    tags: dict[str, str]
    mark: str


def unwritten(folder: Path, mark: str, whole: bool, steps_of: Callable[[str], set[int]]) -> Iterator[Part]:
    """Yield what a run lacks of a trial's log, in order.

    Args:
        folder: Of the trial's log, which may not exist.
        mark: The value of the run's tag.
        whole: The trial has ended, so that all of the log counts. Otherwise what a saved state of the trial covers.
        steps_of: Name of a metric -> the steps that the run has. It is called where the trial has started again, and
            logs once more what the run has of its first try.
    """
    try:
        file = open(folder / "log.jsonl", "rb")  # noqa: SIM115
    except OSError:  # the trial has logged nothing
        return
    with file:
        header = read_header(file)
        if header is None:
            return
        history, saved = header
        end = os.fstat(file.fileno()).st_size if whole else saved
        known, _, position = mark.partition(":")
        goes_on = known == history and int(position) <= end
        start = int(position) if goes_on else HEADER_BYTES
        known_steps: Callable[[str], set[int]] = functools.cache(steps_of) if mark and not goes_on else _no_steps
        for after, lines in read_lines(file, start, end, _LINES_AT_ONCE):
            yield _part(lines, f"{history}:{after}", known_steps)


def _no_steps(name: str) -> set[int]:  # noqa: ARG001
    return set()


def _part(lines: list[list[Any]], mark: str, known_steps: Callable[[str], set[int]]) -> Part:
    metrics: list[LoggedMetric] = []
    files: dict[str, None] = {}
    params: dict[str, str] = {}
    tags: dict[str, str] = {}
    for kind, *content in lines:
        if kind == METRICS:
            step, time_ms, values = content
            for name, value in values.items():
                shown = names.by_step_name(name)
                if step not in known_steps(shown):
                    metrics.append(LoggedMetric(shown, value, time_ms, step))
        elif kind == FILE:
            files[content[0]] = None
        elif kind == PARAMS:
            params |= {names.hparam_name(name): text for name, text in content[0].items()}
        elif kind == TAGS:
            tags |= {name: text[:_TEXT_CHARS] for name, text in content[0].items()}
    return Part(metrics, list(files), params, tags, mark)
