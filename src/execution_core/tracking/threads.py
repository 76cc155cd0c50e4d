"""Threads of sync attempts: one sends the heartbeats of a store, others write captured log records.

They have only weak references to attempts. A signal handler may raise while a block is being left,
and then nothing stops them. They end when nothing refers to the attempts any more, so that a sweep
can take the executions.
"""

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from queue import Empty, SimpleQueue
from typing import Any, Final, TypeVar
from weakref import WeakValueDictionary, ref

from ..core.log_lines import NewLogEntry
from ..core.models import Execution
from ..core.steps import run
from .attempt_log import MAX_BUFFERED_ENTRIES
from .attempt_state import AttemptState
from .heartbeats import Heartbeat, HeartbeatSchedule
from .log_capture import ACTIVE

T = TypeVar("T")

_senders: Final = WeakValueDictionary[int, "HeartbeatSender"]()
"""The senders of the stores, by the id of the store."""


def start_heartbeats(
    store: Any, execution: Execution, interval: timedelta, on_loss: Callable[[], object]
) -> "ThreadHeartbeat":
    """Send the heartbeats of a running attempt, as long as something refers to the result."""
    # Without a lock, which a signal handler might find locked: two threads at once may start two.
    sender = _senders.get(id(store))
    if not hasattr(store, "heartbeat_many"):
        sender = HeartbeatSender(store, alone=True)
    elif sender is None or not sender.thread.is_alive():  # it is not in a forked process
        sender = _senders[id(store)] = HeartbeatSender(store)
    heartbeat = ThreadHeartbeat(execution, interval, on_loss)
    sender.add(heartbeat)
    return heartbeat


class ThreadHeartbeat(Heartbeat):
    """The heartbeats of a sync attempt."""

    sender: "HeartbeatSender"

    def __init__(
        self, execution: Execution, interval: timedelta, on_loss: Callable[[], object]
    ) -> None:
        super().__init__(execution, interval, on_loss)
        self._lock = threading.RLock()
        self._has_ended = False

    def end(self, *, wait: bool = True) -> None:
        """Send no further heartbeat; wait for a call under way that sends one."""
        self._has_ended = True
        # Never released. In a forked process, which has no such thread, nobody would release it.
        self._lock.acquire(blocking=wait and self.sender.thread.is_alive())

    def begin_call(self) -> bool:
        """Let `end` wait for a call; return False if it has been called."""
        return not self._has_ended and self._lock.acquire(blocking=False)

    def end_call(self) -> None:
        """Let `end` return."""
        self._lock.release()


class HeartbeatSender:
    """A thread that sends heartbeats, as long as something refers to this."""

    def __init__(self, store: Any, *, alone: bool = False) -> None:
        self._added: Added = SimpleQueue()
        schedule = HeartbeatSchedule[ThreadHeartbeat](store, time.monotonic, alone=alone)
        args = (store, schedule, self._added, _end_with(self, self._added))
        self.thread = threading.Thread(
            target=_send_heartbeats, args=args, name="heartbeats", daemon=True
        )
        self.thread.start()

    def add(self, heartbeat: ThreadHeartbeat) -> None:
        """Send the heartbeats of another attempt."""
        heartbeat.sender = self
        self._added.put(heartbeat)


Added = SimpleQueue[ThreadHeartbeat | ref[HeartbeatSender]]
"""Attempts that have been added, and at the end the reference to the sender."""


def _send_heartbeats(
    store: Any,
    schedule: HeartbeatSchedule[ThreadHeartbeat],
    added: "Added",
    _sender: "ref[HeartbeatSender]",  # only what is referred to puts itself into the queue
) -> None:
    ACTIVE.set(None)  # a thread may inherit the context of the thread that starts it
    while _wait(schedule, added):
        _send_due(store, schedule)


def _wait(schedule: HeartbeatSchedule[ThreadHeartbeat], added: "Added") -> bool:
    """Wait until a heartbeat is due or an attempt is added; return False at the end."""
    due = schedule.next_due()
    seconds = None if due is None else min(max(0.0, due - time.monotonic()), threading.TIMEOUT_MAX)
    with suppress(Empty):
        heartbeat = added.get(timeout=seconds)
        if isinstance(heartbeat, ref):
            return False
        schedule.add(heartbeat)
    return True


def _send_due(store: Any, schedule: HeartbeatSchedule[ThreadHeartbeat]) -> None:
    batch = []
    for each in schedule.take_due():
        if each.begin_call():
            batch.append(each)
        else:
            schedule.discard(each)
    if not batch:
        return
    try:
        failed = run(schedule.send_steps(batch))
    finally:
        for each in batch:
            each.end_call()
    with suppress(RuntimeError):  # no more threads can be started
        for each in failed:
            HeartbeatSender(store, alone=True).add(each)
            schedule.discard(each)


class LogThread:
    """Writes captured log records, so that no caller of `logging` waits for the database."""

    def __init__(self, attempt: AttemptState[Any, Any]) -> None:
        self._entries = SimpleQueue[Any]()
        self._attempt = _end_with(attempt, self._entries)
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
        while isinstance(entry := self._entries.get(), NewLogEntry):
            if not self._write(entry) and self._finishing:
                return

    def _write(self, entry: NewLogEntry) -> bool:
        attempt = self._attempt()
        return attempt is not None and run(attempt._write_entry_steps(entry))  # noqa: SLF001


def _end_with(owner: T, queue: SimpleQueue[Any]) -> "ref[T]":
    """Return a weak reference that puts itself into a queue when nothing refers to its object.

    It calls no code in Python, in which a signal handler might raise: the thread would never end.
    """
    return ref(owner, queue.put)
