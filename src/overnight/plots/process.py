"""The first and the last lines of a drawing process, which gives way to everything else on the machine."""

from __future__ import annotations

import contextlib
import os
import traceback
from pathlib import Path

from overnight.protocol import DrawSpec
from overnight.system import child_process


def main(spec: DrawSpec, log: Path) -> None:
    """Draw what `spec` says and leave; what is said meanwhile goes to `log`. Does not return."""
    with open(log, "ab", buffering=0) as file:
        child_process.begin(file.fileno(), hide_gpus=True)
    if spec.low_priority:
        give_way()
    code = 0
    try:
        from overnight.plots.draw import draw

        draw(spec)
    except BaseException:
        traceback.print_exc()
        code = 1
    os._exit(code)


def give_way() -> None:
    """Have this process run only on what every other one leaves over, as far as the system knows such a thing."""
    os.nice(19)
    with contextlib.suppress(AttributeError, OSError):  # Linux alone
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    # Linux may share the time out among sessions first, and this process leads one: without a word to the session it
    # would get as much as a trial.
    _weigh_session("self", 19)


def be_quick(pid: int) -> None:
    """Have a drawing process that gives way get its share, to die: a process that is killed needs the processor once
    more, and one that only gets what others leave over may wait long for it."""
    _weigh_session(str(pid), 0)


def _weigh_session(process: str, niceness: int) -> None:
    with contextlib.suppress(OSError):  # Linux alone, and where it shares out among sessions
        Path(f"/proc/{process}/autogroup").write_text(str(niceness))
