"""Threads of a sync attempt: one that sends heartbeats, one that writes log entries."""

import threading
from datetime import timedelta
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any
from weakref import ref

from ..core.log_lines import NewLogEntry
from .attempt_state import MAX_BUFFERED_ENTRIES
from .log_capture import ACTIVE

if TYPE_CHECKING:
    from .attempt import Attempt


def _weak_attempt(attempt: "Attempt", queue: SimpleQueue[Any]) -> "ref[Attempt]":
    """Refer to an attempt for a thread, which is told by None when nobody else has it any more.

    The handler of a signal may raise just where a block is being left, and nothing else ends it.
    """
    return ref(attempt, lambda _: queue.put(None))


class LogThread:
    """A thread that writes what `logging` brings, so that nobody waits for that."""

    def __init__(self, attempt: "Attempt") -> None:
        self._lines: SimpleQueue[NewLogEntry | None] = SimpleQueue()
        self._attempt = _weak_attempt(attempt, self._lines)
        self._finishing = False
        self._thread = threading.Thread(
            target=self._run, name=f"log-{attempt.execution.id}", daemon=True
        )
        self._thread.start()

    def put(self, line: NewLogEntry) -> bool:
        """Have a line written; False when too many wait already."""
        if self._lines.qsize() >= MAX_BUFFERED_ENTRIES:
            return False
        self._lines.put(line)
        return True

    def finish(self) -> None:
        """Write all that was put; but give up, if that fails."""
        self._finishing = True
        self._lines.put(None)
        self._thread.join()

    def _run(self) -> None:
        ACTIVE.set(None)  # a thread may begin in its starter's context
        while (line := self._lines.get()) is not None:
            if not self._write(line) and self._finishing:
                return

    def _write(self, line: NewLogEntry) -> bool:
        attempt = self._attempt()
        return attempt is not None and attempt._log_one(line)  # noqa: SLF001


class HeartbeatThread:
    """A thread that beats for an attempt until it is stopped, or the attempt is lost.

    It stops as well when nobody has the attempt any more: what nobody works at is to be swept.
    """

    def __init__(self, attempt: "Attempt", interval: timedelta) -> None:
        self._seconds = min(interval.total_seconds(), threading.TIMEOUT_MAX)
        self._stopped: SimpleQueue[Any] = SimpleQueue()  # a signal may leave an Event locked
        self._attempt = _weak_attempt(attempt, self._stopped)
        self._thread = threading.Thread(
            target=self._run, name=f"heartbeat-{attempt.execution.id}", daemon=True
        )
        self._thread.start()

    def stop(self) -> None:
        """Stop after the heartbeat that is under way."""
        self._stopped.put(None)
        self._thread.join()

    def _run(self) -> None:
        while not self._stopped_within() and self._beat():
            pass

    def _stopped_within(self) -> bool:
        try:
            self._stopped.get(timeout=self._seconds)
        except Empty:
            return False
        return True

    def _beat(self) -> bool:
        attempt = self._attempt()
        return attempt is not None and attempt._beat()  # noqa: SLF001
