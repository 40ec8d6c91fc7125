"""A tethered command ends with the process that started it, and so does everything that the command started."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from overnight.system import tether
from support.commands import LATE, start

# The command starts a process that leaves its session, ignores signals and works on; the command itself does not end
# at SIGTERM either.
STUBBORN = """
import os, signal, subprocess, sys, time
for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
    signal.signal(number, signal.SIG_IGN)
if len(sys.argv) > 2:
    subprocess.Popen([sys.executable, __file__, sys.argv[1]], start_new_session=True)
with open(os.path.join(sys.argv[1], str(os.getpid())), "w"):
    time.sleep(600)
"""
PARENT = """
import subprocess, sys, time
from overnight.system import tether
tether.start([sys.executable, *sys.argv[1:]], stdout=subprocess.DEVNULL)
time.sleep(600)
"""


def wait_until(holds: Callable[[], bool], within_s: float) -> None:
    deadline = time.monotonic() + within_s
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGHUP])
def test_nothing_is_left_when_the_parent_is_killed(how: signal.Signals, tmp_path: Path) -> None:
    script, pids = tmp_path / "stubborn.py", tmp_path / "pids"
    script.write_text(STUBBORN)
    pids.mkdir()
    parent = subprocess.Popen([sys.executable, "-c", PARENT, str(script), str(pids), "again"])
    wait_until(lambda: len(list(pids.iterdir())) == 2, 20 * LATE)
    parent.send_signal(how)
    parent.wait()
    wait_until(lambda: not any(psutil.pid_exists(int(p.name)) for p in pids.iterdir()), 8 * LATE)


def test_the_exit_code_and_the_errors_of_the_command_are_passed_on() -> None:
    process = tether.start([sys.executable, "-c", "import sys; sys.exit('gone')"], stderr=subprocess.PIPE)
    assert process.stderr is not None
    with process.stderr:
        assert process.stderr.read() == b"gone\n"
    assert process.wait() == 1
    tether.end(process)


@pytest.mark.long
def test_killing_ui_ends_its_server_and_compare_links_to_no_server(finished_home: Path) -> None:
    home = f"home={finished_home}"
    with start("ui", home, "--no-browser", "--port", "5271", stdout=subprocess.PIPE, text=True) as ui:
        assert ui.stdout is not None
        page = next(line for line in ui.stdout if line.startswith("http"))
        port = int(page.split(":")[2].partition("/")[0])
        assert f"http://127.0.0.1:{port}/#/compare-runs" in compared(home)
        server = psutil.Process(ui.pid).children(recursive=True)
        assert server
        os.kill(ui.pid, signal.SIGKILL)
    wait_until(lambda: not any(p.is_running() for p in server), 10 * LATE)
    assert not any(c.laddr.port == port for c in psutil.net_connections("tcp") if c.status == "LISTEN")
    assert "http" not in compared(home)


def compared(home: str) -> str:
    command = [sys.executable, "-m", "overnight", "compare", "digits-mlp/0", "digits-mlp/1", home]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.replace("\n", "")
