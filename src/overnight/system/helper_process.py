"""A process that answers questions for the supervisor, which itself never imports torch."""

from __future__ import annotations

import contextlib
import multiprocessing
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any

from overnight.system import child_process
from overnight.system.kill import describe_exit, discard

# Forks a process from the warm forkserver, which has torch: (function, *arguments) -> process.
Fork = Callable[..., BaseProcess]


class HelperError(RuntimeError):
    """The helper process could not answer. The message is its traceback."""


class HelperProcess:
    """A process that calls `answer` with every question. It starts at the first question, and again after it died."""

    def __init__(self, fork: Fork, answer: Callable[[Any], Any]) -> None:
        self._fork, self._answer = fork, answer
        self._started: tuple[BaseProcess, Connection] | None = None

    @property
    def is_alive(self) -> bool:
        return self._started is not None and self._started[0].is_alive()

    def send(self, question: Any) -> None:
        """Ask a question without waiting for the answer.

        Raises:
            EOFError, OSError: The process could not be started, or has died. See `end_of`.
        """
        if self._started is None:
            ours, theirs = multiprocessing.Pipe()
            with theirs:
                try:
                    self._started = self._fork(serve, self._answer, theirs), ours
                except BaseException:
                    ours.close()
                    raise
        self._started[1].send(question)

    def poll(self, timeout_s: float) -> bool:
        """Whether there is an answer, waiting for it at most `timeout_s`."""
        return self._started is not None and self._started[1].poll(timeout_s)

    def receive(self) -> Any:
        """Return the answer, waiting for it.

        Raises:
            HelperError: `answer` raised an exception.
            EOFError, OSError: The process has died. See `end_of`.
        """
        assert self._started is not None, "send comes first"
        succeeded, answer = self._started[1].recv()
        if not succeeded:
            raise HelperError(answer)
        return answer

    def end_of(self, error: EOFError | OSError) -> str:
        """Say why the process failed, where `send` or `receive` raised an error, and close it."""
        if self._started is None:
            return f"could not be started: {str(error) or type(error).__name__}"
        how = describe_exit(self._started[0])
        self.close()
        return f"ended by {how}"

    def close(self) -> None:
        if self._started is not None:
            process, connection = self._started
            self._started = None
            connection.close()
            discard(process)


def serve(answer: Callable[[Any], Any], connection: Connection) -> None:
    """Answer questions until the other end of the pipe is closed. Runs in the helper process."""
    child_process.begin(new_session=False)
    with contextlib.suppress(EOFError, OSError):
        while True:
            question = connection.recv()
            try:
                reply = True, answer(question)
            except Exception:
                reply = False, traceback.format_exc()
            connection.send(reply)
