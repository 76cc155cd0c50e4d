"""Run attempts of a command until one succeeds or none is left."""

import os
import socket
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any, Final

from sqlalchemy.exc import SQLAlchemyError

from ...core.backoff import Backoff
from ...core.errors import (
    AlreadyRunning,
    AttemptLost,
    ConcurrentUpdate,
    ConnectionLost,
    ExecutionNotFound,
    ExecutionProblem,
    InvalidStateTransition,
)
from ...core.models import Execution
from ...core.state_machine import CANCELLED, COMPLETED, FAILED, RUNNING, TIMED_OUT
from ...tracking.decorator import seconds_until_due
from ..database import Database, short_reason
from ..output import format_cell
from ..streams import write_warning
from .events import EventQueue, Interrupted
from .exit_codes import NOT_RECORDED, REFUSED, RUNNING_ELSEWHERE, SIGNAL_CODE, Outcome
from .supervisor import Command, start_heartbeats

RETRYABLE: Final = (ConcurrentUpdate, ConnectionLost)
"""These errors changed nothing, so the call can be repeated."""
START_SECONDS: Final = 60.0
"""Time limit of a start, which signals do not interrupt: its outcome must be known."""
INITIAL_BACKOFF: Final = 0.1
MAX_BACKOFF: Final = 5.0


