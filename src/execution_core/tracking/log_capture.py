"""A handler for `logging`: what a block logs goes into the log of its execution."""

import logging
from contextvars import ContextVar
from typing import TYPE_CHECKING, NamedTuple

from ..core.models import LogLevel

if TYPE_CHECKING:
    from weakref import ref

    from .attempt_state import AttemptState


class ActiveAttempt(NamedTuple):
    """Where a thread or task is: in the block of an attempt, within that of another.

    The attempt is kept alive by its block alone, and may be gone where that was left elsewhere.
    """

    attempt: "ref[AttemptState]"
    outer: "ActiveAttempt | None"


ACTIVE: ContextVar[ActiveAttempt | None] = ContextVar("execution_core.attempt", default=None)


def innermost_active() -> ActiveAttempt | None:
    """Return the innermost block around this that has not been left."""
    innermost = ACTIVE.get()
    while innermost is not None:
        attempt = innermost.attempt()
        if attempt is not None and not attempt._left:  # noqa: SLF001
            break
        innermost = innermost.outer
    return innermost


def current_attempt() -> "AttemptState | None":
    """Return the attempt of that block."""
    innermost = innermost_active()
    return innermost and innermost.attempt()


class ExecutionLogHandler(logging.Handler):
    """Sends records to the running attempt: `logger.addHandler(ExecutionLogHandler())`.

    The attempt is that of the innermost block around the call that logs, in the same thread or
    task; what is logged outside of any block is left alone, and so is what comes through a
    QueueListener, whose thread is in no block. Nobody waits for the database: the records of a
    block are written in the background, and all of them before it ends. Only where callers share a
    connection (a manager `within` a transaction, in-memory SQLite) are they written together with
    the next progress, checkpoint or heartbeat, or at the end. While 10,000 wait, more are dropped,
    and the last entry says how many.

    An entry holds the record as this handler formats it, its level, and the logger's name as data.
    """

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a record for the attempt."""
        attempt = current_attempt()
        if attempt is None:
            return
        try:
            attempt._record_logged(self.format(record), to_log_level(record.levelno), record.name)  # noqa: SLF001
        except Exception:  # noqa: BLE001 - logging must not fail
            self.handleError(record)


def to_log_level(number: int) -> LogLevel:
    """Return the level that a number of `logging` belongs to."""
    reached = (level for level in reversed(LogLevel) if getattr(logging, level.name) <= number)
    return next(reached, LogLevel.DEBUG)
