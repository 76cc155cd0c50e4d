"""The command of one attempt: watched to its end, or ended when that is called for."""

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
from .exit_codes import Outcome, exited, interrupted, lost, not_started, timed_out

POLL_SECONDS: Final = 0.05
KILL_WAIT_SECONDS: Final = 1.0
"""How long what was killed is waited for; it may be in the hands of a disk that hangs."""


class Stop(Enum):
    """Why a command is not left to end by itself."""

    DEADLINE = auto()
    LOST = auto()
    SIGNAL = auto()


class HeartbeatThread:
    """A thread that beats for an attempt, and posts itself once the attempt is lost."""

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
        """Beat no more."""
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
            except Exception as error:  # noqa: BLE001 - the command goes on, and so do the beats
                if not (warned or self._stopped.is_set()):
                    write_warning(
                        f"No heartbeat was recorded, and the command goes on: {short_reason(error)}"
                    )
                    warned = True


class Command:
    """A command, run once: `outcome = Command(words, environment, kill_after, events).run(...)`."""

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

    def run(self, heart: HeartbeatThread, timeout: timedelta | None) -> Outcome:
        """Run it, and tell how it ended."""
        if self._events.interrupted:
            return interrupted(self._events.interrupted)
        try:
            child = ChildProcess(self._words, self._environment, self._events.post)
        except OSError as problem:
            return not_started(self._words[0], problem)
        self._output = child.output
        stop = self._watch(child, heart, timeout)
        if stop is not None:
            self._end(child, self._events.interrupted or signal.SIGTERM)
        self.drain(time.monotonic() + DRAIN_SECONDS * 1.5)
        return self._outcome(child, stop)

    def drain(self, until: float | None = None) -> None:
        """Wait for its output to be passed on: until then, or else until a signal comes."""
        while self._output and not self._output.ended:
            if until is None and self._events.interrupted:
                return
            if self._events.next(until) is None:
                return

    def _watch(
        self, child: ChildProcess, heart: HeartbeatThread, timeout: timedelta | None
    ) -> Stop | None:
        deadline = None if timeout is None else time.monotonic() + timeout.total_seconds()
        while True:
            item = self._events.next(deadline)
            if item is None:
                return Stop.DEADLINE
            if item is child:
                return None
            if item is heart:
                return Stop.LOST
            if isinstance(item, signal.Signals):
                return Stop.SIGNAL

    def _end(self, child: ChildProcess, number: signal.Signals) -> None:
        """Ask the whole group to end, passing on what else comes, and then kill it."""
        kill_at = time.monotonic() + self._kill_after
        child.signal(number)
        while child.is_alive() and time.monotonic() < kill_at:
            item = self._events.next(min(kill_at, time.monotonic() + POLL_SECONDS))
            if isinstance(item, signal.Signals):
                child.signal(item)
        if child.is_alive():
            child.signal(signal.SIGKILL)
        buried_at = time.monotonic() + KILL_WAIT_SECONDS
        while child.is_alive() and time.monotonic() < buried_at:
            self._events.next(time.monotonic() + POLL_SECONDS)

    def _outcome(self, child: ChildProcess, stop: Stop | None) -> Outcome:
        output = replace_unstorable(child.output.tail())
        if stop is Stop.SIGNAL and self._events.interrupted:
            return interrupted(self._events.interrupted, output)
        if stop is Stop.DEADLINE:
            return timed_out(output)
        if stop is Stop.LOST or child.status is None:
            return lost(output)
        return exited(child.status, output)
