"""Know what your service ran: executions in your own database, behind a strict state machine."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .connections import connect as connect
    from .connections import connect_async as connect_async
    from .core.backoff import Backoff as Backoff
    from .core.errors import AlreadyRunning as AlreadyRunning
    from .core.errors import AttemptLost as AttemptLost
    from .core.errors import ConcurrentUpdate as ConcurrentUpdate
    from .core.errors import ConnectionLost as ConnectionLost
    from .core.errors import ExecutionNotFound as ExecutionNotFound
    from .core.errors import ExecutionProblem as ExecutionProblem
    from .core.errors import ExecutionProblemCode as ExecutionProblemCode
    from .core.errors import IdempotencyConflict as IdempotencyConflict
    from .core.errors import InvalidStateTransition as InvalidStateTransition
    from .core.errors import InvalidValue as InvalidValue
    from .core.errors import MaxRetriesExceeded as MaxRetriesExceeded
    from .core.errors import StaleAttempt as StaleAttempt
    from .core.models import AttemptRecord as AttemptRecord
    from .core.models import ChildrenSummary as ChildrenSummary
    from .core.models import Execution as Execution
    from .core.models import ExecutionFailure as ExecutionFailure
    from .core.models import ExecutionStatus as ExecutionStatus
    from .core.models import HistoryEntry as HistoryEntry
    from .core.models import LogEntry as LogEntry
    from .core.models import LogLevel as LogLevel
    from .core.models import ProgressInfo as ProgressInfo
    from .sql.async_store import AsyncSqlExecutionStore as AsyncSqlExecutionStore
    from .sql.driver.engine import configure_sqlite as configure_sqlite
    from .sql.store import SqlExecutionStore as SqlExecutionStore
    from .tracking.async_attempt import AsyncAttempt as AsyncAttempt
    from .tracking.async_manager import AsyncExecutionManager as AsyncExecutionManager
    from .tracking.attempt import Attempt as Attempt
    from .tracking.chunks import AsyncChunk as AsyncChunk
    from .tracking.chunks import Chunk as Chunk
    from .tracking.log_capture import ExecutionLogHandler as ExecutionLogHandler
    from .tracking.manager import ExecutionManager as ExecutionManager

# Imported at first use: a command inside `execution-core run` needs none of them.
_MODULES = {
    "AlreadyRunning": "core.errors",
    "AsyncAttempt": "tracking.async_attempt",
    "AsyncChunk": "tracking.chunks",
    "AsyncExecutionManager": "tracking.async_manager",
    "AsyncSqlExecutionStore": "sql.async_store",
    "Attempt": "tracking.attempt",
    "AttemptLost": "core.errors",
    "AttemptRecord": "core.models",
    "Backoff": "core.backoff",
    "ChildrenSummary": "core.models",
    "Chunk": "tracking.chunks",
    "ConcurrentUpdate": "core.errors",
    "ConnectionLost": "core.errors",
    "Execution": "core.models",
    "ExecutionFailure": "core.models",
    "ExecutionLogHandler": "tracking.log_capture",
    "ExecutionManager": "tracking.manager",
    "ExecutionNotFound": "core.errors",
    "ExecutionProblem": "core.errors",
    "ExecutionProblemCode": "core.errors",
    "ExecutionStatus": "core.models",
    "HistoryEntry": "core.models",
    "IdempotencyConflict": "core.errors",
    "InvalidStateTransition": "core.errors",
    "InvalidValue": "core.errors",
    "LogEntry": "core.models",
    "LogLevel": "core.models",
    "MaxRetriesExceeded": "core.errors",
    "ProgressInfo": "core.models",
    "SqlExecutionStore": "sql.store",
    "StaleAttempt": "core.errors",
    "configure_sqlite": "sql.driver.engine",
    "connect": "connections",
    "connect_async": "connections",
}

__all__ = list(_MODULES)


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(f".{_MODULES[name]}", __name__), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
