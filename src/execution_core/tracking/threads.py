"""Threads of a sync attempt: one sends heartbeats, one writes captured log records.

They have only a weak reference to their attempt. A signal handler may raise while a block is being
left, and then nothing stops them. They end when nothing refers to the attempt any more, so that a
sweep can take the execution.
"""

import threading
from contextlib import suppress
from datetime import timedelta
from queue import Empty, SimpleQueue
from typing import Any
from weakref import ref

from ..core.log_lines import NewLogEntry
from ..core.steps import run
from .attempt_log import MAX_BUFFERED_ENTRIES
from .attempt_state import AttemptState
from .log_capture import ACTIVE


class HeartbeatThread:
    """Sends heartbeats until it is stopped or the attempt is lost."""

    def __init__(self, attempt: AttemptState[Any, Any], interval: timedelta) -> None:
        self._seconds = min(interval.total_seconds(), threading.TIMEOUT_MAX)
        # Not an Event, which an interrupted `set` may leave locked.
        self._stop: SimpleQueue[None] = SimpleQueue()
        self._attempt = _weak(attempt, self._stop)
        name = f"heartbeat-{attempt.execution.id}"
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Stop after the heartbeat that is under way."""
        self._stop.put(None)
        self._thread.join()

    def _run(self) -> None:
        while True:
            with suppress(Empty):
                self._stop.get(timeout=self._seconds)
                return
            if not self._beat():
                return

    def _beat(self) -> bool:
        attempt = self._attempt()
        return attempt is not None and run(attempt._heartbeat_steps())  # noqa: SLF001


class LogThread:
    """Writes captured log records, so that no caller of `logging` waits for the database."""

    def __init__(self, attempt: AttemptState[Any, Any]) -> None:
        self._entries: SimpleQueue[NewLogEntry | None] = SimpleQueue()
        self._attempt = _weak(attempt, self._entries)
        self._finishing = False
        name = f"log-{attempt.execution.id}"
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def put(self, entry: NewLogEntry) -> bool:
        """Write an entry soon; return False if too many wait already."""
        if self._entries.qsize() >= MAX_BUFFERED_ENTRIES:
            return False
        self._entries.put(entry)
        return True

    def finish(self) -> None:
        """Write every entry that waits, up to the first failure."""
        self._finishing = True
        self._entries.put(None)
        self._thread.join()

    def _run(self) -> None:
        ACTIVE.set(None)  # a thread may inherit the context of the thread that starts it
        while (entry := self._entries.get()) is not None:
            if not self._write(entry) and self._finishing:
                return

    def _write(self, entry: NewLogEntry) -> bool:
        attempt = self._attempt()
        return attempt is not None and run(attempt._write_entry_steps(entry))  # noqa: SLF001


def _weak(
    attempt: AttemptState[Any, Any], queue: SimpleQueue[Any]
) -> "ref[AttemptState[Any, Any]]":
    """Return a weak reference that puts None into a queue when nothing refers to the attempt."""
    return ref(attempt, lambda _: queue.put(None))
