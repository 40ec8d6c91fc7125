"""A folder in which commands run, and in which a write outside the home is a failure."""

from __future__ import annotations

import contextlib
import io
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from overnight.cli import main as command

EXIT_CODES = (0, 1, 2, 130, 143)
WRITES_WHERE_ASKED = ("export", "init")


class Sandbox:
    """A folder with a home, in which commands run. What they write outside of the home is a failure."""

    def __init__(self, root: Path, home: Path) -> None:
        self.root, self.home = root, home
        self.folder, self.user, self.temporary = root / "cwd", root / "user", root / "tmp"
        for folder in (self.folder, self.user, self.temporary):
            folder.mkdir()

    def run(self, words: list[str]) -> None:
        """Run a command in this process."""
        printed, code = io.StringIO(), None
        with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed), self._watched() as writes:
            sys.argv = ["overnight", *words]
            try:
                command._run()
            except SystemExit as ended:
                code = ended.code
        self._check(code, printed.getvalue())
        if words[0] not in WRITES_WHERE_ASKED:
            outside = [w for w in writes if not w.is_relative_to(self.home)]
            assert not outside, f"written outside the home: {outside}"

    def run_process(self, words: list[str]) -> None:
        before = self._files()
        environment = {
            **os.environ,
            "HOME": str(self.user),
            "TMPDIR": str(self.temporary),
            "MPLCONFIGDIR": str(self.root / "mpl"),
        }
        arguments = [os.fsencode(word) for word in (sys.executable, "-m", "overnight", *words)]
        with subprocess.Popen(
            arguments,
            cwd=self.folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        ) as process:
            try:
                printed = process.communicate(timeout=60)[0]
            except subprocess.TimeoutExpired:  # a server or a worker that runs until it is stopped
                process.send_signal(signal.SIGTERM)
                printed = process.communicate(timeout=60)[0]
        self._check(process.returncode, printed.decode(errors="replace"))
        if words[0] not in WRITES_WHERE_ASKED:
            new = self._files() - before
            assert not new, f"written outside the home: {new}"

    def _files(self) -> set[Path]:
        return {p for folder in (self.folder, self.user) for p in folder.rglob("*")}

    def _check(self, code: object, printed: str) -> None:
        assert code in EXIT_CODES or code is None, f"exit code {code}: {printed[-2000:]}"
        assert "Traceback (most recent call last)" not in printed, printed[-4000:]
        assert "unexpected error" not in printed, printed[-4000:]

    @contextlib.contextmanager
    def _watched(self) -> Iterator[list[Path]]:
        """Collect the paths that this process writes to in the block."""
        _writes.clear()
        _watching.append(True)
        try:
            yield (found := [])
        finally:
            _watching.clear()
            found.extend(p for p in map(_absolute, _writes) if p is not None and not _is_internal(p))


_watching: list[bool] = []
_writes: list[Any] = []
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    if not _watching:
        return
    if event == "open":
        path, mode, flags = arguments
        if isinstance(path, str | bytes) and (
            set("wax+") & set(mode or "") or (isinstance(flags, int) and flags & _WRITING)
        ):
            _writes.append(path)
    elif event in ("os.mkdir", "os.remove", "os.rmdir", "os.rename", "os.link", "os.symlink", "shutil.rmtree"):
        _writes.extend(a for a in arguments[:2] if isinstance(a, str | bytes))


sys.addaudithook(_audit)


def _absolute(path: str | bytes) -> Path | None:
    with contextlib.suppress(ValueError, OSError):
        return Path(os.path.abspath(os.fsdecode(path)))
    return None


def _is_internal(path: Path) -> bool:
    """Whether Python or a library keeps a cache or a temporary file there."""
    import tempfile

    parts = {"__pycache__", ".pytest_cache", "mlflow", ".cache", ".config"}
    in_temporary = path.parent == Path(tempfile.gettempdir()) or path.parent.parent == Path(tempfile.gettempdir())
    return bool(parts & set(path.parts)) or in_temporary or str(path).startswith(("/dev/", "/proc/"))
