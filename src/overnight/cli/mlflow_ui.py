"""MLflow's UI and optuna-dashboard on this machine: their servers, and their pages in a browser."""

from __future__ import annotations

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

from overnight.system import tether


def free_port(wanted: int) -> int:
    """Return the first free port from `wanted` on; any free port if twenty are in use."""
    for port in (*range(wanted, min(wanted + 20, 65536)), 0):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return int(probe.getsockname()[1])
    raise click.ClickException(f"--port: no free port from {wanted} on")


def serve(
    command: list[str],
    environment: Any,
    port: int,
    page: str,
    browser: bool,
    *,
    health: str = "/health",
    name: str = "MLflow's server",
) -> None:
    """Run a server until SIGINT, SIGTERM or SIGHUP. It ends with this process, whatever ends that.

    Args:
        health: A path that it answers with 200 once it is ready.
    """
    with tempfile.TemporaryDirectory(prefix="overnight-ui-") as folder:  # its working directory, to which it writes
        ended = threading.Event()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, lambda *_: ended.set())
        server = tether.start(command, env=environment, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        messages: deque[bytes] = deque(maxlen=20)
        assert server.stderr is not None
        threading.Thread(target=messages.extend, args=(server.stderr,), daemon=True).start()
        try:
            if _wait_until_healthy(port, health, lambda: server.poll() is not None or ended.is_set()):
                click.echo(f"{page}\nPress Ctrl-C to stop.")
                open_page(page, browser)
                while server.poll() is None and not ended.wait(0.2):
                    pass
            if not ended.is_set():
                click.echo(b"".join(messages).decode(errors="replace"), err=True)
                raise click.ClickException(f"{name} exited with code {server.returncode}")
        finally:
            tether.end(server)


def open_page(page: str, browser: bool) -> None:
    """Open a page in a browser if that is wanted and there is a display."""
    if browser and (os.environ.get("DISPLAY") or sys.platform == "darwin"):
        click.launch(page)


def _wait_until_healthy(port: int, path: str, is_over: Callable[[], bool]) -> bool:
    while not is_over():
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=1)
        try:
            connection.request("GET", path)
            if connection.getresponse().status == 200:
                return True
        except OSError:
            time.sleep(0.1)
        finally:
            connection.close()
    return False
