"""The process that delivers a study's notifications. What hangs or fails here does not disturb the study.

It reads lines of JSON from standard input: first the recipients, then the events. If they end without `END`, the
process that ran the study has died, and the messenger notifies of that too.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from overnight.config.credentials import SECRET_VARIABLES

TIMEOUT_S = 30.0
END = "end"
_DIED = "the process that ran it died; what was saved is kept, and the same `overnight tune` command resumes it"


def main() -> None:
    """Deliver what standard input brings. The exit code is 1 if anything could not be delivered."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: None)  # the end of the input ends this process; a command gets the defaults
    recipients = json.loads(sys.stdin.readline())
    failed, event = 0, ""
    for line in sys.stdin:
        message = json.loads(line)
        event = message["event"]
        if event == END:
            break
        failed += deliver(recipients, message)
    if event != END:
        failed += deliver(recipients, {"event": "stalled", "sentence": _DIED})
    sys.stdout.flush()
    os._exit(1 if failed else 0)  # do not wait for a thread that hangs


def deliver(recipients: Mapping[str, Any], message: Mapping[str, str]) -> int:
    """Deliver a message to all recipients at once, and return how many deliveries failed.

    Args:
        recipients: {"study", "urls", "command", "log"}. The log gets the outcomes, without addresses.
        message: {"event", "sentence"}.
    """
    content = {"study": recipients["study"], "event": message["event"], "sentence": message["sentence"]}
    channels: dict[str, Callable[[], str | None]] = {}
    if recipients["command"]:
        channels["notify.command"] = lambda: _run(recipients["command"], content)
    for i, url in enumerate(recipients["urls"]):
        name = f"address {i + 1} ({url.partition('://')[0]})"
        channels[name] = lambda url=url: _send(url, content)  # type: ignore[misc]
    errors = dict.fromkeys(channels, f"no answer within {TIMEOUT_S:g} s")

    def try_channel(name: str) -> None:
        try:
            errors[name] = channels[name]() or ""
        except Exception as error:  # of any library; its text may contain an address
            errors[name] = type(error).__name__

    threads = [threading.Thread(target=try_channel, args=(name,), daemon=True) for name in channels]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + TIMEOUT_S + 1
    for thread in threads:
        thread.join(max(deadline - time.monotonic(), 0))
    with contextlib.suppress(OSError), open(recipients["log"], "a", encoding="utf-8") as log:
        for name, error in errors.items():
            log.write(f"{time.strftime('%F %T')} {content['event']}: {name}: {error or 'delivered'}\n")
    return sum(bool(error) for error in errors.values())


def _run(command: str, content: Mapping[str, str]) -> str | None:
    """Run a user's command in a shell. Returns what went wrong."""
    environment = {k: v for k, v in os.environ.items() if k not in SECRET_VARIABLES}
    environment |= {f"OVERNIGHT_{key.upper()}": value for key, value in content.items()}
    with subprocess.Popen(
        ["/bin/sh", "-c", command],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    ) as process:
        try:
            process.communicate(json.dumps(content).encode(), timeout=TIMEOUT_S)
        except subprocess.TimeoutExpired:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            return f"it was ended after {TIMEOUT_S:g} s"
        return f"exit code {process.returncode}" if process.returncode else None


def _send(url: str, content: Mapping[str, str]) -> str | None:
    """Send through apprise. Returns what went wrong. Apprise's own messages may contain the address and are dropped."""
    import apprise

    logging.getLogger("apprise").disabled = True
    sender = apprise.Apprise()
    if not sender.add(url):
        return "apprise cannot read this address"
    title = f"{content['study']}: {content['event'].replace('_', ' ')}"
    return None if sender.notify(title=title, body=content["sentence"]) else "it was not accepted"


if __name__ == "__main__":
    main()
