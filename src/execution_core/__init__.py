"""Know what your service ran: executions in your own database, behind a strict state machine."""

from importlib import import_module
from typing import TYPE_CHECKING

from .async_attempt import AsyncAttempt
from .async_manager import AsyncExecutionManager
from .attempt import Attempt
from .backoff import Backoff
from .creation import Creation
from .errors import (
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
from .execution import (
    Execution,
    ExecutionError,
    ExecutionStatus,
    LogEntry,
    LogLevel,
    ProgressInfo,
)
from .log_handler import ExecutionLogHandler
from .logs import Line
from .manager import ExecutionManager
from .store import AsyncExecutionStore, Batch, ExecutionStore, Page, Pruning
from .transitions import Transition

if TYPE_CHECKING:
    from .sql.async_connect import connect_async
    from .sql.async_store import AsyncSqlExecutionStore
    from .sql.connect import connect
    from .sql.engines import configure_sqlite
    from .sql.store import SqlExecutionStore

__all__ = [
    "AlreadyRunning",
    "AsyncAttempt",
    "AsyncExecutionManager",
    "AsyncExecutionStore",
    "AsyncSqlExecutionStore",
    "Attempt",
    "AttemptLost",
    "Backoff",
    "Batch",
    "ConcurrentUpdate",
    "ConnectionLost",
    "Creation",
    "Execution",
    "ExecutionError",
    "ExecutionLogHandler",
    "ExecutionManager",
    "ExecutionNotFound",
    "ExecutionProblem",
    "ExecutionProblemCode",
    "ExecutionStatus",
    "ExecutionStore",
    "IdempotencyConflict",
    "InvalidStateTransition",
    "InvalidValue",
    "Line",
    "LogEntry",
    "LogLevel",
    "MaxRetriesExceeded",
    "Page",
    "ProgressInfo",
    "Pruning",
    "SqlExecutionStore",
    "StaleAttempt",
    "Transition",
    "configure_sqlite",
    "connect",
    "connect_async",
]

# What needs SQLAlchemy, and for asyncio twice as much of it, is imported when it is asked for.
_LAZY = {
    "AsyncSqlExecutionStore": "sql.async_store",
    "SqlExecutionStore": "sql.store",
    "configure_sqlite": "sql.engines",
    "connect": "sql.connect",
    "connect_async": "sql.async_connect",
}


def __getattr__(name: str) -> object:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(f".{_LAZY[name]}", __name__), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
