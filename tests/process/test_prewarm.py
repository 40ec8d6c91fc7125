"""The prewarm trials of the forkserver."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from overnight.config import import_allowlist
from overnight.system import devices, forkserver

GET_WARM = """
import os, signal, warnings
from pathlib import Path
import torch
from overnight.trial import fit, prewarm

def state():
    here = [Path(p) for p in (os.environ["TMPDIR"], "/proc/self/task", "/proc/self/fd")]
    return (
        dict(os.environ),
        {p: sorted(os.listdir(p)) for p in here if p.exists()},
        [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)],
        (torch.get_num_threads(), torch.get_default_dtype(), torch.are_deterministic_algorithms_enabled()),
        torch.is_grad_enabled(),
        list(warnings.filters),
    )

fit.silence_lightning()
torch.set_num_threads(2)
before = state()
assert [f.outcome for f in prewarm.run_prewarm_trials()] == ["complete", "complete"]
assert state() == before, (before, state())
os._exit(0)
"""


@pytest.mark.long
def test_prewarm_trials_complete_without_output_and_leave_no_trace(tmp_path: Path) -> None:
    line = [sys.executable, "-c", GET_WARM]
    guarded = {**os.environ, "TMPDIR": str(tmp_path), import_allowlist.GUARDED: "1"}  # as on a worker's machine
    done = subprocess.run(line, capture_output=True, text=True, env=guarded, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.long
def test_a_full_disk_does_not_stop_the_forkserver(tmp_path: Path) -> None:
    full = """
import os
from overnight.trial import checkpoint, prewarm

def full(*_):
    raise checkpoint.DiskFull

checkpoint.save_weights, prewarm._TIMEOUT_S = full, 0.5
assert [f.outcome for f in prewarm.run_prewarm_trials()] == ["saved", "saved"]
os._exit(0)
"""
    subprocess.run([sys.executable, "-c", full], env={**os.environ, "TMPDIR": str(tmp_path)}, check=True, timeout=60)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the forkserver looks packages up on Linux only")
@pytest.mark.skipif(not devices.no_gpu(), reason="a process that has initialised CUDA can't be forked to use it")
def test_a_forked_trial_knows_which_packages_are_installed() -> None:
    receiver, sender = multiprocessing.Pipe(duplex=False)
    process = forkserver.fork(send_cache_size, sender)
    sender.close()
    assert receiver.poll(60)
    assert receiver.recv() == 1, "Lightning's entry points were looked up once and are cached"
    process.join()


def send_cache_size(connection: Connection) -> None:
    from lightning_fabric.utilities import registry

    connection.send(registry.entry_points.cache_info().currsize)


@pytest.mark.parametrize(("visible", "none"), [("", True), ("-1", True), ("0", False), ("GPU-1,GPU-2", False)])
def test_the_forkserver_gets_the_no_gpu_flag_only_if_none_can_be_used(
    monkeypatch: pytest.MonkeyPatch, visible: str, none: bool
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert devices.no_gpu() == none
    variables = forkserver._forkserver_variables()
    assert ("OVERNIGHT_NO_GPU" in variables) == (none and sys.platform == "linux")
