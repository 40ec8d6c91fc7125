"""The signals that end a command: heeded wherever it is, and none of them lost."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from types import TracebackType
from typing import Any

_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Signals:
    """SIGINT, SIGTERM and SIGHUP, as a command takes them, in a `with` block of the main thread.

    Work that is under way is asked to save and stop; otherwise the block is left, by KeyboardInterrupt or by SystemExit
    with the exit code. Python drops either where it arises in a finalizer or in a weak reference's callback (see
    `sys.unraisablehook`). So what came is kept as well, and asked for where work begins.

    received: the numbers of those that came, in their order.
    """

    def __init__(self, kinds: Iterable[signal.Signals] = _ENDING) -> None:
        self._kinds = tuple(kinds)
        self.received: list[int] = []
        self._stop: Callable[[], None] | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Signals:
        if threading.current_thread() is threading.main_thread():
            # What is ignored already stays so: under nohup a closed terminal is none of our business.
            apply_exclusions = [s for s in self._kinds if signal.getsignal(s) is not signal.SIG_IGN]
            self._before = {s: signal.signal(s, self._receive) for s in apply_exclusions}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler or signal.SIG_DFL)

    @contextlib.contextmanager
    def working(self, stop: Callable[[], None]) -> Iterator[None]:
        """Call `stop` at every signal while the block runs, and at once where one was lost before."""
        lost = bool(self.received)
        self._stop = stop
        try:
            if lost:
                stop()
            yield
        finally:
            self._stop = None

    def check(self) -> None:
        """Leave, where a signal came that was lost."""
        if self.received:
            _leave(self.received[0])

    def _receive(self, number: int, _: Any) -> None:
        self.received.append(number)
        if self._stop is None:
            _leave(number)
        else:
            self._stop()


def _leave(number: int) -> None:
    raise KeyboardInterrupt if number == signal.SIGINT else SystemExit(128 + number)
