"""What the forkserver goes through once, so that no trial has to."""

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
def test_what_the_forkserver_goes_through_ends_well_says_nothing_and_leaves_nothing_behind(tmp_path: Path) -> None:
    line = [sys.executable, "-c", GET_WARM]
    guarded = {**os.environ, "TMPDIR": str(tmp_path), import_allowlist.GUARDED: "1"}  # as on a worker's machine
    said = subprocess.run(line, capture_output=True, text=True, env=guarded, check=False)
    assert (said.returncode, said.stdout, said.stderr) == (0, "", "")


@pytest.mark.long
def test_a_full_disk_keeps_no_forkserver_from_its_work(tmp_path: Path) -> None:
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


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="elsewhere a fork is no place for what was looked up")
@pytest.mark.skipif(not devices.no_gpu(), reason="a process that has looked for a GPU can't be forked to use one")
def test_a_trial_is_born_knowing_which_packages_are_installed() -> None:
    ours, theirs = multiprocessing.Pipe(duplex=False)
    process = forkserver.fork(say_what_is_known, theirs)
    theirs.close()
    assert ours.poll(60)
    assert ours.recv() == 1, "Lightning's group of entry points was looked up once, and is remembered"
    process.join()


def say_what_is_known(connection: Connection) -> None:
    from lightning_fabric.utilities import registry

    connection.send(registry.entry_points.cache_info().currsize)


@pytest.mark.parametrize(("visible", "none"), [("", True), ("-1", True), ("0", False), ("GPU-1,GPU-2", False)])
def test_where_a_gpu_may_be_used_the_forkserver_looks_for_none(
    monkeypatch: pytest.MonkeyPatch, visible: str, none: bool
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert devices.no_gpu() == none
    variables = forkserver._forkserver_variables()
    assert ("OVERNIGHT_NO_GPU" in variables) == (none and sys.platform == "linux")
