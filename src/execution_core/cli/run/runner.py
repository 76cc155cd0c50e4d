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
from ...tracking.decorator import pause
from ..database import Database, reason
from ..streams import say
from .events import Inbox, Interrupted
from .exit_codes import REFUSED, RUNNING_ELSEWHERE, SIGNAL_CODE, Outcome
from .options import Terms
from .supervisor import Command, Heart

AGAIN: Final = (ConcurrentUpdate, ConnectionLost)
"""After these nothing was changed, and it may be tried again."""
START_SECONDS: Final = 60.0
"""How long the database may take over a start, which must not be left half way."""
FIRST_REST: Final = 0.1
LONGEST_REST: Final = 5.0


class Run:
    """One call of `run`: `Run(database, terms, inbox).exit_code()`."""

    def __init__(self, database: Database, terms: Terms, inbox: Inbox) -> None:
        self._database = database
        self._manager = database.manager
        self._terms = terms
        self._inbox = inbox
        self._rest: float | None = None  # how long to wait after an attempt of our own

    def exit_code(self) -> int:
        """Carry it out, and return what `run` exits with."""
        try:
            step: Execution | int = self._created()
            while isinstance(step, Execution):
                step = self._step(step)
        except Interrupted as interruption:
            say(f"Interrupted by {interruption.signal.name} while no attempt was running")
            return SIGNAL_CODE + interruption.signal
        return step

    def _created(self) -> Execution:
        terms = self._terms
        execution = self._inbox.ask(
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
        return self._inbox.ask(lambda: store.update(execution.id, sweep)) or execution

    def _step(self, execution: Execution) -> Execution | int:
        """Make the next attempt where one may be made; return what it is then, or the exit code."""
        if execution.status is COMPLETED:
            say(f"Execution {execution.id} is completed already: nothing was run")
            return 0
        if execution.status is RUNNING:
            say(_elsewhere(execution))
            return RUNNING_ELSEWHERE
        try:
            started = self._started(execution)
        except (InvalidStateTransition, *AGAIN):  # somebody was quicker
            found = self._inbox.ask(lambda: self._manager.get(execution.id))
            if found.status is CANCELLED:
                raise
            return found
        except TimeoutError:
            say(f"The database does not answer: it is unknown whether {execution.id} was started")
            return REFUSED
        return self._attempt(started)

    def _started(self, execution: Execution) -> Execution:
        rest, self._rest = self._rest, None
        self._wait(pause(execution) if rest is None else rest)
        if execution.status in (FAILED, TIMED_OUT):
            self._inbox.ask(lambda: self._manager.retry(execution.id))
        self._inbox.heed()
        worker = f"{socket.gethostname()[:200]}:{os.getpid()}"
        return self._inbox.ask(
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
            self._terms.command, os.environ | environment, self._terms.kill_after, self._inbox
        )
        heart = Heart(self._manager, started, self._terms.heartbeat, self._inbox)
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
            say(f"{lost.code}: {lost}{_why(lost.execution)}: {outcome.says}")
            if lost.execution is None:
                return REFUSED
            execution = lost.execution
            self._log(started, outcome)
        except (SQLAlchemyError, TimeoutError, *AGAIN) as error:
            say(f"NOT RECORDED: {name}: {outcome.says}. {reason(error)}")
            return REFUSED
        else:
            self._rest = delay.total_seconds()  # this host's clock may be off
            if outcome.status is not COMPLETED:
                say(f"{name}: {outcome.says}")
            if outcome.status is TIMED_OUT:
                self._log(started, outcome)
        code = outcome.code_after(started.attempts, execution)
        if code is not None:
            return code
        self._inbox.heed()
        return execution

    def _recorded(self, started: Execution, outcome: Outcome, delay: timedelta) -> Execution:
        """Record an outcome, which may have to wait for the database."""
        # On a new connection: one to a file that was removed meanwhile would still take the record.
        self._database.engine.dispose()
        limit = time.monotonic() + self._terms.record_for.total_seconds()
        rest = FIRST_REST
        while True:
            try:
                return self._inbox.ask(lambda: outcome.record(self._manager, started, delay), limit)
            except (SQLAlchemyError, *AGAIN) as error:
                left = limit - time.monotonic()
                if left <= 0:
                    raise
                if rest == FIRST_REST:
                    say(f"Not recorded yet, trying for {left:.0f} s: {reason(error)}")
                time.sleep(min(rest, left))
                rest = min(2 * rest, LONGEST_REST)

    def _log(self, started: Execution, outcome: Outcome) -> None:
        """Keep the output that went into no result and no error, if that can be."""
        if outcome.output:
            with suppress(ExecutionProblem, SQLAlchemyError, TimeoutError):
                self._inbox.ask(
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
            say(f"The next attempt is in {timedelta(seconds=round(seconds))}")
        self._inbox.pause(seconds)


def _elsewhere(execution: Execution) -> str:
    """Say who runs it, and what to do when that one is dead."""
    seen = execution.heartbeat_at or execution.started_at or execution.updated_at
    silent = timedelta(seconds=max(0, round((datetime.now(UTC) - seen).total_seconds())))
    problem = AlreadyRunning(execution)
    return (
        f"{problem.code}: {problem}, which gave its last sign of life {silent} ago."
        " If it is dead, run this with --stalled-after"
    )


def _why(execution: Execution | None) -> str:
    why = execution and execution.metadata.get(transitions.CANCELLATION_REASON)
    return f" ({why})" if why else ""
