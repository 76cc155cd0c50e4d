"""Supervise the command of one attempt until it ends or has to be ended."""

import signal
import threading
import time
from collections.abc import Mapping, Sequence
from datetime import timedelta
from enum import Enum, auto
from typing import Final

from ...core.errors import ConcurrentUpdate, ConnectionLost, ExecutionProblem
from ...core.models import Execution, replace_unstorable
from ...tracking.manager import ExecutionManager
from ..database import short_reason
from ..streams import write_warning
from .child_process import DRAIN_SECONDS, ChildProcess, OutputPump
from .events import EventQueue
from .exit_codes import (
    Outcome,
    after_exit,
    after_interrupt,
    after_loss,
    after_start_failure,
    after_timeout,
)

POLL_SECONDS: Final = 0.05
KILL_WAIT_SECONDS: Final = 1.0
"""After SIGKILL, wait at most this long: a process in an uninterruptible wait stays."""


class StopReason(Enum):
    """Why `run` ends a command."""

    DEADLINE = auto()
    LOST = auto()
    SIGNAL = auto()


class HeartbeatThread:
    """Send heartbeats in a thread, and post this object if the attempt is lost."""

    def __init__(
        self, manager: ExecutionManager, started: Execution, interval: timedelta, events: EventQueue
    ) -> None:
        self._manager = manager
        self._started = started
        self._seconds = min(interval.total_seconds(), threading.TIMEOUT_MAX)
        self._events = events
        self._stopped = threading.Event()
        threading.Thread(target=self._run, name="heartbeat", daemon=True).start()

    def stop(self) -> None:
        """Send no more heartbeats."""
        self._stopped.set()

    def _run(self) -> None:
        warned = False
        while not self._stopped.wait(self._seconds):
            try:
                self._manager.heartbeat(self._started.id, attempt=self._started.attempts)
            except (ConcurrentUpdate, ConnectionLost):
                pass
            except ExecutionProblem:
                self._events.post(self)
                return
            except Exception as error:  # noqa: BLE001 - the command and the heartbeats continue
                if not (warned or self._stopped.is_set()):
                    write_warning(
                        f"Heartbeat not recorded; the command continues: {short_reason(error)}"
                    )
                    warned = True


class Command:
    """Run a command once: `Command(words, environment, kill_after, events).run(...)`."""

    def __init__(
        self,
        words: Sequence[str],
        environment: Mapping[str, str],
        kill_after: timedelta,
        events: EventQueue,
    ) -> None:
        self._words = words
        self._environment = environment
        self._kill_after = kill_after.total_seconds()
        self._events = events
        self._output: OutputPump | None = None

    def run(self, heartbeat: HeartbeatThread, timeout: timedelta | None) -> Outcome:
        """Run the command and return its outcome."""
        if self._events.interrupted:
            return after_interrupt(self._events.interrupted)
        try:
            child = ChildProcess(self._words, self._environment, self._events.post)
        except OSError as problem:
            return after_start_failure(self._words, problem)
        self._output = child.output
        reason = self._watch(child, heartbeat, timeout)
        if reason is not None:
            self._terminate(child, self._events.interrupted or signal.SIGTERM)
        self.drain(time.monotonic() + DRAIN_SECONDS * 1.5)
        return self._to_outcome(child, reason)

    def drain(self, until: float | None = None) -> None:
        """Wait until its output is forwarded, until a time or, without one, until a signal."""
        while self._output and not self._output.finished:
            if until is None and self._events.interrupted:
                return
            if self._events.next(until) is None:
                return

    def _watch(
        self, child: ChildProcess, heartbeat: HeartbeatThread, timeout: timedelta | None
    ) -> StopReason | None:
        deadline = None if timeout is None else time.monotonic() + timeout.total_seconds()
        while True:
            item = self._events.next(deadline)
            if item is None:
                return StopReason.DEADLINE
            if item is child:
                return None
            if item is heartbeat:
                return StopReason.LOST
            if isinstance(item, signal.Signals):
                return StopReason.SIGNAL

    def _terminate(self, child: ChildProcess, number: signal.Signals) -> None:
        """Signal the group, forward further signals, and kill it after the grace period."""
        kill_at = time.monotonic() + self._kill_after
        child.signal(number)
        while child.is_alive() and time.monotonic() < kill_at:
            item = self._events.next(min(kill_at, time.monotonic() + POLL_SECONDS))
            if isinstance(item, signal.Signals):
                child.signal(item)
        if child.is_alive():
            child.signal(signal.SIGKILL)
        give_up_at = time.monotonic() + KILL_WAIT_SECONDS
        while child.is_alive() and time.monotonic() < give_up_at:
            self._events.next(time.monotonic() + POLL_SECONDS)

    def _to_outcome(self, child: ChildProcess, reason: StopReason | None) -> Outcome:
        output = replace_unstorable(child.output.tail())
        if reason is StopReason.SIGNAL and self._events.interrupted:
            return after_interrupt(self._events.interrupted, output)
        if reason is StopReason.DEADLINE:
            return after_timeout(output)
        if reason is StopReason.LOST or child.status is None:
            return after_loss(output)
        return after_exit(child.status, output)
