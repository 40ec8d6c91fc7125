"""Notifications to a real server and through real commands. What hangs or fails does not disturb the study."""

from __future__ import annotations

import http.server
import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from overnight import api
from overnight.config.compose import compose, study_location
from overnight.config.problems import ConfigError
from overnight.config.settings import NotifySettings, to_json
from overnight.runner import notifier
from overnight.runner.notifier import Notifier, addresses, notifications
from overnight.search.build_plan import build_plan
from overnight.study import snapshot
from support.commands import LATE, start
from support.paths import python_path
from support.user_overrides import user_network

Tune = Callable[..., api.Result]
SECRET = "hunter2"


class Server(http.server.ThreadingHTTPServer):
    """Keeps the requests that it gets, with their paths."""

    daemon_threads = True

    def __init__(self) -> None:
        self.received: list[tuple[str, dict[str, Any]]] = []
        received = self.received

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                received.append((self.path, json.loads(body)))
                self.send_response(200)
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                pass

        super().__init__(("127.0.0.1", 0), Handler)

    def url(self) -> str:
        return f"json://user:{SECRET}@127.0.0.1:{self.server_address[1]}/{SECRET}"

    def wait_for(self, count: int) -> list[tuple[str, str]]:
        """Wait for the first `count` messages and return their titles and texts."""
        deadline = time.monotonic() + 30 * LATE
        while len(self.received) < count and time.monotonic() < deadline:
            time.sleep(0.1)
        return [(body["title"], body["message"]) for _, body in self.received]


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield running
        running.shutdown()


def files_with(text: str, folder: Path) -> list[Path]:
    return [p for p in folder.rglob("*") if p.is_file() and text.encode() in p.read_bytes()]


