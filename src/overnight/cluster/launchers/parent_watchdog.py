"""Becomes a command that is asked to save and stop (SIGTERM) when whoever started it is gone, however that ended."""

from __future__ import annotations

import os
import signal
import sys

from overnight.system.child_process import signal_when_parent_dies


def main(parent: int, command: list[str]) -> None:
    """parent: the process that started this one. Does not return."""
    signal_when_parent_dies(signal.SIGTERM)
    if os.getppid() != parent:  # it was gone before the kernel knew
        sys.exit(128 + signal.SIGTERM)
    os.execv(command[0], command)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
