"""Save the outcome of an attempt, although the database may be unavailable for a time."""

import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import Final

from sqlalchemy.exc import SQLAlchemyError

from ...core.errors import (
    AttemptLost,
    ConcurrentUpdate,
    ConnectionLost,
    ExecutionProblem,
    InvalidStateTransition,
    MaxRetriesExceeded,
)
from ...core.models import Execution
from ...core.state_machine import CANCELLED, COMPLETED, RUNNING
from ..database import ADVICE, Database, short_reason
from ..streams import write_warning
from .events import EventQueue
from .exit_codes import Outcome

RETRYABLE: Final = (ConcurrentUpdate, ConnectionLost)
"""These errors changed nothing, so the call can be repeated."""
UNAVAILABLE: Final = (SQLAlchemyError, TimeoutError, *RETRYABLE)
INITIAL_BACKOFF: Final = 0.1
MAX_BACKOFF: Final = 5.0


@dataclass(frozen=True)
class Recorder:
    """Save outcomes: `Recorder(database, events, timedelta(seconds=30)).record(...)`."""

    database: Database
    events: EventQueue
    record_for: timedelta
    """How long to retry while the database is unavailable."""

    def record(self, started: Execution, outcome: Outcome, delay: timedelta) -> Execution:
        """Save an outcome and return the execution."""
        return self.persist(partial(outcome.record, self.database.manager, started, delay))

    def persist(self, write: Callable[[], Execution]) -> Execution:
        """Call a function that may be repeated until the database is available."""
        # Reconnect: an old connection would write to a SQLite file that was deleted meanwhile.
        self.database.engine.dispose()
        limit = time.monotonic() + self.record_for.total_seconds()
        backoff = INITIAL_BACKOFF
        before = self.events.interruptions

        def is_stopped() -> bool:
            return self.events.interruptions > before  # by a signal after the command has ended

        failure: Exception | None = None
        while True:
            try:
                execution = self.events.call(write, limit, is_stopped)
            except TimeoutError:
                raise failure or TimeoutError(self.describe_silence()) from None
            except (SQLAlchemyError, *RETRYABLE) as error:
                failure = error
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
            else:
                if failure is not None:
                    write_warning("Recorded now")
                return execution

    def describe_silence(self) -> str:
        """Return what it means that the database did not respond in time."""
        is_sqlite = self.database.engine.dialect.name == "sqlite"  # it waits for nothing else
        advice = f". {ADVICE['database is locked']}" if is_sqlite else ""
        return f"The database did not respond in time{advice}"

    def log(self, started: Execution, outcome: Outcome) -> None:
        """Try to log the output, which is in neither the result nor the error."""
        message = f"Last output of attempt {started.attempts}"
        data = {"output": outcome.output}
        log = partial(self.database.manager.log, started.id, message, level="warning", data=data)
        if outcome.output:
            with suppress(ExecutionProblem, SQLAlchemyError, TimeoutError):
                self.events.call(log, time.monotonic() + self.record_for.total_seconds())


def describe_loss(lost: AttemptLost) -> str:
    """Return what happened to an attempt that another process has ended."""
    execution = lost.execution
    if execution is None:
        return f"Execution {lost.execution_id} was deleted"
    if execution.status is not CANCELLED:
        return f"{lost.code}: {lost}"
    reason = execution.metadata.get("cancellation_reason")
    return f"Execution {execution.id} was cancelled" + (f": {reason}" if reason else "")


def describe_refused_start(
    refused: InvalidStateTransition | MaxRetriesExceeded, key: str | None
) -> str:
    """Return what it means that an execution refused the attempt of a command that has run."""
    state = "has used its attempts"
    if isinstance(refused, InvalidStateTransition):
        twice = {COMPLETED: "completed: it ran twice", RUNNING: "running elsewhere: it ran twice"}
        state = f"is {twice.get(refused.from_status, refused.from_status)}"
    of_key = "" if key is None else " of this key"
    return f"The command ran although execution {refused.execution_id}{of_key} {state}"
