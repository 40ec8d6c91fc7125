"""Who is told how a study goes, and of what: it is done, it failed, it stalled, it waits for room on the disk.

The telling itself is a messenger's, a process of its own. Addresses are secrets: they come from a config file, the
environment or a file that it names, go to the messenger through a pipe, and stand in no plan, log or artifact.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import math
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from overnight.config.paths import trial_name
from overnight.config.problems import ConfigError
from overnight.config.sections import NotifySettings
from overnight.runner.messenger import FAREWELL
from overnight.search.plan import Plan

URLS, URLS_FILE = "OVERNIGHT_NOTIFY_URLS", "OVERNIGHT_NOTIFY_URLS_FILE"
WAIT_S = 10.0  # at the end, for the last word to be delivered; the messenger itself goes on for a while
Event = Literal["done", "failed", "stalled", "paused_for_disk"]


def addresses(settings: NotifySettings) -> list[str]:
    """Every address that is to be told: the config's, the environment's, and the file's that the environment names.

    Raises ConfigError, which names none of them, where one can't be used.
    """
    found = {f"notify.urls[{i}]": url for i, url in enumerate(settings.urls)}
    found |= {f"{URLS}, number {i + 1}": url for i, url in enumerate(os.environ.get(URLS, "").split())}
    if path := os.environ.get(URLS_FILE):
        try:
            lines = [line.strip() for line in Path(path).expanduser().read_text().splitlines()]
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(
                [f"{URLS_FILE}: must name a file with an address a line, got {path!r}: {type(error).__name__}"]
            ) from error
        found |= {f"{URLS_FILE}, line {i + 1}": url for i, url in enumerate(lines) if url and not url.startswith("#")}
    if not found:
        return []
    if importlib.util.find_spec("apprise") is None:
        raise ConfigError(["notify.urls: needs the package apprise; pip install 'overnight[notify]', or none of them"])
    import apprise

    problems = [
        f"{where}: must be an address that apprise knows, e.g. mailto://NAME:PASSWORD@example.com; "
        "https://github.com/caronc/apprise lists them"
        for where, url in found.items()
        if apprise.Apprise.instantiate(url) is None
    ]
    if problems:
        raise ConfigError(problems)
    return list(found.values())


class Notifier:
    """Tells of one study, each thing once; of nothing where there is no messenger."""

    def __init__(self, messenger: subprocess.Popen[str] | None) -> None:
        self._messenger = messenger
        self._told: set[str] = set()
        self._no_room = False
        self._until = math.inf

    def wait_until(self, at: float) -> None:
        """Wait for the last word no longer than that, seconds since 1970; the messenger itself goes on."""
        self._until = at

    def tell(self, event: Event | Literal["farewell"], sentence: str = "") -> None:
        """Have it said; returns at once."""
        if self._messenger is not None and self._messenger.stdin is not None:
            with contextlib.suppress(OSError, ValueError):  # it died: a study goes on without
                self._messenger.stdin.write(json.dumps({"event": event, "sentence": sentence}) + "\n")
                self._messenger.stdin.flush()

    def look(self, no_room: bool, silent: Sequence[int]) -> None:
        """Tell what is new. no_room: the study waits for room on the disk. silent: trials that were cut for silence."""
        if no_room and not self._no_room:
            self.tell("paused_for_disk", "the disk is about full: trials are saved, and go on when there is room")
        self._no_room = no_room
        for name in map(trial_name, silent):
            if name not in self._told:
                self._told.add(name)
                self.tell("stalled", f"{name} said nothing for too long and was ended; the study goes on")

    def close(self) -> bool:
        """Say farewell and wait a little; whether all that was said was delivered."""
        if self._messenger is None:
            return True
        self.tell(FAREWELL)  # type: ignore[arg-type]
        with contextlib.suppress(OSError):
            self._messenger.stdin.close()  # type: ignore[union-attr]
        try:
            return self._messenger.wait(min(WAIT_S, max(self._until - time.time(), 0.0))) == 0
        except subprocess.TimeoutExpired:
            # It goes on without us, and is taken note of when it ends, if we are still there.
            threading.Thread(target=self._messenger.wait, daemon=True).start()
            return False


@contextmanager
def herald(plan: Plan, urls: Sequence[str], say: Callable[[str], None]) -> Iterator[Notifier]:
    """A herald for as long as the study is worked on; tells of an error that ends the block. say: told what failed."""
    command, log, messenger = plan.settings.notify.command, plan.paths.notify_log, None
    if urls or command:
        try:
            messenger = _start(plan.name, urls, command, log)
        except OSError as error:  # a study goes on without
            say(f"notify: nobody can be told: {error}")
    told = Notifier(messenger)
    try:
        yield told
    except Exception as error:
        told.tell("failed", f"it ended with an error, {type(error).__name__}; the same line goes on")
        raise
    finally:
        if not told.close():
            say(f"notify: not everything was delivered; {log} says what")


def _start(study: str, urls: Sequence[str], command: str | None, log: Path) -> subprocess.Popen[str]:
    log.parent.mkdir(parents=True, exist_ok=True)
    messenger = subprocess.Popen(
        [
            sys.executable,
            "-P",
            "-m",
            "overnight.runner.messenger",
        ],  # -P: nothing of the folder we are in
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,  # Ctrl-C is the study's
    )
    whom = {"study": study, "urls": list(urls), "command": command, "log": str(log)}
    with contextlib.suppress(OSError):
        assert messenger.stdin is not None
        messenger.stdin.write(json.dumps(whom) + "\n")
        messenger.stdin.flush()
    return messenger
