"""Executions, their failures, progress, history and log entries, as frozen pydantic models.

The models contain data alone. The state machine is in `state_machine` and `transitions`.
"""

import builtins
import re
import traceback
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Annotated, Any, Literal, Self, TypeVar, overload

from pydantic import BaseModel, BeforeValidator, Field

from .typed_json import read_as

T = TypeVar("T")

MAX_MESSAGE = 10_000
MAX_CODE = 255
MAX_STACK = 100_000
CANCELLATION_REASON = "cancellation_reason"
"""The metadata key under which `cancel` stores its reason."""
_UNSTORABLE = re.compile("[\0\ud800-\udfff]")


class ExecutionStatus(StrEnum):
    """The status of an execution: `ExecutionStatus.RUNNING == "running"`."""

    PENDING = "pending"
    """Created, not started yet."""
    RUNNING = "running"
    """An attempt is running."""
    COMPLETED = "completed"
    """Finished with a result. Final."""
    FAILED = "failed"
    """Finished: the last attempt failed, and no other follows. `retry` allows another one."""
    RETRYING = "retrying"
    """Waits for its next attempt: the last one failed, or `retry` was called."""
    TIMED_OUT = "timed_out"
    """Finished: the last attempt took too long or stalled. `retry` allows another one."""
    CANCELLED = "cancelled"
    """Finished: `cancel` was called. Final."""


class LogLevel(StrEnum):
    """The level of a log entry, as in `logging`: `LogLevel.WARNING == "warning"`."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"
    CRITICAL = "critical"


def replace_unstorable(text: str) -> str:
    """Return a text with U+FFFD in place of U+0000 and lone surrogates."""
    return _UNSTORABLE.sub("\ufffd", str.__str__(text))


def _cut(part: slice) -> BeforeValidator:
    return BeforeValidator(
        lambda text: replace_unstorable(str.__str__(text)[part]) if isinstance(text, str) else text
    )


@contextmanager
def _hidden_parameters(error: BaseException) -> Iterator[None]:
    """Let SQLAlchemy's errors omit the values of a statement, which may be secrets."""
    hidden = [each for each in _chain(error) if getattr(each, "hide_parameters", None) is False]
    for each in hidden:
        each.hide_parameters = True  # type: ignore[attr-defined]
    try:
        yield
    finally:
        for each in hidden:
            each.hide_parameters = False  # type: ignore[attr-defined]


def _chain(error: BaseException) -> Iterable[BaseException]:
    """Return an exception with its causes, contexts and members, as far as they can be read."""
    found: dict[int, BaseException] = {}
    pending = [error]
    with suppress(Exception):
        while pending:
            each = pending.pop()
            if id(each) not in found:
                found[id(each)] = each
                related = (each.__cause__, each.__context__, *getattr(each, "exceptions", ()))
                pending += [one for one in related if isinstance(one, BaseException)]
    return found.values()


def _class_name(kind: type) -> str:
    """Return the name of a class, with its module unless it is Python's own."""
    package, _, _ = __name__.partition(".")
    module = package if kind.__module__.startswith(f"{package}.") else kind.__module__
    own = module in ("builtins", "__main__")
    return kind.__qualname__ if own else f"{module}.{kind.__qualname__}"


class ExecutionFailure(BaseModel, frozen=True):
    """Why an attempt failed: `ExecutionFailure(message="card declined", retryable=False)`.

    Texts are cleaned and cut instead of refused, so that a failure is always recorded: U+0000 and
    lone surrogates become U+FFFD. A message keeps its first 10,000 characters, a code its first
    255, a stack its last 100,000.
    """

    message: Annotated[str, _cut(slice(MAX_MESSAGE))]
    code: Annotated[str | None, _cut(slice(MAX_CODE))] = None
    """A short name for programs; `from_exception` sets the exception's class."""
    stack: Annotated[str | None, _cut(slice(-MAX_STACK, None))] = None
    retryable: bool = False
    """Whether another attempt may succeed."""

    @classmethod
    def from_exception(cls, exc: BaseException, retryable: bool = False) -> Self:
        """Build a failure from an exception: `ExecutionFailure.from_exception(exc)`.

        Args:
            exc: the exception. An exception whose `__str__` raises is accepted as well.
            retryable: whether another attempt may succeed.

        Returns:
            A failure with the exception's text (its class name if it has none), its traceback, and
            as the code its class, with the module unless it is Python's own: `TimeoutError`,
            `httpx.ReadTimeout`. The errors of SQLAlchemy hide the values of parameters.
        """
        name = _class_name(type(exc))
        with _hidden_parameters(exc):
            try:
                message = str(exc) or name
            except Exception:  # noqa: BLE001 - a broken __str__ must not hide the failure
                message = f"{name} (its text could not be read)"
            try:
                stack = "".join(traceback.format_exception(exc))
            except Exception:  # noqa: BLE001 - as above
                stack = None
        return cls(message=message, code=name, stack=stack, retryable=retryable)


class ProgressInfo(BaseModel, frozen=True):
    """The progress of an execution: `execution.progress.percent`."""

    current: int
    total: int
    message: str | None = None
    percent: float
    """0 to 100; computed from current and total unless the caller set it."""


