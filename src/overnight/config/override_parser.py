"""Hydra's parser of overrides, with one kind of error."""

from __future__ import annotations

import contextlib
import re
from typing import Any

DRAW_INSIDE = (
    "a draw can't be an entry of a list, a mapping or a choice; for a list whose entries are drawn write "
    "{length: 2, each: int(interval(16, 64))} in a search file, or choose among whole lists: [16,32],[32,64]"
)


def parse_override(text: str) -> Any:
    """Parse KEY=VALUE in Hydra's grammar. Raises ValueError with the reason in one line."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    try:
        return OverridesParser.create().parse_override(text)
    except HydraException as error:
        # Hydra's choice() refuses null among numbers or texts, and takes it where commas separate the same options.
        options = re.fullmatch(r"([^=]*=)choice\((.*,.*)\)\s*", text, re.DOTALL)
        if options is not None and re.search(r"\bnull\b", options[2]):
            with contextlib.suppress(HydraException, RecursionError, ArithmeticError, ValueError):
                return OverridesParser.create().parse_override(options[1] + options[2])
        raise ValueError((str(error).splitlines() or ["it has no value"])[0]) from error
    except (RecursionError, ArithmeticError, ValueError) as error:  # brackets that nest too deep, numbers too long
        raise ValueError(f"it is too deep or too long to read ({type(error).__name__})") from error


def holds_draw(value: Any) -> bool:
    """Whether a value that was parsed has a draw inside, as [interval(0, 1), 2] has: nothing would draw it."""
    from hydra.core.override_parser.types import Sweep

    if isinstance(value, dict):
        return any(holds_draw(v) for v in (*value, *value.values()))
    return any(map(holds_draw, value)) if isinstance(value, list | tuple) else isinstance(value, Sweep)
