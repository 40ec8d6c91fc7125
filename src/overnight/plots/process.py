"""The process that draws plots, with lower priority than everything else on the machine."""

from __future__ import annotations

import contextlib
import json
import os
import traceback
from collections.abc import Sequence
from pathlib import Path

from overnight.protocol import DrawSpec
from overnight.system import child_process

# Written last, with the stamp of what was drawn; the descriptions of the plots.
DRAWN, IN_WORDS = "drawn.json", "in-words.md"


def stamp_of(uid: str, which: Sequence[str], look: str) -> str:
    """Return what identifies a trial's plots: the study, the kinds of plots and their colours."""
    return json.dumps({"study": uid, "which": list(which), "look": look})


def is_drawn(folder: Path, stamp: str) -> bool:
    """Return whether the plots with this stamp are in a folder."""
    with contextlib.suppress(OSError):
        return (folder / DRAWN).read_text("utf-8") == stamp
    return False


def main(spec: DrawSpec, log: Path) -> None:
    """Draw the plots of `spec` and exit. What the process prints goes to `log`."""
    with open(log, "ab", buffering=0) as file:
        child_process.begin(file.fileno(), hide_gpus=True)
    if spec.low_priority:
        lower_priority()
    code = 0
    try:
        from overnight.plots.draw import draw

        draw(spec)
    except BaseException:
        traceback.print_exc()
        code = 1
    os._exit(code)


def lower_priority() -> None:
    """Use only processor time that no other process wants, as far as the system supports that."""
    os.nice(19)
    with contextlib.suppress(AttributeError, OSError):  # Linux only
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    # Linux may divide processor time among sessions first. This process leads a session, which would otherwise get as
    # much as a trial.
    _set_session_niceness("self", 19)


def restore_priority(pid: int) -> None:
    """Give a drawing process its share of the processor before it is killed: without one, its exit may take long."""
    _set_session_niceness(str(pid), 0)


def _set_session_niceness(process: str, niceness: int) -> None:
    with contextlib.suppress(OSError):  # Linux only, with autogroup scheduling
        Path(f"/proc/{process}/autogroup").write_text(str(niceness))