def test_the_end_of_a_study_is_notified_with_its_sentence_and_the_address_is_kept_nowhere(
    tune: Tune, home: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(notifier.URLS, server.url())
    output, messages = home / "notified", []
    command = f'cat > {output}.json; echo "$OVERNIGHT_EVENT, $OVERNIGHT_STUDY, $OVERNIGHT_SENTENCE" > {output}'
    line = user_network("Plain", "study.trials=2", f"notify.command={command}")
    result = tune(*line, say=messages.append)
    assert result.stop_reason == "complete"
    ((title, text),) = server.wait_for(1)
    assert title == "digits-mlp: done"
    assert "is the best so far" in text
    assert output.read_text() == f"done, digits-mlp, {text}\n"
    assert json.loads(Path(f"{output}.json").read_text()) == {"study": "digits-mlp", "event": "done", "sentence": text}
    assert not [m for m in messages if "notify" in m]
    log = (home / "logs" / "digits-mlp" / "notify.log").read_text()
    assert "done: address 1 (json): delivered" in log
    assert "done: notify.command: delivered" in log
    assert files_with(SECRET, home) == [], "no plan, log, param or artifact holds the address"
    assert files_with("OVERNIGHT_SENTENCE", home) == [], "nor the command"


def test_a_study_that_fails_is_notified_as_failed(tune: Tune, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(notifier.URLS, server.url())
    result = tune(*user_network("Raises", "study.trials=9", "study.max_consecutive_failures=1", "slots=1"))
    assert result.stop_reason == "failures"
    ((title, text),) = server.wait_for(1)
    assert title == "digits-mlp: failed"
    assert "1 in a row" in text


@pytest.mark.long
def test_a_killed_study_is_notified_as_stalled(home: Path, server: Server) -> None:
    line = ["tune", f"home={home}", "preflight=never", *user_network("Slow", "study.trials=2", "trainer.max_epochs=50")]
    environment = {**os.environ, notifier.URLS: server.url(), "PYTHONPATH": _path()}
    with start(*line, env=environment) as process:
        location, seen = study_location([f"home={home}"]), None
        deadline = time.monotonic() + 60 * LATE
        while (seen is None or not seen.count("running")) and time.monotonic() < deadline:
            time.sleep(0.2)
            seen, _ = snapshot.view(location)
        process.send_signal(signal.SIGKILL)
    ((title, text),) = server.wait_for(1)
    assert title == "digits-mlp: stalled"
    assert "died" in text


def _path() -> str:
    return python_path()


def test_a_full_disk_and_a_stalled_trial_are_notified_once_each(home: Path, server: Server) -> None:
    study = build_plan([f"home={home}"])
    with notifications(study, [server.url()], lambda _: None) as news:
        for disk_is_full, stalled in ((False, []), (True, []), (True, [3]), (True, [3]), (False, [3])):
            news.report_progress(disk_is_full, stalled)
    titles = sorted(title for title, _ in server.wait_for(2))
    assert titles == ["digits-mlp: paused for disk", "digits-mlp: stalled"]


@pytest.mark.long
def test_a_command_that_hangs_or_fails_does_no_harm_and_is_reported(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(notifier, "WAIT_S", 1.0)
    for command, least in (("exit 3", 0.0), ("sleep 600", 1.0)):
        study, messages = build_plan([f"home={home}", f"notify.command={command}"]), []
        began = time.monotonic()
        with notifications(study, [], messages.append) as news:
            news.send("done", "all is well")
            sent_in_s = time.monotonic() - began
        assert sent_in_s < 5, "the study does not wait for a delivery"
        assert least <= time.monotonic() - began < 10 * LATE
        assert messages == [
            f"notify: not everything was delivered; {home / 'logs' / 'digits-mlp' / 'notify.log'} shows what"
        ]


def test_an_error_is_notified_by_its_type_alone(home: Path, server: Server) -> None:
    with (
        pytest.raises(ZeroDivisionError),
        notifications(build_plan([f"home={home}"]), [server.url()], lambda _: None),
    ):
        raise ZeroDivisionError(SECRET)
    ((title, text),) = server.wait_for(1)
    assert title == "digits-mlp: failed"
    assert "ZeroDivisionError" in text
    assert SECRET not in text


def test_without_recipients_no_messenger_is_started() -> None:
    Notifier(None).send("done", "not sent")
    assert Notifier(None).close()


def test_addresses_come_from_the_config_the_environment_and_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "urls").write_text("# mine\njson://three/\n\n")
    monkeypatch.setenv(notifier.URLS, "json://one/ json://two/")
    monkeypatch.setenv(notifier.URLS_FILE, str(tmp_path / "urls"))
    given = NotifySettings(urls=["json://zero/"], command=None)
    assert addresses(given) == ["json://zero/", "json://one/", "json://two/", "json://three/"]
    assert SECRET not in repr(NotifySettings(urls=[f"json://{SECRET}/"], command=SECRET))


@pytest.mark.parametrize(
    ("name", "value", "problem"),
    [
        (
            notifier.URLS,
            f"unknown://{SECRET}",
            "OVERNIGHT_NOTIFY_URLS, number 1: must be an address that apprise knows",
        ),
        (notifier.URLS_FILE, "/nowhere/at-all", "OVERNIGHT_NOTIFY_URLS_FILE: must name a file with an address a line"),
    ],
)
def test_a_wrong_address_is_a_mistake_that_does_not_name_it(
    name: str, value: str, problem: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError) as error:
        addresses(NotifySettings(urls=[], command=None))
    assert problem in str(error.value)
    assert SECRET not in str(error.value)


@pytest.mark.parametrize(
    "line", [f"notify.urls=[json://{SECRET}]", f"notify={{urls:[{SECRET}]}}", f"+notify.urls.0={SECRET}"]
)
def test_an_address_on_the_command_line_is_refused_and_not_repeated(line: str) -> None:
    (problem,) = compose([line]).problems
    assert "OVERNIGHT_NOTIFY_URLS" in problem
    assert SECRET not in problem


def test_addresses_of_a_config_file_are_used_and_not_kept(tmp_path: Path) -> None:
    folder = tmp_path / "conf" / "experiment"
    folder.mkdir(parents=True)
    (folder / "mine.yaml").write_text(f"# @package _global_\nnotify:\n  urls: ['json://{SECRET}/']\n")
    draft = compose(["+experiment=mine"], tmp_path / "conf")
    assert not draft.problems
    assert draft.settings is not None
    assert addresses(draft.settings.notify) == [f"json://{SECRET}/"]
    assert SECRET not in json.dumps(to_json(draft.settings))
    assert SECRET not in json.dumps(draft.config), "what `tune --cfg` prints"
    made = build_plan(["+experiment=mine"], tmp_path / "conf")
    assert SECRET not in json.dumps(made.to_json())
