"""Overrides in Hydra's grammar: parsed, and checked one by one against the configuration."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from overnight.config import callbacks
from overnight.config.fields import nearest
from overnight.config.literal import as_override, quote
from overnight.config.override_parser import DRAW_INSIDE, holds_draw, parse_override
from overnight.config.problems import ConfigError, Problems
from overnight.config.search_path import ConfigSearchPath
from overnight.config.settings import COMPONENTS, SECTIONS, TARGETED
from overnight.config.trainer import ACCEPTED, OURS, REFUSED
from overnight.config.trees import has_key, keys_of, to_plain, type_problem
from overnight.config.yaml_files import file_problem

_TRAINER_KEYS = tuple(f"trainer.{name}" for name in ACCEPTED)
# Keys that hydra.utils.instantiate reads. They may be added to every component.
_INSTANTIATE_KEYS = ("_target_", "_partial_", "_recursive_", "_convert_", "_args_")

# Keys that name a class in place of a shipped option. They need no `+`.
TARGET_KEYS = tuple(f"{section}._target_" for section in TARGETED)


def check_list(overrides: Any) -> list[str]:
    """The overrides as a list. Raises ConfigError for a single text and for anything else that is no list of texts."""
    rule = "overrides: must be a list of texts"
    if isinstance(overrides, str):
        raise ConfigError([f"{rule}, got the text {overrides!r}; write [{overrides!r}]"])
    if isinstance(overrides, Mapping | bytes) or not isinstance(overrides, Iterable):
        raise ConfigError([f"{rule}, got {overrides!r}; write them as in ['study.trials=20', 'model=mlp']"])
    listed = list(overrides)
    wrong = [o for o in listed if not isinstance(o, str)]
    if wrong:
        raise ConfigError(f"overrides: each must be a text KEY=VALUE, got {o!r}" for o in wrong)
    return listed


def option_override(group: str, option: str) -> str:
    """GROUP=OPTION in Hydra's grammar. The option is the name of a user's file, in any characters."""
    return f"{group}={quote(option)}"


def parse_overrides(overrides: Iterable[str], problems: Problems) -> list[Any]:
    """Parse overrides to Hydra's Override objects. Adds those that are not in the grammar to `problems`."""
    parsed = []
    for text in overrides:
        if re.fullmatch(r"[\w.@/-]+", text):  # the parser's error is about its tokens
            problems.add(f"{text}: must be KEY=VALUE, and has no '='")
            continue
        try:
            override = parse_override(as_override(text))
        except ValueError as error:
            problems.add(f"{text}: must be KEY=VALUE in Hydra's grammar: {error}")
            continue
        if not override.is_sweep_override() and not override.is_delete() and holds_draw(override.value()):
            problems.add(f"{text}: {DRAW_INSIDE}")
            continue
        parsed.append(override)
    return parsed


def key_of(override: str) -> str:
    return override.split("=", 1)[0].lstrip("+~")


def option_problem(override: Any, path: ConfigSearchPath) -> str | None:
    """What is wrong with a GROUP=OPTION, or None."""
    group, known = override.key_or_group, path.options(override.key_or_group)
    if override.is_delete():
        return f"{group}: can't be taken out; choose one of {', '.join(known)}"
    option = override.value()
    options = option if group == callbacks.NODE and isinstance(option, list) else [option]
    for each in options:
        if each not in known:
            hint = nearest(each, known) if isinstance(each, str) else ""
            return f"{group}: must be one of {', '.join(known)}, got {each!r}{hint}"
    if override.is_add() and group in (*COMPONENTS, *SECTIONS, "search"):
        return f"{group}: is chosen already; write {group}={option} without the +"
    files = filter(None, (path.file(group, each) for each in options))
    return next(filter(None, map(file_problem, files)), None)


def value_problem(override: Any, config: Any, path: ConfigSearchPath) -> str | None:
    """What is wrong with a KEY=VALUE that is no sweep, or None."""
    from omegaconf import OmegaConf

    key, section = override.key_or_group, override.key_or_group.split(".")[0]
    if section == "search":
        return f"{key}: sweep the key itself, e.g. optimizer.lr='interval(0.001,0.1)', or take search=none"
    tree = to_plain(config, resolve=False) if config else {}
    takes_classes = section in (*COMPONENTS, *TARGETED)
    if not tree or (override.is_add() and takes_classes):  # a new key for the user's class
        return None
    if key in TARGET_KEYS:
        return None
    if not has_key(tree, key) and not is_trainer_argument(key):
        if section == callbacks.NODE and len(key.split(".")) > 1 and not has_key(tree, ".".join(key.split(".")[:2])):
            return f"{key}: no such key, as no such callback is chosen; choose it with {section}=NAME"
        if options := path.options_with(key):
            also = " and ".join(f"{section}={option}" for option in options)
            return f"{key}: no such key with the {section} that is chosen; it is one of {also}"
        known = [*keys_of(tree), *_TRAINER_KEYS, *_INSTANTIATE_KEYS]
        return f"{key}: no such key" + nearest(key, known, and_add=takes_classes)
    if override.is_delete() or section not in COMPONENTS:
        return None  # the types of the other sections are checked with their rules
    present = OmegaConf.select(config, key) if not OmegaConf.is_missing(config, key) else None
    present = OmegaConf.to_container(present) if OmegaConf.is_config(present) else present
    problem = type_problem(present, override.value())
    return f"{key}: {problem}" if problem else None


def is_trainer_argument(key: str) -> bool:
    """Whether a key names an argument of Lightning's Trainer, which no config need have."""
    section, _, name = key.partition(".")
    return section == "trainer" and name.split(".")[0] in (*ACCEPTED, *OURS, *REFUSED, "_target_")


def is_missing_key(override: Any, problem: str) -> bool:
    """Whether the problem is that a component lacks the key. Another option of a searched group may have it."""
    key = override.key_or_group
    return key.split(".")[0] in COMPONENTS and not override.is_delete() and problem.startswith(f"{key}: no such key")