class Execution(BaseModel, frozen=True):
    """One execution as it was when it was read: `execution.status`. It is never updated.

    All times are aware and in UTC. Unset fields are None; unset `metadata` and `checkpoints` are
    empty dicts.
    """

    id: str
    """A UUIDv7: ids sort by the time of creation."""
    type: str
    status: ExecutionStatus = ExecutionStatus.PENDING
    payload: Any = None
    """The input: any JSON value."""
    result: Any = None
    """The output of a completed execution: any JSON value."""
    error: ExecutionFailure | None = None
    """Why the last attempt failed; cleared by `retry` and `start`."""
    attempts: int = 0
    """Number of attempts started: the number of the current or last one, its fencing token."""
    max_attempts: int = 1
    created_at: datetime
    updated_at: datetime
    started_at: datetime | None = None
    """When the current or last attempt started."""
    completed_at: datetime | None = None
    """When it finished: completed, failed, timed out or cancelled."""
    deadline_at: datetime | None = None
    """The deadline of the current or last attempt: `started_at + timeout`."""
    heartbeat_at: datetime | None = None
    """The last heartbeat of the current or last attempt; progress and checkpoints count as one."""
    due_at: datetime | None = None
    """While pending or retrying: `claim` skips it until this time."""
    timeout: timedelta | None = None
    """The maximum run time of one attempt."""
    idempotency_key: str | None = None
    fingerprint: str | None = Field(default=None, repr=False)
    """With a key: the SHA-256 of type and payload, to compare a repeated request with."""
    parent_id: str | None = None
    replay_of: str | None = None
    """The finished execution that this one repeats."""
    metadata: dict[str, Any] = Field(default_factory=dict)
    checkpoints: dict[str, Any] = Field(default_factory=dict)
    """Named JSON values that an attempt saves for the next one."""
    progress: ProgressInfo | None = None
    worker: str | None = None
    """The worker of the current or last attempt."""
    redacted_at: datetime | None = None
    """When `redact` removed its data."""
    awaits_children_since: datetime | None = None
    """When `finish_with_children` left the end of its attempt to its children."""

    def __hash__(self) -> int:
        return hash(self.id)

    @overload
    def payload_as(self, as_type: builtins.type[T], /) -> T: ...
    @overload
    def payload_as(self, as_type: Any, /) -> Any: ...
    def payload_as(self, as_type: Any, /) -> Any:
        """Return the payload as a type: `execution.payload_as(Order).order_id`.

        Args:
            as_type: any type that pydantic validates: a model, a dataclass, `list[int]`.

        Raises:
            InvalidValue: the payload does not fit. The error names fields and keys, and no values.
        """
        return read_as("payload", self.id, self.payload, as_type)

    @overload
    def result_as(self, as_type: builtins.type[T], /) -> T: ...
    @overload
    def result_as(self, as_type: Any, /) -> Any: ...
    def result_as(self, as_type: Any, /) -> Any:
        """Return the result as a type: `execution.result_as(list[int])`.

        It takes the types and raises the errors of `payload_as`.
        """
        return read_as("result", self.id, self.result, as_type)


class ChildrenSummary(BaseModel, frozen=True):
    """The children of an execution, counted: `manager.children(id).percent`."""

    total: int
    finished: int
    """How many are completed, failed, timed out or cancelled."""
    percent: float
    """The share that has finished, 0 to 100; 100 without children."""
    by_status: dict[ExecutionStatus, int]
    """How many children have each status, without those that none has."""
    failed: list[Execution]
    """Those that failed or timed out, the newest first, at most 100."""


class HistoryEntry(BaseModel, frozen=True):
    """The creation of an execution, or one transition: `entry.to_status`."""

    execution_id: str
    seq: int
    """Counts from 1 without gaps."""
    from_status: ExecutionStatus | None
    """The status before; None for the creation."""
    to_status: ExecutionStatus
    attempt: int
    """Number of attempts started, after the transition."""
    occurred_at: datetime
    worker: str | None = None
    reason: str | None = None
    """Why it was cancelled."""
    error: ExecutionFailure | None = None
    """Why the attempt failed."""
    actor: str | None = None
    """Who did it: the `by` of the call, or the role of the database."""


class AttemptRecord(BaseModel, frozen=True):
    """One attempt of an execution, as the history has it: `record.outcome`."""

    execution_id: str
    attempt: int
    """Its number, from 1."""
    worker: str | None = None
    started_at: datetime
    ended_at: datetime | None = None
    """None while it is running."""
    duration_seconds: float | None = None
    """Seconds from its start to its end, rounded to milliseconds."""
    outcome: Literal["running", "completed", "failed", "timed_out", "released", "cancelled"]
    error: ExecutionFailure | None = None
    """Why it failed or timed out."""


class LogEntry(BaseModel, frozen=True):
    """One log entry of an execution: `entry.message`."""

    id: str
    """A UUIDv7: the entries of one process sort in the order of their creation."""
    execution_id: str
    attempt: int
    """Number of attempts started when the entry was logged."""
    logged_at: datetime
    level: LogLevel
    message: str
    data: Any = None
    """Any JSON value."""

    def __hash__(self) -> int:
        return hash(self.id)
