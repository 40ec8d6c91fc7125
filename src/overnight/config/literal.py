"""Settings that hold a shell command, a path or an address; such a text passes Hydra and OmegaConf unchanged."""

from __future__ import annotations

import re
from typing import Any

from overnight.config import values
from overnight.config.override_parser import parse_override

# A shell command has quotes, braces and dollar signs of its own, so it is always taken as it is.
COMMANDS = ("notify.command",)
# Taken as they are, unless Hydra's grammar reads them as one text, which may be quoted and may hold interpolations.
PATHS = ("home", "storage.url", "tracking.uri", "tracking.artifacts")


def quote(text: str) -> str:
    """Write a text as the value of an override that composes to this text."""
    return values.to_text(values.escaped(text))


def as_override(text: str) -> str:
    """Write KEY=VALUE in Hydra's grammar, where KEY is a setting whose value is taken as it is."""
    key, _, value = text.partition("=")
    name = key.strip().lstrip("+")
    if not value or value == "null" or name not in (*COMMANDS, *PATHS):
        return text
    return text if name in PATHS and _is_text(text) else f"{key}={quote(value)}"


def escape_commands(config: Any) -> None:
    """Escape what is not escaped yet in the commands of a composed tree: ${NAME} is a variable of the shell."""
    from omegaconf import DictConfig, OmegaConf

    for key in COMMANDS:
        section, _, name = key.partition(".")
        node = config.get(section)
        if isinstance(node, DictConfig) and name in node:
            command = OmegaConf.to_container(node, resolve=False)[name]  # type: ignore[index,call-overload]
            if isinstance(command, str):
                node[name] = re.sub(r"(?<!\\)((?:\\\\)*)\$\{", r"\1\\${", command)


def _is_text(override: str) -> bool:
    try:
        parsed = parse_override(override)
        return not parsed.is_sweep_override() and isinstance(parsed.value(), str)
    except ValueError:
        return False
