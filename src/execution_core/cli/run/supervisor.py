"""Supervise the command of one attempt until it ends or has to be ended."""

import math
import signal
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import Final

from ...core.errors import ConcurrentUpdate, ConnectionLost, ExecutionProblem
from ...core.models import Execution, replace_unstorable
from ...tracking.manager import ExecutionManager
from ..database import short_reason
from ..output import mask_passwords
from ..streams import write_warning
from . import exit_codes
from .child_process import DRAIN_SECONDS, ChildProcess, OutputPump
from .events import FORWARDED, EventQueue
from .standard_input import AttemptInput

POLL_SECONDS: Final = 0.05
WATCHDOG_SECONDS: Final = 1.0
"""Interval between the checks that the watchdog is alive."""
KILL_WAIT_SECONDS: Final = 1.0
"""After SIGKILL, wait at most this long: a process in an uninterruptible wait stays."""


def start_heartbeats(
    manager: ExecutionManager, started: Execution, interval: timedelta, events: EventQueue
) -> threading.Event:
    """Send heartbeats until the returned event is set; post the event if the attempt is lost."""
    stopped = threading.Event()
    seconds = min(interval.total_seconds(), threading.TIMEOUT_MAX)

    def send() -> None:
        warned = False
        while not stopped.wait(seconds):
            try:
                manager.heartbeat(started.id, attempt=started.attempts)
            except (ConcurrentUpdate, ConnectionLost):
                pass
            except ExecutionProblem:
                events.post(stopped)
                return
            except Exception as error:  # noqa: BLE001 - the command and the heartbeats continue
                if not (warned or stopped.is_set()):
                    reason = short_reason(error)
                    write_warning(f"Heartbeat not recorded; the command continues: {reason}")
                    warned = True

    threading.Thread(target=send, name="heartbeat", daemon=True).start()
    return stopped


@dataclass
class Command:
    """Run a command once: `Command(words, environment, input, kill_after, events).run(...)`."""

    words: Sequence[str]
    environment: Mapping[str, str]
    input: AttemptInput
    kill_after: timedelta
    events: EventQueue
    folder: str | None = None
    """A folder to delete if this process is killed."""
    _output: OutputPump | None = None

    def run(self, heartbeat: threading.Event, timeout: timedelta | None) -> exit_codes.Outcome:
        """Run the command and return its outcome."""
        if self.events.interrupted:
            return exit_codes.after_interrupt(self.events.interrupted)
        given = self.environment, self.input.stdin, self.events.post, self.folder
        try:
            child = ChildProcess(self.words, *given)
        except OSError as problem:
            return exit_codes.after_start_failure(self.words, problem)
        finally:
            self.input.begin()
        self._output = child.output
        after_end = self._watch(child, heartbeat, timeout)
        if after_end is not None:
            number = self.events.interrupted or signal.SIGTERM
            self._signal(child, number, self.kill_after.total_seconds())
            if child.is_alive():
                self._signal(child, signal.SIGKILL, KILL_WAIT_SECONDS)
        child.end_watch()
        self.drain(time.monotonic() + DRAIN_SECONDS * 1.5)
        output = replace_unstorable(mask_passwords(child.output.tail()))
        if after_end is not None:
            return after_end(output)
        return exit_codes.after_exit(child.status, output, child.output.error)

    def drain(self, until: float | None = None) -> None:
        """Wait until its output is forwarded, until a time or, without one, until a signal."""
        while self._output and not self._output.finished:
            if until is None and self.events.interrupted:
                return
            if self.events.next(until) is None:
                return

    def _watch(
        self, child: ChildProcess, heartbeat: threading.Event, timeout: timedelta | None
    ) -> Callable[[str], exit_codes.Outcome] | None:
        """Return None when the command has ended, or its outcome when `run` has to end it."""
        deadline = math.inf if timeout is None else time.monotonic() + timeout.total_seconds()
        while True:
            item = self.events.next(min(deadline, time.monotonic() + WATCHDOG_SECONDS))
            child.ensure_watched()
            if item is None and time.monotonic() >= deadline:
                return exit_codes.after_timeout
            if item is child:
                return None
            if item is heartbeat:
                return exit_codes.after_loss
            if isinstance(item, signal.Signals):
                if item not in FORWARDED:
                    return partial(exit_codes.after_interrupt, item)
                child.signal(item)

    def _signal(self, child: ChildProcess, number: signal.Signals, seconds: float) -> None:
        """Signal the group, and forward further signals until it or the time has ended."""
        until = time.monotonic() + seconds
        child.signal(number)
        while child.is_alive() and time.monotonic() < until:
            item = self.events.next(min(until, time.monotonic() + POLL_SECONDS))
            child.ensure_watched()
            if isinstance(item, signal.Signals):
                child.signal(item)
