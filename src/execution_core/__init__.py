"""Know what your service ran: executions in your own database, behind a strict state machine."""

from .async_manager import AsyncExecutionManager
from .creation import Creation
from .errors import (
    ConcurrentUpdate,
    ExecutionNotFound,
    ExecutionProblem,
    ExecutionProblemCode,
    IdempotencyConflict,
    InvalidStateTransition,
    InvalidValue,
    MaxRetriesExceeded,
    StaleAttempt,
)
from .execution import Execution, ExecutionError, ExecutionStatus, ProgressInfo
from .manager import ExecutionManager
from .sql.async_store import AsyncSqlExecutionStore
from .sql.connect import connect, connect_async
from .sql.engines import configure_sqlite
from .sql.store import SqlExecutionStore
from .store import AsyncExecutionStore, ExecutionStore, Page
from .transitions import Transition

__all__ = [
    "AsyncExecutionManager",
    "AsyncExecutionStore",
    "AsyncSqlExecutionStore",
    "ConcurrentUpdate",
    "Creation",
    "Execution",
    "ExecutionError",
    "ExecutionManager",
    "ExecutionNotFound",
    "ExecutionProblem",
    "ExecutionProblemCode",
    "ExecutionStatus",
    "ExecutionStore",
    "IdempotencyConflict",
    "InvalidStateTransition",
    "InvalidValue",
    "MaxRetriesExceeded",
    "Page",
    "ProgressInfo",
    "SqlExecutionStore",
    "StaleAttempt",
    "Transition",
    "configure_sqlite",
    "connect",
    "connect_async",
]
