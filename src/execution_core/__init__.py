"""Know what your service ran: executions in your own database, behind a strict state machine."""

from importlib import import_module
from typing import TYPE_CHECKING

from .core.backoff import Backoff
from .core.errors import (
    AlreadyRunning,
    AttemptLost,
    ConcurrentUpdate,
    ConnectionLost,
    ExecutionNotFound,
    ExecutionProblem,
    ExecutionProblemCode,
    IdempotencyConflict,
    InvalidStateTransition,
    InvalidValue,
    MaxRetriesExceeded,
    StaleAttempt,
)
from .core.models import (
    Execution,
    ExecutionFailure,
    ExecutionStatus,
    LogEntry,
    LogLevel,
    ProgressInfo,
)
from .tracking.async_attempt import AsyncAttempt
from .tracking.async_manager import AsyncExecutionManager
from .tracking.attempt import Attempt
from .tracking.log_capture import ExecutionLogHandler
from .tracking.manager import ExecutionManager

if TYPE_CHECKING:
    from .connections import connect, connect_async
    from .sql.async_store import AsyncSqlExecutionStore
    from .sql.driver.engine import configure_sqlite
    from .sql.store import SqlExecutionStore

__all__ = [
    "AlreadyRunning",
    "AsyncAttempt",
    "AsyncExecutionManager",
    "AsyncSqlExecutionStore",
    "Attempt",
    "AttemptLost",
    "Backoff",
    "ConcurrentUpdate",
    "ConnectionLost",
    "Execution",
    "ExecutionFailure",
    "ExecutionLogHandler",
    "ExecutionManager",
    "ExecutionNotFound",
    "ExecutionProblem",
    "ExecutionProblemCode",
    "ExecutionStatus",
    "IdempotencyConflict",
    "InvalidStateTransition",
    "InvalidValue",
    "LogEntry",
    "LogLevel",
    "MaxRetriesExceeded",
    "ProgressInfo",
    "SqlExecutionStore",
    "StaleAttempt",
    "configure_sqlite",
    "connect",
    "connect_async",
]

# Imported at first use: SQLAlchemy takes longer to import than all the rest.
_LAZY = {
    "AsyncSqlExecutionStore": "sql.async_store",
    "SqlExecutionStore": "sql.store",
    "configure_sqlite": "sql.driver.engine",
    "connect": "connections",
    "connect_async": "connections",
}


def __getattr__(name: str) -> object:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(f".{_LAZY[name]}", __name__), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
