"""A small worker for tests: works on a folder of tasks, with others, until all are done.

Usage: stand_in_worker.py FOLDER TASKS SECONDS. The file of a finished task holds the process id of its worker. The
kernel releases the lock on a task when its worker dies.
"""

import fcntl
import os
import signal
import sys
import time
from pathlib import Path

folder, tasks, seconds = Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
print("started", flush=True)
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
                os.replace(folder / f"writing-{n}", folder / f"done-{n}")  # atomic, whatever signal arrives
    time.sleep(0.05)
