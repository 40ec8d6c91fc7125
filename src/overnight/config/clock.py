"""Times of day as people write them, as seconds since 1970."""

from __future__ import annotations

import re
import time
from datetime import datetime, timedelta

_TIME_OF_DAY = re.compile(r"(\d{1,2}):(\d{2})")


def next_time(text: str, now: float) -> float:
    """When `text` comes: a time of day, 07:00, is the next one after `now`; a date with a time, 2026-11-25T07:00, is
    that one, be it past or not. Local time where no zone is given. Raises ValueError for anything else."""
    match = _TIME_OF_DAY.fullmatch(text)
    if match is None:
        if not re.match(r"\d{4}-\d{2}-\d{2}[T ]\d", text):
            raise ValueError(f"neither a time of day nor a date with a time: {text!r}")
        return datetime.fromisoformat(text).timestamp()
    here = datetime.fromtimestamp(now)
    then = here.replace(hour=int(match[1]), minute=int(match[2]), second=0, microsecond=0)
    # A day later by the calendar, which is not always 24 hours.
    return (then if then.timestamp() > now else then + timedelta(days=1)).timestamp()


def is_valid_time(text: str) -> bool:
    try:
        next_time(text, time.time())
    except ValueError:
        return False
    return True


def format_time(at: float, now: float) -> str:
    """06:21, with seconds where it is less than ten minutes from `now`, with the day where it is another one."""
    then, here = datetime.fromtimestamp(at), datetime.fromtimestamp(now)
    day = "" if then.date() == here.date() or 0 <= at - now < 43_200 else then.strftime("%a %d %b ")
    return day + then.strftime("%H:%M:%S" if abs(at - now) < 600 else "%H:%M")
