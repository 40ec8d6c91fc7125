"""A process beside a study that tells people how it goes: whatever hangs or fails in telling, hangs or fails here.

It reads lines of JSON: first whom to tell, then the news. Where they end without a farewell, whoever worked on the
study has died, and it says that too.
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

DELIVER_WITHIN_S = 30.0
FAREWELL = "farewell"
_DIED = "whoever worked on it died; what was saved is kept, and the same `overnight tune` line goes on"


def main() -> None:
    """Deliver what standard input brings. Exit code: 1 where anything could not be delivered."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: None)  # the study's end is ours; a hook starts with none of this
    whom = json.loads(sys.stdin.readline())
    failed, event = 0, ""
    for line in sys.stdin:
        news = json.loads(line)
        event = news["event"]
        if event == FAREWELL:
            break
        failed += deliver(whom, news)
    if event != FAREWELL:
        failed += deliver(whom, {"event": "stalled", "sentence": _DIED})
    sys.stdout.flush()
    os._exit(1 if failed else 0)  # a thread that hangs is waited for by nobody


def deliver(whom: Mapping[str, Any], news: Mapping[str, str]) -> int:
    """Tell everybody at once; to how many it could not be delivered.

    whom: {"study", "urls", "command", "log"}; what came of it stands in the log, without addresses.
    """
    said = {"study": whom["study"], "event": news["event"], "sentence": news["sentence"]}
    ways: dict[str, Callable[[], str | None]] = {}
    if whom["command"]:
        ways["notify.command"] = lambda: _run(whom["command"], said)
    for i, url in enumerate(whom["urls"]):
        ways[f"address {i + 1} ({url.partition('://')[0]})"] = lambda url=url: _send(url, said)  # type: ignore[misc]
    outcomes = dict.fromkeys(ways, f"nothing came of it in {DELIVER_WITHIN_S:g} s")

    def go(name: str) -> None:
        try:
            outcomes[name] = ways[name]() or ""
        except Exception as error:  # anybody's; its words may hold an address
            outcomes[name] = type(error).__name__

    threads = [threading.Thread(target=go, args=(name,), daemon=True) for name in ways]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + DELIVER_WITHIN_S + 1
    for thread in threads:
        thread.join(max(deadline - time.monotonic(), 0))
    with contextlib.suppress(OSError), open(whom["log"], "a") as log:
        for name, wrong in outcomes.items():
            log.write(f"{time.strftime('%F %T')} {said['event']}: {name}: {wrong or 'delivered'}\n")
    return sum(bool(wrong) for wrong in outcomes.values())


def _run(command: str, said: Mapping[str, str]) -> str | None:
    """Run a person's own command in a shell; what went wrong, or None."""
    environment = {k: v for k, v in os.environ.items() if k not in SECRET_VARIABLES}
    environment |= {f"OVERNIGHT_{key.upper()}": value for key, value in said.items()}
    with subprocess.Popen(
        ["/bin/sh", "-c", command],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    ) as process:
        try:
            process.communicate(json.dumps(said).encode(), timeout=DELIVER_WITHIN_S)
        except subprocess.TimeoutExpired:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            return f"it was ended after {DELIVER_WITHIN_S:g} s"
        return f"exit code {process.returncode}" if process.returncode else None


def _send(url: str, said: Mapping[str, str]) -> str | None:
    """Send through apprise; what went wrong, or None. Nothing that apprise says is kept: it may name the address."""
    import apprise

    logging.getLogger("apprise").disabled = True
    sender = apprise.Apprise()
    if not sender.add(url):
        return "apprise can't read this address"
    title = f"{said['study']}: {said['event'].replace('_', ' ')}"
    return None if sender.notify(title=title, body=said["sentence"]) else "it was not taken"


if __name__ == "__main__":
    main()
