"""A handler for `logging` that adds the records of a block to the log of its execution."""

import logging
from contextvars import ContextVar
from typing import NamedTuple, Protocol
from weakref import ref

from ..core.models import LogLevel


class LogTarget(Protocol):
    """An attempt, as the handler knows it."""

    _left: bool
    """Whether its block has been left."""

    def _capture(self, message: str, level: LogLevel, logger_name: str) -> None:
        """Add a record to the log of the execution, without waiting for the database."""


class ActiveAttempt(NamedTuple):
    """The attempt whose block a thread or task is in, and the attempt of the block around it.

    The reference is weak: the block alone keeps its attempt alive.
    """

    attempt: ref[LogTarget]
    outer: "ActiveAttempt | None"


ACTIVE: ContextVar[ActiveAttempt | None] = ContextVar("execution_core.attempt", default=None)


def innermost_active() -> ActiveAttempt | None:
    """Return the innermost block around the caller that has not been left."""
    innermost = ACTIVE.get()
    while innermost is not None:
        attempt = innermost.attempt()
        if attempt is not None and not attempt._left:  # noqa: SLF001
            break
        innermost = innermost.outer
    return innermost


class ExecutionLogHandler(logging.Handler):
    """Adds log records to the running attempt: `logger.addHandler(ExecutionLogHandler())`.

    A record belongs to the innermost block around the call that logs it, in the same thread or
    task. Records from outside any block are ignored, and so are those of a QueueListener, whose
    thread is in no block. Logging never waits for the database: a block's records are written in
    the background, and all of them before the block ends. Where callers share a connection (a
    manager `within` a transaction, in-memory SQLite) they are written with the next progress,
    checkpoint or heartbeat, or at the end of the block. At most 10,000 records wait; further ones
    are dropped, and the last entry says how many.

    An entry holds the formatted record, its level, and the name of its logger as data.
    """

    def emit(self, record: logging.LogRecord) -> None:
        """Pass a record to the attempt."""
        innermost = innermost_active()
        attempt = innermost and innermost.attempt()
        if attempt is None:
            return
        try:
            attempt._capture(self.format(record), to_log_level(record.levelno), record.name)  # noqa: SLF001
        except Exception:  # noqa: BLE001 - logging must not fail
            self.handleError(record)


def to_log_level(number: int) -> LogLevel:
    """Return the highest level that a number of `logging` reaches; DEBUG below all of them."""
    reached = (level for level in reversed(LogLevel) if getattr(logging, level.name) <= number)
    return next(reached, LogLevel.DEBUG)
