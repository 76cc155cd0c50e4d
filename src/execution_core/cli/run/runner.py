"""`run` at work: attempt after attempt, until the command has succeeded or none is left."""

import os
import socket
import time
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Final

from sqlalchemy.exc import SQLAlchemyError

from ...core import transitions
from ...core.errors import (
    AlreadyRunning,
    AttemptLost,
    ConcurrentUpdate,
    ConnectionLost,
    ExecutionProblem,
    InvalidStateTransition,
)
from ...core.models import Execution
from ...core.state_machine import CANCELLED, COMPLETED, FAILED, RUNNING, TIMED_OUT
from ...sql.store import SqlExecutionStore
from ...tracking.decorator import seconds_until_due
from ..database import Database, short_reason
from ..streams import write_warning
from .events import EventQueue, Interrupted
from .exit_codes import REFUSED, RUNNING_ELSEWHERE, SIGNAL_CODE, Outcome
from .options import RunOptions
from .supervisor import Command, HeartbeatThread

RETRYABLE: Final = (ConcurrentUpdate, ConnectionLost)
"""After these nothing was changed, and it may be tried again."""
START_SECONDS: Final = 60.0
"""How long the database may take over a start, which must not be left half way."""
INITIAL_BACKOFF: Final = 0.1
MAX_BACKOFF: Final = 5.0


