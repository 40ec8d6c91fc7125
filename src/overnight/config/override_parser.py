"""Hydra's parser of overrides, with one kind of error."""

from __future__ import annotations

from typing import Any


def parse_override(text: str) -> Any:
    """Parse KEY=VALUE in Hydra's grammar. Raises ValueError with the reason in one line."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    try:
        return OverridesParser.create().parse_override(text)
    except HydraException as error:
        raise ValueError((str(error).splitlines() or ["it has no value"])[0]) from error
    except (RecursionError, ArithmeticError, ValueError) as error:  # brackets that nest too deep, numbers too long
        raise ValueError(f"it is too deep or too long to read ({type(error).__name__})") from error
