"""The data: what an execution is, and what is logged of it, as frozen pydantic models.

Nothing here touches a database or decides anything; the state machine is in `transitions`.
"""

import re
import traceback
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Annotated, Any, Self

from pydantic import BaseModel, BeforeValidator, Field

MAX_MESSAGE = 10_000
MAX_CODE = 255
MAX_STACK = 100_000
_UNSTORABLE = re.compile("[\0\ud800-\udfff]")


class ExecutionStatus(StrEnum):
    """Where an execution stands: `ExecutionStatus.RUNNING == "running"`."""

    PENDING = "pending"
    """Created, not started yet."""
    RUNNING = "running"
    """An attempt is under way."""
    COMPLETED = "completed"
    """Done, with its result. Final."""
    FAILED = "failed"
    """The last attempt failed, or the execution was given up. `retry` may bring it back."""
    RETRYING = "retrying"
    """The last attempt is over and the next one may start."""
    TIMED_OUT = "timed_out"
    """The last attempt took too long. `retry` may bring it back."""
    CANCELLED = "cancelled"
    """Called off. Final."""


class LogLevel(StrEnum):
    """How much a log entry matters: `LogLevel.WARNING == "warning"`, as in `logging`."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"
    CRITICAL = "critical"


def replace_unstorable(text: str) -> str:
    """Return a text with U+FFFD for what no database text may hold."""
    return _UNSTORABLE.sub("\ufffd", str.__str__(text))


def _cut(kept: slice) -> BeforeValidator:
    return BeforeValidator(
        lambda text: replace_unstorable(str.__str__(text)[kept]) if isinstance(text, str) else text
    )


class ExecutionFailure(BaseModel, frozen=True):
    """Why an attempt failed: `ExecutionFailure(message="card declined", retryable=False)`.

    A failure must never be lost for the sake of its own text: U+0000 and lone surrogates become
    U+FFFD, a message is cut after 10,000 characters and a code after 255, and of a stack the last
    100,000 are kept.
    """

    message: Annotated[str, _cut(slice(MAX_MESSAGE))]
    code: Annotated[str | None, _cut(slice(MAX_CODE))] = None
    """A short name for machines; `from_exception` gives the exception's class."""
    stack: Annotated[str | None, _cut(slice(-MAX_STACK, None))] = None
    retryable: bool = False
    """Whether another attempt may help."""

    @classmethod
    def from_exception(cls, exc: BaseException, retryable: bool = False) -> Self:
        """Describe an exception: `ExecutionFailure.from_exception(exc, retryable=True)`.

        Args:
            exc: the exception; its text may be anything, its `__str__` may even raise.
            retryable: whether another attempt may help.

        Returns:
            Its text (its class where it has none), its class as the code, and its traceback.
        """
        name = type(exc).__qualname__
        try:
            message = str(exc) or name
        except Exception:  # noqa: BLE001 - a broken __str__ must not hide the failure it belongs to
            message = f"{name} (its text could not be read)"
        try:
            stack = "".join(traceback.format_exception(exc))
        except Exception:  # noqa: BLE001 - likewise
            stack = None
        return cls(message=message, code=name, stack=stack, retryable=retryable)


class ProgressInfo(BaseModel, frozen=True):
    """How far an execution is: `execution.progress.percent`."""

    current: int
    total: int
    message: str | None = None
    percent: float
    """0 to 100; computed from current and total unless it was given."""


class Execution(BaseModel, frozen=True):
    """One execution as it stood when it was read: `execution.status`. It does not change by itself.

    All times are aware and in UTC. What is unset is None; `metadata` and `checkpoints` are empty.
    """

    id: str
    """A UUIDv7: ids sort by the time of creation."""
    type: str
    status: ExecutionStatus = ExecutionStatus.PENDING
    payload: Any = None
    """What to do: any JSON value."""
    result: Any = None
    """What came of it: any JSON value, once completed."""
    error: ExecutionFailure | None = None
    """Why the last attempt failed; cleared by `retry` and `start`."""
    attempts: int = 0
    """Attempts started so far: the number of the current or last one, and its fencing token."""
    max_attempts: int = 1
    created_at: datetime
    updated_at: datetime
    started_at: datetime | None = None
    """When the current or last attempt started."""
    completed_at: datetime | None = None
    """When it came to rest: completed, failed, timed out or cancelled."""
    deadline_at: datetime | None = None
    """When the current or last attempt is overdue: `started_at + timeout`."""
    heartbeat_at: datetime | None = None
    """When the current or last attempt last gave a sign of life."""
    due_at: datetime | None = None
    """While pending or retrying: the earliest time of a claim."""
    timeout: timedelta | None = None
    """How long one attempt may take."""
    idempotency_key: str | None = None
    fingerprint: str | None = Field(default=None, repr=False)
    """With a key: the SHA-256 of type and payload, which tells a repeat from a clash."""
    parent_id: str | None = None
    replay_of: str | None = None
    """The execution that this one does again."""
    metadata: dict[str, Any] = Field(default_factory=dict)
    checkpoints: dict[str, Any] = Field(default_factory=dict)
    """What an interrupted attempt left for the next one."""
    progress: ProgressInfo | None = None
    worker: str | None = None
    """Who runs, or last ran, it."""


class LogEntry(BaseModel, frozen=True):
    """One line of an execution's log: `entry.message`."""

    id: str
    """A UUIDv7: the entries of one process sort by it in the order in which they were made."""
    execution_id: str
    attempt: int
    """How many attempts had been started when it was logged."""
    logged_at: datetime
    level: LogLevel
    message: str
    data: Any = None
    """Any JSON value."""
