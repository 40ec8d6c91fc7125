"""Handle the signals that end a command, without losing any."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from types import TracebackType
from typing import Any

_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Signals:
    """Handles SIGINT, SIGTERM and SIGHUP in a `with` block of the main thread.

    Running work is asked to save and stop. Otherwise KeyboardInterrupt, or SystemExit with the exit code, ends the
    block. Python drops an exception that is raised in a finalizer or in a weak reference's callback (see
    `sys.unraisablehook`). Signals are therefore recorded as well, and checked when work begins.

    Attributes:
        received: numbers of the signals so far, in order.
    """

    def __init__(self, kinds: Iterable[signal.Signals] = _ENDING) -> None:
        self._kinds = tuple(kinds)
        self.received: list[int] = []
        self._stop: Callable[[], None] | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Signals:
        self.install()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler or signal.SIG_DFL)

    def install(self) -> None:
        """Handle the signals again, after a library has installed handlers of its own."""
        if threading.current_thread() is threading.main_thread():
            # An ignored signal stays ignored, for example SIGHUP under nohup.
            for kind in (s for s in self._kinds if signal.getsignal(s) is not signal.SIG_IGN):
                self._before.setdefault(kind, signal.signal(kind, self._receive))

    @contextlib.contextmanager
    def working(self, stop: Callable[[], None]) -> Iterator[None]:
        """Call `stop` at every signal while the block runs, and at once if one was lost before."""
        lost = bool(self.received)
        self._stop = stop
        try:
            if lost:
                stop()
            yield
        finally:
            self._stop = None

    def check(self) -> None:
        """Exit if a signal was lost."""
        if self.received:
            _exit(self.received[0])

    def _receive(self, number: int, _: Any) -> None:
        self.received.append(number)
        if self._stop is None:
            _exit(number)
        else:
            self._stop()


def _exit(number: int) -> None:
    raise KeyboardInterrupt if number == signal.SIGINT else SystemExit(128 + number)
