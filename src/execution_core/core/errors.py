"""What can go wrong, each with its facts as attributes.

ExecutionProblem
├── ExecutionNotFound        no such execution, or no such parent
├── InvalidStateTransition   the state machine does not allow the move
├── MaxRetriesExceeded       no attempt is left
├── IdempotencyConflict      the key belongs to other work
├── StaleAttempt             another attempt owns the execution
├── AttemptLost              the attempt of this block no longer owns its execution
├── AlreadyRunning           a tracked function is being run under this key
├── ConcurrentUpdate         another writer came between; safe to try again
├── ConnectionLost           the connection was lost, nothing was done; safe to try again
└── InvalidValue             an argument that cannot be stored, or makes no sense
"""

from dataclasses import dataclass, fields
from enum import StrEnum
from typing import Any, ClassVar

from .models import Execution, ExecutionStatus


class ExecutionProblemCode(StrEnum):
    """A problem's name for machines: `problem.code == ExecutionProblemCode.NOT_FOUND`."""

    NOT_FOUND = "NOT_FOUND"
    INVALID_STATE_TRANSITION = "INVALID_STATE_TRANSITION"
    MAX_RETRIES_EXCEEDED = "MAX_RETRIES_EXCEEDED"
    IDEMPOTENCY_CONFLICT = "IDEMPOTENCY_CONFLICT"
    STALE_ATTEMPT = "STALE_ATTEMPT"
    ATTEMPT_LOST = "ATTEMPT_LOST"
    ALREADY_RUNNING = "ALREADY_RUNNING"
    CONCURRENT_UPDATE = "CONCURRENT_UPDATE"
    CONNECTION_LOST = "CONNECTION_LOST"
    INVALID_VALUE = "INVALID_VALUE"


class ExecutionProblem(Exception):  # noqa: N818 - a refusal is an answer rather than an error
    """Everything this library refuses: `except ExecutionProblem as problem: problem.code`."""

    code: ClassVar[ExecutionProblemCode]
    template: ClassVar[str]

    def __str__(self) -> str:
        return self.template.format(self)

    def __reduce__(self) -> tuple[Any, ...]:
        # An exception pickles its args, which dataclasses leave empty when built by keyword.
        return type(self), tuple(getattr(self, fact.name) for fact in fields(self))  # type: ignore[arg-type]


@dataclass(eq=False)
class ExecutionNotFound(ExecutionProblem, LookupError):  # noqa: N818
    """No execution has this id: `problem.execution_id`."""

    code = ExecutionProblemCode.NOT_FOUND
    template = "No execution has the id {0.execution_id!r:.82}"
    execution_id: str


@dataclass(eq=False)
class InvalidStateTransition(ExecutionProblem):
    """The status does not allow the verb. Nothing was changed."""

    code = ExecutionProblemCode.INVALID_STATE_TRANSITION
    execution_id: str
    verb: str
    from_status: ExecutionStatus
    to_status: ExecutionStatus | None
    """None where the verb changes no status."""
    sources: tuple[ExecutionStatus, ...]
    """The statuses from which the verb may be called."""

    def __str__(self) -> str:
        move = f" and cannot become {self.to_status}" if self.to_status else ""
        return (
            f"Execution {self.execution_id} is {self.from_status}{move}: "
            f"{self.verb} is for executions that are {' or '.join(self.sources)}"
        )


@dataclass(eq=False)
class MaxRetriesExceeded(ExecutionProblem):
    """All attempts are used. Nothing was changed."""

    code = ExecutionProblemCode.MAX_RETRIES_EXCEEDED
    template = (
        "Execution {0.execution_id} has no attempt left: {0.attempts} of {0.max_attempts} are used"
    )
    execution_id: str
    attempts: int
    max_attempts: int


@dataclass(eq=False)
class IdempotencyConflict(ExecutionProblem):
    """The key belongs to an execution of another type or payload. Nothing was created."""

    code = ExecutionProblemCode.IDEMPOTENCY_CONFLICT
    template = (
        "The idempotency key {0.idempotency_key!r} belongs to execution {0.execution_id}, "
        "which has another type or payload"
    )
    idempotency_key: str
    execution_id: str
    """The execution that holds the key."""


@dataclass(eq=False)
class StaleAttempt(ExecutionProblem):
    """The attempt that was named does not own the execution. Nothing was changed."""

    code = ExecutionProblemCode.STALE_ATTEMPT
    template = (
        "Attempt {0.attempt} does not own execution {0.execution_id}: "
        "attempt {0.current_attempt} does"
    )
    execution_id: str
    attempt: int
    current_attempt: int
    """The attempt that owns it."""


@dataclass(eq=False)
class AttemptLost(ExecutionProblem):
    """An attempt's execution was taken from it: stop working. Nothing was changed."""

    code = ExecutionProblemCode.ATTEMPT_LOST
    execution_id: str
    attempt: int
    execution: Execution | None
    """As it stands now: cancelled, timed out, with another attempt; None when it was deleted."""

    def __str__(self) -> str:
        template = f"Attempt {self.attempt} no longer owns execution {self.execution_id}, which"
        if self.execution is None:
            return f"{template} was deleted"
        if self.execution.attempts > self.attempt:
            return f"{template} attempt {self.execution.attempts} has taken over"
        if self.execution.attempts < self.attempt:
            return f"{template} is as it was before that attempt: a transaction was rolled back"
        return f"{template} is {self.execution.status}"


@dataclass(eq=False)
class AlreadyRunning(ExecutionProblem):
    """Somebody else runs what a tracked function was called for. Nothing was changed."""

    code = ExecutionProblemCode.ALREADY_RUNNING
    execution: Execution
    """As it stood when it was found running."""

    def __str__(self) -> str:
        worker = f", by {self.execution.worker!r}" if self.execution.worker else ""
        return (
            f"Execution {self.execution.id} is running already: "
            f"attempt {self.execution.attempts}{worker}"
        )


@dataclass(eq=False)
class ConcurrentUpdate(ExecutionProblem):
    """Another writer came between. Nothing was changed, and it is safe to try again.

    Within a transaction of the caller's, a serialization failure or a deadlock, which PostgreSQL
    has ended the transaction for: roll back, and run all of it again.
    """

    code = ExecutionProblemCode.CONCURRENT_UPDATE
    verb: str
    execution_id: str | None
    """None where the verb is for several."""

    def __str__(self) -> str:
        return (
            f"Another writer came between during {_call(self)}, which changed nothing: try again,"
            " a transaction of your own from its beginning"
        )


@dataclass(eq=False)
class ConnectionLost(ExecutionProblem):
    """The connection was lost again and again. Nothing was changed, and it is safe to try again."""

    code = ExecutionProblemCode.CONNECTION_LOST
    verb: str
    execution_id: str | None
    """None where the verb is for several."""

    def __str__(self) -> str:
        return (
            f"The connection was lost again and again during {_call(self)}, which changed nothing:"
            " try again"
        )


def _call(problem: ConcurrentUpdate | ConnectionLost) -> str:
    of = f" of execution {problem.execution_id}" if problem.execution_id else ""
    return f"{problem.verb}{of}"


@dataclass(eq=False)
class InvalidValue(ExecutionProblem, ValueError):  # noqa: N818
    """An argument cannot be stored, or makes no sense. Nothing was sent to the database."""

    code = ExecutionProblemCode.INVALID_VALUE
    template = "{0.argument} {0.reason}"
    argument: str
    reason: str
