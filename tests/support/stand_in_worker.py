"""A worker that is small enough to see through: it serves a folder of tasks beside others, until each is done.

Usage: stand_in_worker.py FOLDER TASKS SECONDS. A task is done once its file says by whom; the lock on it ends with
its holder.
"""

import fcntl
import os
import signal
import sys
import time
from pathlib import Path

folder, tasks, seconds = Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
print("begins", flush=True)
if (folder / "refuse").exists():
    print("study: must be one that this worker trusts", flush=True)
    sys.exit(2)
(folder / f"pid-{os.getpid()}").touch()
while any(not (folder / f"done-{n}").exists() for n in range(tasks)):
    for n in range(tasks):
        with open(folder / f"lock-{n}", "w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                continue
            if not (folder / f"done-{n}").exists():
                time.sleep(seconds)
                (folder / f"writing-{n}").write_text(str(os.getpid()))
                os.replace(folder / f"writing-{n}", folder / f"done-{n}")  # whole, whatever signal comes
    time.sleep(0.05)
