"""The MLflow server that `overnight ui` runs for a home. A file of the home names its port while it runs."""

from __future__ import annotations

import contextlib
import json
import socket
from collections.abc import Iterator

from overnight.config.paths import StudyLocation
from overnight.system.files import write_atomically
from overnight.system.identity import is_running, own_identity


@contextlib.contextmanager
def announced(location: StudyLocation, port: int) -> Iterator[None]:
    """Let other commands know, within the block, that this process serves the location's store on a port."""
    path = location.paths.ui_server
    text = json.dumps({**own_identity(), "port": port, "store": location.tracking_uri})
    with contextlib.suppress(OSError):  # the home can't be written, so no command prints links to this server
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, text)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            if path.read_text("utf-8") == text:  # no later server has replaced it
                path.unlink()


def address(location: StudyLocation) -> str | None:
    """Return the address of the server that shows the location's store; None where none runs.

    The file of a copied home names the server of another store, and a process id may be another process's by now.
    """
    if location.server is not None:
        return location.server
    try:
        found = json.loads(location.paths.ui_server.read_text("utf-8"))
        is_ours = found["store"] == location.tracking_uri and found["host"] == socket.gethostname()
        return f"http://127.0.0.1:{found['port']:d}" if is_ours and is_running(found) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None
