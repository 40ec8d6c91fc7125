"""MLflow's UI on this machine: its server until a signal, and its page on a screen."""

from __future__ import annotations

import contextlib
import http.client
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any

import click


def free_port(wanted: int) -> int:
    """The first port from `wanted` on that nobody has; any, where twenty are taken."""
    for port in (*range(wanted, wanted + 20), 0):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return int(probe.getsockname()[1])
    raise click.ClickException(f"--port: no free port from {wanted} on")


def serve(command: list[str], environment: Any, port: int, page: str, browser: bool) -> None:
    """Run MLflow's server until a signal, and leave none of its processes behind."""
    with tempfile.TemporaryDirectory(prefix="overnight-ui-") as folder:  # whatever it writes beside its stores
        server = subprocess.Popen(
            command,
            env=environment,
            cwd=folder,
            start_new_session=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        ended = threading.Event()
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: ended.set())
        said: deque[bytes] = deque(maxlen=20)
        assert server.stderr is not None
        threading.Thread(target=said.extend, args=(server.stderr,), daemon=True).start()
        try:
            if _answers(port, lambda: server.poll() is not None or ended.is_set()):
                click.echo(f"{page}\nCtrl-C ends it")
                show(page, browser)
                while server.poll() is None and not ended.wait(0.2):
                    pass
            if not ended.is_set():
                click.echo(b"".join(said).decode(errors="replace"), err=True)
                raise click.ClickException(f"MLflow's server ended by itself, exit code {server.returncode}")
        finally:
            server.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                server.wait(5)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(server.pid, signal.SIGKILL)


def show(page: str, browser: bool) -> None:
    """Open a page, where that is wanted and there is a screen."""
    if browser and (os.environ.get("DISPLAY") or sys.platform == "darwin"):
        click.launch(page)


def _answers(port: int, given_up: Callable[[], bool]) -> bool:
    while not given_up():
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=1)
        try:
            connection.request("GET", "/health")
            if connection.getresponse().status == 200:
                return True
        except OSError:
            time.sleep(0.1)
        finally:
            connection.close()
    return False
