"""The forkserver, when its imports fail."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

WAIT_FOR_IMPORTS = "from overnight.system import forkserver; forkserver.warm_up(); forkserver.is_warm(within_s=60)"
FORK_A_PROCESS = "import os; from overnight.system import forkserver; forkserver.fork(os.getpid)"


@pytest.mark.parametrize("script", [WAIT_FOR_IMPORTS, FORK_A_PROCESS])
@pytest.mark.parametrize(
    ("torch", "reason"),
    [
        ("raise ImportError('libtorch.so: cannot open shared object file')", "ImportError: libtorch.so"),
        ("raise OSError('libc.so: wrong ELF class')", "OSError: libc.so"),
        ("import os; os.kill(os.getpid(), 9)", "the process that imports them ended"),
    ],
    ids=["an import error", "another error", "a kill"],
)
def test_imports_that_fail_are_an_error_and_not_an_endless_wait(
    tmp_path: Path, script: str, torch: str, reason: str
) -> None:
    (tmp_path / "torch.py").write_text(torch)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])}
    ended = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert ended.returncode == 1
    assert f"must be importable, got {reason}" in ended.stderr
