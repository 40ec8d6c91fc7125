"""Notify people of the events of a study: it is done, it failed, a trial stalled, it waits for disk space.

A messenger, a process of its own, delivers the notifications. Addresses are secrets: they come from a config file, the
environment or a file that the environment names, reach the messenger through a pipe, and are in no plan, log or
artifact.
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
from overnight.config.problems import ConfigError, Problems
from overnight.config.settings import NotifySettings
from overnight.runner.messenger import END
from overnight.search.plan import Plan

URLS, URLS_FILE = "OVERNIGHT_NOTIFY_URLS", "OVERNIGHT_NOTIFY_URLS_FILE"
WAIT_S = 10.0  # at the end of a launch, for the last notification; the messenger goes on longer
Event = Literal["done", "failed", "stalled", "paused_for_disk"]


def addresses(settings: NotifySettings) -> list[str]:
    """Return the addresses of the config, of the environment, and of the file that the environment names.

    Raises:
        ConfigError: an address cannot be used. The message does not contain it.
    """
    found = {f"notify.urls[{i}]": url for i, url in enumerate(settings.urls)}
    found |= {f"{URLS}, number {i + 1}": url for i, url in enumerate(os.environ.get(URLS, "").split())}
    if path := os.environ.get(URLS_FILE):
        found |= _addresses_in_file(path)
    if not found:
        return []
    if importlib.util.find_spec("apprise") is None:
        raise ConfigError(["notify.urls: needs the package apprise; pip install 'overnight[notify]', or none of them"])
    import apprise

    problems = Problems()
    for key, url in found.items():
        if apprise.Apprise.instantiate(url) is None:
            rule = "must be an address that apprise knows, e.g. mailto://NAME:PASSWORD@example.com"
            problems.add(key, rule, remedy="https://github.com/caronc/apprise lists them")
    problems.raise_if_any()
    return list(found.values())


def _addresses_in_file(path: str) -> dict[str, str]:
    try:
        lines = [line.strip() for line in Path(os.path.expanduser(path)).read_text("utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        rule = f"must name a file with an address a line, got {path!r}: {type(error).__name__}"
        raise ConfigError([f"{URLS_FILE}: {rule}"]) from error
    return {f"{URLS_FILE}, line {i + 1}": url for i, url in enumerate(lines) if url and not url.startswith("#")}


class Notifier:
    """Sends the notifications of one study, each once. Without a messenger it sends none."""

    def __init__(self, messenger: subprocess.Popen[str] | None) -> None:
        self._messenger = messenger
        self._stalled: set[int] = set()  # trials that were reported
        self._disk_was_full = False
        self._wait_until = math.inf

    def wait_until(self, at: float) -> None:
        """Wait no longer than this for the last delivery, in seconds since 1970. The messenger goes on."""
        self._wait_until = at

    def send(self, event: Event, sentence: str) -> None:
        """Send a notification; returns at once."""
        self._write(event, sentence)

    def report_progress(self, disk_is_full: bool, stalled: Sequence[int]) -> None:
        """Send what is new.

        Args:
            disk_is_full: trials wait for disk space.
            stalled: the numbers of the trials that were ended because they stalled.
        """
        if disk_is_full and not self._disk_was_full:
            self.send("paused_for_disk", "the disk is nearly full: trials are saved, and resumed when there is room")
        self._disk_was_full = disk_is_full
        for number in stalled:
            if number not in self._stalled:
                self._stalled.add(number)
                self.send("stalled", f"{trial_name(number)} was silent for too long and was ended; the study goes on")

    def close(self) -> bool:
        """Wait for the last delivery. Returns whether everything was delivered."""
        if self._messenger is None:
            return True
        self._write(END)
        with contextlib.suppress(OSError):
            self._messenger.stdin.close()  # type: ignore[union-attr]
        try:
            return self._messenger.wait(min(WAIT_S, max(self._wait_until - time.time(), 0.0))) == 0
        except subprocess.TimeoutExpired:
            # It goes on alone. A thread reaps it, if this process still runs when it ends.
            threading.Thread(target=self._messenger.wait, daemon=True).start()
            return False

    def _write(self, event: str, sentence: str = "") -> None:
        if self._messenger is not None and self._messenger.stdin is not None:
            with contextlib.suppress(OSError, ValueError):  # it has died: the study goes on without
                self._messenger.stdin.write(json.dumps({"event": event, "sentence": sentence}) + "\n")
                self._messenger.stdin.flush()


@contextmanager
def notifications(plan: Plan, urls: Sequence[str], say: Callable[[str], None]) -> Iterator[Notifier]:
    """Provide a notifier while a study runs. An error that ends the block is notified.

    Args:
        say: called with what could not be delivered.
    """
    command, log, messenger = plan.settings.notify.command, plan.paths.notify_log, None
    if urls or command:
        try:
            messenger = _start(plan.name, urls, command, log)
        except OSError as error:  # the study goes on without
            say(f"notify: notifications cannot be sent: {error}")
    notifier = Notifier(messenger)
    try:
        yield notifier
    except Exception as error:
        notifier.send("failed", f"it ended with an error, {type(error).__name__}; the same command resumes it")
        raise
    finally:
        if not notifier.close():
            say(f"notify: not everything was delivered; {log} shows what")


def _start(study: str, urls: Sequence[str], command: str | None, log: Path) -> subprocess.Popen[str]:
    log.parent.mkdir(parents=True, exist_ok=True)
    messenger = subprocess.Popen(
        [sys.executable, "-P", "-m", "overnight.runner.messenger"],  # -P: import nothing from the current directory
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,  # Ctrl-C is for the study
    )
    recipients = {"study": study, "urls": list(urls), "command": command, "log": str(log)}
    with contextlib.suppress(OSError):
        assert messenger.stdin is not None
        messenger.stdin.write(json.dumps(recipients) + "\n")
        messenger.stdin.flush()
    return messenger
