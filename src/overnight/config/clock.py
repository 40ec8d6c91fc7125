"""Times of day as a user writes them, and as messages show them. Seconds since 1970, in local time."""

from __future__ import annotations

import re
import time
from datetime import datetime, timedelta

_TIME_OF_DAY = re.compile(r"(\d{1,2}):(\d{2})")


def next_time(text: str, now: float) -> float:
    """Convert a time of day such as 07:00 to its next occurrence, or a date with a time such as 2026-11-25T07:00.

    A date may be past. It may have a time zone.

    Raises:
        ValueError: `text` is neither.
    """
    match = _TIME_OF_DAY.fullmatch(text)
    if match is None:
        if not re.match(r"\d{4}-\d{2}-\d{2}[T ]\d", text):
            raise ValueError(f"neither a time of day nor a date with a time: {text!r}")
        return datetime.fromisoformat(text).timestamp()
    today = datetime.fromtimestamp(now)
    then = today.replace(hour=int(match[1]), minute=int(match[2]), second=0, microsecond=0)
    # A day later by the calendar, which is not always 24 hours.
    return (then if then.timestamp() > now else then + timedelta(days=1)).timestamp()


def is_valid_time(text: str) -> bool:
    try:
        next_time(text, time.time())
    except ValueError:
        return False
    return True


def format_time(at: float, now: float) -> str:
    """Format as 06:21; with seconds within ten minutes of `now`, and with the day where it is not today or tonight."""
    then, today = datetime.fromtimestamp(at), datetime.fromtimestamp(now)
    day = "" if then.date() == today.date() or 0 <= at - now < 43_200 else then.strftime("%a %d %b ")
    return day + then.strftime("%H:%M:%S" if abs(at - now) < 600 else "%H:%M")
