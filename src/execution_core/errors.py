"""What can go wrong, each with its facts as attributes.

ExecutionProblem
├── ExecutionNotFound        no such execution, or no such parent
├── InvalidStateTransition   the state machine does not allow the move
├── MaxRetriesExceeded       no attempt is left
├── IdempotencyConflict      the key belongs to other work
├── StaleAttempt             another attempt owns the execution
├── ConcurrentUpdate         another writer came between; safe to try again
└── InvalidValue             an argument that cannot be stored, or makes no sense

Each is built from its facts alone, so that all of them survive pickling between processes.
"""

from enum import StrEnum
from typing import ClassVar

from .execution import ExecutionStatus


class ExecutionProblemCode(StrEnum):
    """A problem's name for machines: `problem.code == ExecutionProblemCode.NOT_FOUND`."""

    NOT_FOUND = "NOT_FOUND"
    INVALID_STATE_TRANSITION = "INVALID_STATE_TRANSITION"
    MAX_RETRIES_EXCEEDED = "MAX_RETRIES_EXCEEDED"
    IDEMPOTENCY_CONFLICT = "IDEMPOTENCY_CONFLICT"
    STALE_ATTEMPT = "STALE_ATTEMPT"
    CONCURRENT_UPDATE = "CONCURRENT_UPDATE"
    INVALID_VALUE = "INVALID_VALUE"


class ExecutionProblem(Exception):  # noqa: N818 - the base of refusals, which are answers rather than errors
    """Everything this library refuses: `except ExecutionProblem as problem: problem.code`."""

    code: ClassVar[ExecutionProblemCode]


class ExecutionNotFound(ExecutionProblem):
    """No execution has this id. Facts: `execution_id`."""

    code = ExecutionProblemCode.NOT_FOUND

    def __init__(self, execution_id: str) -> None:
        super().__init__(execution_id)
        self.execution_id = execution_id

    def __str__(self) -> str:
        return f"No execution has the id {self.execution_id[:80]!r}"


class InvalidStateTransition(ExecutionProblem):
    """The status does not allow the verb. Nothing was changed.

    Facts: `execution_id`, `verb`, `from_status`, `to_status` (None where the verb would not have
    changed the status), `sources` (the statuses that would have allowed it).
    """

    code = ExecutionProblemCode.INVALID_STATE_TRANSITION

    def __init__(
        self,
        execution_id: str,
        verb: str,
        from_status: ExecutionStatus,
        to_status: ExecutionStatus | None,
        sources: tuple[ExecutionStatus, ...],
    ) -> None:
        super().__init__(execution_id, verb, from_status, to_status, sources)
        self.execution_id = execution_id
        self.verb = verb
        self.from_status = from_status
        self.to_status = to_status
        self.sources = sources

    def __str__(self) -> str:
        move = f" and cannot become {self.to_status}" if self.to_status else ""
        return (
            f"Execution {self.execution_id} is {self.from_status}{move}: "
            f"{self.verb} is for executions that are {' or '.join(self.sources)}"
        )


class MaxRetriesExceeded(ExecutionProblem):
    """All attempts are used. Nothing was changed. Facts: `execution_id`, `attempts`, `max_attempts`."""

    code = ExecutionProblemCode.MAX_RETRIES_EXCEEDED

    def __init__(self, execution_id: str, attempts: int, max_attempts: int) -> None:
        super().__init__(execution_id, attempts, max_attempts)
        self.execution_id = execution_id
        self.attempts = attempts
        self.max_attempts = max_attempts

    def __str__(self) -> str:
        return f"Execution {self.execution_id} has used {self.attempts} of {self.max_attempts} attempts"


class IdempotencyConflict(ExecutionProblem):
    """The key belongs to an execution of another type or payload. Nothing was created.

    Facts: `idempotency_key`, `execution_id` (of the one that holds the key).
    """

    code = ExecutionProblemCode.IDEMPOTENCY_CONFLICT

    def __init__(self, idempotency_key: str, execution_id: str) -> None:
        super().__init__(idempotency_key, execution_id)
        self.idempotency_key = idempotency_key
        self.execution_id = execution_id

    def __str__(self) -> str:
        return (
            f"The idempotency key {self.idempotency_key!r} belongs to execution "
            f"{self.execution_id}, which has another type or payload"
        )


class StaleAttempt(ExecutionProblem):
    """The attempt that was named does not own the execution. Nothing was changed.

    Facts: `execution_id`, `attempt` (the one named), `current_attempt` (the one that owns it).
    """

    code = ExecutionProblemCode.STALE_ATTEMPT

    def __init__(self, execution_id: str, attempt: int, current_attempt: int) -> None:
        super().__init__(execution_id, attempt, current_attempt)
        self.execution_id = execution_id
        self.attempt = attempt
        self.current_attempt = current_attempt

    def __str__(self) -> str:
        return (
            f"Attempt {self.attempt} does not own execution {self.execution_id}: "
            f"attempt {self.current_attempt} does"
        )


class ConcurrentUpdate(ExecutionProblem):
    """Another writer came between. Nothing was changed, and it is safe to try again.

    Facts: `verb`, `subject` (the id of the execution, or the idempotency key of a `create`).
    """

    code = ExecutionProblemCode.CONCURRENT_UPDATE

    def __init__(self, verb: str, subject: str) -> None:
        super().__init__(verb, subject)
        self.verb = verb
        self.subject = subject

    def __str__(self) -> str:
        return f"Another writer came between while {self.verb} was under way on {self.subject}: try again"


class InvalidValue(ExecutionProblem):
    """An argument cannot be stored, or makes no sense. Nothing was sent to the database.

    Facts: `argument` (its name), `reason`.
    """

    code = ExecutionProblemCode.INVALID_VALUE

    def __init__(self, argument: str, reason: str) -> None:
        super().__init__(argument, reason)
        self.argument = argument
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.argument} {self.reason}"
