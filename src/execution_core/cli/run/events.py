"""What the main thread of `run` waits for: signals, and what other threads report."""

import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

T = TypeVar("T")


class Interrupted(Exception):  # noqa: N818 - somebody's wish rather than an error
    """A signal came: `interrupted.signal`."""

    def __init__(self, signal: signal.Signals) -> None:
        super().__init__(signal)
        self.signal = signal


class EventQueue:
    """Everything that may happen while something is waited for: `events.next(until)`."""

    def __init__(self) -> None:
        # Unlike other queues it may be filled by a signal handler that interrupts its reader.
        self._items: SimpleQueue[object] = SimpleQueue()
        self.interrupted: signal.Signals | None = None
        """The first signal that came."""

    def install_signal_handlers(self) -> None:
        """From now on to the end of the process, be told of signals instead of ended by them."""
        for number in (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM):
            if signal.getsignal(number) is not signal.SIG_IGN:  # nohup's wish is heeded
                signal.signal(number, self._hear)

    def post(self, item: object) -> None:
        """Report something, from any thread."""
        self._items.put(item)

    def next(self, until: float | None = None) -> object | None:
        """Wait for whatever happens next; None when nothing does until then (monotonic time)."""
        seconds = None if until is None else min(max(0.0, until - time.monotonic()), 1e9)
        try:
            return self._items.get(timeout=seconds)
        except Empty:
            return None

    def ask(self, function: Callable[[], T], until: float | None = None) -> T:
        """Return what a function returns, which may hang: a database that does not answer.

        Raises:
            Interrupted: by a signal, where there is no `until`.
            TimeoutError: there is one, and it has passed.
        """
        answer: Future[T] = Future()

        def work() -> None:
            try:
                answer.set_result(function())
            except BaseException as error:  # noqa: BLE001 - raised where it was asked for
                answer.set_exception(error)
            self.post(answer)

        threading.Thread(target=work, name="question", daemon=True).start()
        while not answer.done():
            if until is None:
                self.raise_if_interrupted()
            if self.next(until) is None and not answer.done():
                raise TimeoutError("The database does not answer")
        return answer.result()

    def pause(self, seconds: float) -> None:
        """Let time pass.

        Raises:
            Interrupted: by a signal.
        """
        until = time.monotonic() + seconds
        self.raise_if_interrupted()
        while self.next(until) is not None:
            self.raise_if_interrupted()

    def raise_if_interrupted(self) -> None:
        """Raise `Interrupted` if a signal has come."""
        if self.interrupted is not None:
            raise Interrupted(self.interrupted)

    def _hear(self, number: int, frame: Any) -> None:  # noqa: ARG002
        came = signal.Signals(number)
        self.interrupted = self.interrupted or came
        self._items.put(came)
