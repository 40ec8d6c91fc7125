"""An error in one line."""

from __future__ import annotations

from overnight.config import credentials


def one_line(error: BaseException, *, root_cause: bool = False) -> str:
    """Describe an error by its type and the first line of its message, without credentials.

    Args:
        error: the error.
        root_cause: describe the error at the start of the chain of `raise ... from ...`, for libraries that wrap the
            errors of their drivers.
    """
    while root_cause and error.__cause__ is not None:
        error = error.__cause__
    message = str(error).strip()
    kind = type(error).__name__
    return f"{kind}: {credentials.redact(message.splitlines()[0])}" if message else kind
