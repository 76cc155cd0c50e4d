"""The event queue of `run`: signals, and events from other threads."""

import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from queue import Empty, SimpleQueue
from typing import Any, Final, TypeVar

T = TypeVar("T")
TERMINATING: Final = (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM)
FORWARDED: Final = (signal.SIGUSR1, signal.SIGUSR2)
"""Signals whose meaning the command knows: it gets them and continues."""


class Interrupted(Exception):  # noqa: N818 - a request rather than an error
    """A signal arrived: `interrupted.signal`."""

    def __init__(self, signal: signal.Signals) -> None:
        super().__init__(signal)
        self.signal = signal


class EventQueue:
    """Deliver signals and events to the main thread: `events.next(until)`."""

    def __init__(self) -> None:
        # Only SimpleQueue is reentrant: a signal handler may interrupt the thread that reads it.
        self._items: SimpleQueue[object] = SimpleQueue()
        self.post: Final = self._items.put
        """Adds an event, from any thread."""
        self.interrupted: signal.Signals | None = None
        """The first termination signal that arrived."""
        self.interruptions = 0
        """How many have arrived."""

    def install_signal_handlers(self) -> None:
        """Deliver signals for the command to the queue until the process ends."""
        for number in (*TERMINATING, *FORWARDED):
            if signal.getsignal(number) is not signal.SIG_IGN:  # keep signals ignored under nohup
                signal.signal(number, self._on_signal)

    def next(self, until: float | None = None) -> object | None:
        """Wait for the next event; return None at the monotonic time `until`."""
        seconds = None if until is None else min(max(0.0, until - time.monotonic()), 1e9)
        try:
            return self._items.get(timeout=seconds)
        except Empty:
            return None

    def call(
        self,
        function: Callable[[], T],
        until: float | None = None,
        is_stopped: Callable[[], bool] = lambda: False,
    ) -> T:
        """Run a function in a thread, because a query can hang, and return its result.

        Without `until`, a signal raises Interrupted; otherwise that time raises a TimeoutError, and
        so does what `is_stopped` notices at the next event.
        """
        result: Future[T] = Future()

        def work() -> None:
            try:
                result.set_result(function())
            except BaseException as error:  # noqa: BLE001 - raised in the calling thread
                result.set_exception(error)
            self.post(result)

        threading.Thread(target=work, name="database-call", daemon=True).start()
        while not result.done():
            if until is None:
                self.raise_if_interrupted()
            if (self.next(until) is None or is_stopped()) and not result.done():
                raise TimeoutError("The database did not respond in time")
        return result.result()

    def sleep(self, seconds: float) -> None:
        """Sleep until the time is up, or raise `Interrupted` when a signal arrives."""
        until = time.monotonic() + seconds
        self.raise_if_interrupted()
        while self.next(until) is not None:
            self.raise_if_interrupted()

    def raise_if_interrupted(self) -> None:
        """Raise `Interrupted` if a signal has arrived."""
        if self.interrupted is not None:
            raise Interrupted(self.interrupted)

    def _on_signal(self, number: int, frame: Any) -> None:  # noqa: ARG002
        received = signal.Signals(number)
        if received in TERMINATING:
            self.interrupted = self.interrupted or received
            self.interruptions += 1
        self._items.put(received)