class Run:
    """One call of `run`: `Run(database, terms, events).exit_code()`."""

    def __init__(self, database: Database, terms: RunOptions, events: EventQueue) -> None:
        self._database = database
        self._manager = database.manager
        self._terms = terms
        self._events = events
        self._rest: float | None = None  # how long to wait after an attempt of our own

    def exit_code(self) -> int:
        """Carry it out, and return what `run` exits with."""
        try:
            step: Execution | int = self._created()
            while isinstance(step, Execution):
                step = self._step(step)
        except Interrupted as interruption:
            write_warning(f"Interrupted by {interruption.signal.name} while no attempt was running")
            return SIGNAL_CODE + interruption.signal
        return step

    def _created(self) -> Execution:
        terms = self._terms
        execution = self._events.ask(
            lambda: self._manager.create(
                terms.type,
                terms.payload,
                max_attempts=terms.max_attempts,
                timeout=terms.timeout,
                idempotency_key=terms.key,
            )
        )
        if terms.stalled_after is None or execution.status is not RUNNING:
            return execution
        # A sweep of this one alone: others of its type may be silent for longer.
        sweep = replace(transitions.sweep(terms.stalled_after), attempt=execution.attempts)
        store = SqlExecutionStore(self._database.engine)
        swept: Execution | None = self._events.ask(lambda: store.update(execution.id, sweep))
        return swept or execution

    def _step(self, execution: Execution) -> Execution | int:
        """Make the next attempt where one may be made; return what it is then, or the exit code."""
        if execution.status is COMPLETED:
            write_warning(f"Execution {execution.id} is completed already: nothing was run")
            return 0
        if execution.status is RUNNING:
            write_warning(_running_elsewhere(execution))
            return RUNNING_ELSEWHERE
        try:
            started = self._started(execution)
        except (InvalidStateTransition, *RETRYABLE):  # somebody was quicker
            found = self._events.ask(lambda: self._manager.get(execution.id))
            if found.status is CANCELLED:
                raise
            return found
        except TimeoutError:
            write_warning(
                f"The database does not answer: it is unknown whether {execution.id} was started"
            )
            return REFUSED
        return self._attempt(started)

    def _started(self, execution: Execution) -> Execution:
        rest, self._rest = self._rest, None
        self._wait(seconds_until_due(execution) if rest is None else rest)
        if execution.status in (FAILED, TIMED_OUT):
            self._events.ask(lambda: self._manager.retry(execution.id))
        self._events.raise_if_interrupted()
        worker = f"{socket.gethostname()[:200]}:{os.getpid()}"
        return self._events.ask(
            lambda: self._manager.start(execution.id, worker=worker),
            time.monotonic() + START_SECONDS,
        )

    def _attempt(self, started: Execution) -> Execution | int:
        environment = {
            "EXECUTION_ID": started.id,
            "EXECUTION_ATTEMPT": str(started.attempts),
            "EXECUTION_CORE_URL": self._terms.url,
        }
        command = Command(
            self._terms.command, os.environ | environment, self._terms.kill_after, self._events
        )
        heart = HeartbeatThread(self._manager, started, self._terms.heartbeat, self._events)
        try:
            outcome = command.run(heart, started.timeout)
        finally:
            heart.stop()
        try:
            return self._settled(started, outcome)
        finally:
            command.drain()

    def _settled(self, started: Execution, outcome: Outcome) -> Execution | int:
        """Record how an attempt ended; return what is to be tried again, or the exit code."""
        backoff = self._terms.backoff
        delay = backoff.delay(started.attempts) if backoff else timedelta(0)
        name = f"Attempt {started.attempts} of {started.max_attempts} of execution {started.id}"
        try:
            execution = self._recorded(started, outcome, delay)
        except AttemptLost as lost:
            write_warning(
                f"{lost.code}: {lost}{_cancellation_reason(lost.execution)}: {outcome.message}"
            )
            if lost.execution is None:
                return REFUSED
            execution = lost.execution
            self._log(started, outcome)
        except (SQLAlchemyError, TimeoutError, *RETRYABLE) as error:
            write_warning(f"NOT RECORDED: {name}: {outcome.message}. {short_reason(error)}")
            return REFUSED
        else:
            self._rest = delay.total_seconds()  # this host's clock may be off
            if outcome.status is not COMPLETED:
                write_warning(f"{name}: {outcome.message}")
            if outcome.status is TIMED_OUT:
                self._log(started, outcome)
        code = outcome.code_after(started.attempts, execution)
        if code is not None:
            return code
        self._events.raise_if_interrupted()
        return execution

    def _recorded(self, started: Execution, outcome: Outcome, delay: timedelta) -> Execution:
        """Record an outcome, which may have to wait for the database."""
        # On a new connection: one to a file that was removed meanwhile would still take the record.
        self._database.engine.dispose()
        limit = time.monotonic() + self._terms.record_for.total_seconds()
        rest = INITIAL_BACKOFF
        while True:
            try:
                return self._events.ask(
                    lambda: outcome.record(self._manager, started, delay), limit
                )
            except (SQLAlchemyError, *RETRYABLE) as error:
                left = limit - time.monotonic()
                if left <= 0:
                    raise
                if rest == INITIAL_BACKOFF:
                    write_warning(
                        f"Not recorded yet, trying for {left:.0f} s: {short_reason(error)}"
                    )
                time.sleep(min(rest, left))
                rest = min(2 * rest, MAX_BACKOFF)

    def _log(self, started: Execution, outcome: Outcome) -> None:
        """Keep the output that went into no result and no error, if that can be."""
        if outcome.output:
            with suppress(ExecutionProblem, SQLAlchemyError, TimeoutError):
                self._events.ask(
                    lambda: self._manager.log(
                        started.id,
                        f"The last output of attempt {started.attempts}",
                        level="warning",
                        data={"output": outcome.output},
                    ),
                    time.monotonic() + self._terms.record_for.total_seconds(),
                )

    def _wait(self, seconds: float) -> None:
        if seconds >= 1:
            write_warning(f"The next attempt is in {timedelta(seconds=round(seconds))}")
        self._events.pause(seconds)


def _running_elsewhere(execution: Execution) -> str:
    """Say who runs it, and what to do when that one is dead."""
    seen = execution.heartbeat_at or execution.started_at or execution.updated_at
    silent = timedelta(seconds=max(0, round((datetime.now(UTC) - seen).total_seconds())))
    problem = AlreadyRunning(execution)
    return (
        f"{problem.code}: {problem}, which gave its last sign of life {silent} ago."
        " If it is dead, run this with --stalled-after"
    )


def _cancellation_reason(execution: Execution | None) -> str:
    why = execution and execution.metadata.get(transitions.CANCELLATION_REASON)
    return f" ({why})" if why else ""
