"""Runs a command that receives SIGTERM when its parent process dies, so that it saves and stops.

python -m overnight.cluster.launchers.parent_watchdog PARENT_PID COMMAND...
"""

from __future__ import annotations

import os
import signal
import sys

from overnight.system.child_process import signal_when_parent_dies


def main(parent_pid: int, command: list[str]) -> None:
    """Become the command. Does not return."""
    signal_when_parent_dies(signal.SIGTERM)
    if os.getppid() != parent_pid:  # it died before the signal was set up
        sys.exit(128 + signal.SIGTERM)
    os.execv(command[0], command)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