@dataclass(kw_only=True)
class Runner:
    """Run one command as an execution: `Runner(command=["make"], …).run()`."""

    database: Database
    events: EventQueue
    command: Sequence[str]
    environment: dict[str, str]
    """Where the command finds the database."""
    new_execution: dict[str, Any]
    """The arguments of `manager.create`."""
    backoff: Backoff | None
    kill_after: timedelta
    heartbeat: timedelta
    stalled_after: timedelta | None
    record_for: timedelta
    quiet: bool
    """Whether to say nothing when there is nothing to do."""
    _delay: float | None = None
    """Seconds to wait after an attempt of this process."""

    def run(self) -> int:
        """Run the command and return the exit code."""
        try:
            step: Execution | int = self._create()
            while isinstance(step, Execution):
                step = self._step(step)
        except Interrupted as interruption:
            write_warning(f"Interrupted by {interruption.signal.name} while no attempt was running")
            return SIGNAL_CODE + interruption.signal
        return step

    def _create(self) -> Execution:
        create = self.database.manager.create
        try:
            execution = self.events.call(lambda: create(**self.new_execution))
        except ExecutionNotFound:  # that of the environment is of another database, or was deleted
            self.new_execution["parent_id"] = None
            execution = self.events.call(lambda: create(**self.new_execution))
        if self.stalled_after is None or execution.status is not RUNNING:
            return execution
        # Sweep this execution only: others of its type may have longer heartbeat intervals.
        sweep = partial(self.database.manager._sweep_one, execution)  # noqa: SLF001
        return self.events.call(partial(sweep, stalled_after=self.stalled_after)) or execution

    def _step(self, execution: Execution) -> Execution | int:
        """Run the next attempt if allowed; return the updated execution, or the exit code."""
        if execution.status is COMPLETED:
            ended = format_cell(execution.completed_at)
            if not self.quiet:
                write_warning(
                    f"Execution {execution.id} was completed at {ended}: the command was not run"
                )
            return 0
        if execution.status is RUNNING:
            write_warning(_describe_running(execution))
            return RUNNING_ELSEWHERE
        try:
            started = self._start(execution)
        except (InvalidStateTransition, *RETRYABLE):  # another process was faster
            found = self.events.call(lambda: self.database.manager.get(execution.id))
            if found.status is CANCELLED:
                raise
            return found
        except TimeoutError:
            write_warning(
                f"The database did not respond: it is unknown whether {execution.id} was started."
                " The command was not run"
            )
            return REFUSED
        return self._attempt(started)

    def _start(self, execution: Execution) -> Execution:
        delay, self._delay = self._delay, None
        seconds = seconds_until_due(execution) if delay is None else delay
        if seconds >= 1:
            write_warning(f"Next attempt in {timedelta(seconds=round(seconds))}")
        self.events.sleep(seconds)
        if execution.status in (FAILED, TIMED_OUT):
            self.events.call(lambda: self.database.manager.retry(execution.id))
        self.events.raise_if_interrupted()
        worker = f"{socket.gethostname()[:200]}:{os.getpid()}"
        start = partial(self.database.manager.start, execution.id, worker=worker)
        return self.events.call(start, time.monotonic() + START_SECONDS)

    def _attempt(self, started: Execution) -> Execution | int:
        environment = {
            "EXECUTION_ID": started.id,
            "EXECUTION_ATTEMPT": str(started.attempts),
        }
        command = Command(
            self.command, os.environ | self.environment | environment, self.kill_after, self.events
        )
        heartbeat = start_heartbeats(self.database.manager, started, self.heartbeat, self.events)
        try:
            outcome = command.run(heartbeat, started.timeout)
        finally:
            heartbeat.set()
        try:
            return self._finish(started, outcome)
        finally:
            command.drain()

    def _finish(self, started: Execution, outcome: Outcome) -> Execution | int:
        """Save the outcome; return the execution if it is to be tried again, or the exit code."""
        delay = self.backoff.delay(started.attempts) if self.backoff else timedelta(0)
        name = f"Attempt {started.attempts} of {started.max_attempts} of execution {started.id}"
        try:
            execution = self._record(started, outcome, delay)
        except AttemptLost as lost:
            write_warning(f"{lost.code}: {lost} Outcome of the command: {outcome.message}")
            if lost.execution is None:
                return REFUSED
            execution = lost.execution
            self._log(started, outcome)
        except (SQLAlchemyError, TimeoutError, *RETRYABLE) as error:
            write_warning(f"NOT RECORDED: {name}: {outcome.message}. {short_reason(error)}")
            return NOT_RECORDED
        else:
            self._delay = delay.total_seconds()  # this host's clock may be wrong
            if outcome.status is not COMPLETED:
                write_warning(f"{name}: {outcome.message}")
            if outcome.status is TIMED_OUT:
                self._log(started, outcome)
        code = outcome.code_after(started.attempts, execution)
        if code is not None:
            return code
        self.events.raise_if_interrupted()
        return execution

    def _record(self, started: Execution, outcome: Outcome, delay: timedelta) -> Execution:
        """Save the outcome, retrying while the database is unavailable."""
        # Reconnect: an old connection would write to a SQLite file that was deleted meanwhile.
        self.database.engine.dispose()
        record = partial(outcome.record, self.database.manager, started, delay)
        limit = time.monotonic() + self.record_for.total_seconds()
        backoff = INITIAL_BACKOFF
        before = self.events.interruptions

        def is_stopped() -> bool:
            return self.events.interruptions > before  # by a signal after the command has ended

        while True:
            try:
                return self.events.call(record, limit, is_stopped)
            except (SQLAlchemyError, *RETRYABLE) as error:
                left = limit - time.monotonic()
                if left <= 0 or is_stopped():
                    raise
                if backoff == INITIAL_BACKOFF:
                    reason = short_reason(error)
                    write_warning(f"Not recorded yet, retrying for {left:.0f} s: {reason}")
                until = time.monotonic() + min(backoff, left)
                while not is_stopped() and self.events.next(until) is not None:
                    pass
                backoff = min(2 * backoff, MAX_BACKOFF)

    def _log(self, started: Execution, outcome: Outcome) -> None:
        """Try to log the output, which is in neither the result nor the error."""
        message = f"Last output of attempt {started.attempts}"
        data = {"output": outcome.output}
        log = partial(self.database.manager.log, started.id, message, level="warning", data=data)
        if outcome.output:
            with suppress(ExecutionProblem, SQLAlchemyError, TimeoutError):
                self.events.call(log, time.monotonic() + self.record_for.total_seconds())


def _describe_running(execution: Execution) -> str:
    """Return who runs the execution, and what to do if that process is dead."""
    seen = execution.heartbeat_at or execution.started_at or execution.updated_at
    silent = timedelta(seconds=max(0, round((datetime.now(UTC) - seen).total_seconds())))
    worker = f", worker {execution.worker!r}" if execution.worker else ""
    return (
        f"{AlreadyRunning.code}: Execution {execution.id} is already running elsewhere: attempt"
        f" {execution.attempts}{worker}. Its last heartbeat was {silent} ago. If its worker is"
        " dead, run this command with --stalled-after"
    )
