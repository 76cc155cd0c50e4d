"""The exceptions of this library, each with its facts as attributes.

ExecutionProblem
├── ExecutionNotFound        no such execution, or no such parent
├── InvalidStateTransition   the status does not allow the verb
├── MaxRetriesExceeded       no attempt is left
├── IdempotencyConflict      the key belongs to an execution of another type or payload
├── StaleAttempt             another attempt owns the execution
├── AttemptLost              the attempt of this block no longer owns its execution
├── AlreadyRunning           another caller runs the tracked function under this key
├── ConcurrentUpdate         another transaction interfered; nothing was changed, try again
├── ConnectionLost           the connection was lost; nothing was changed, try again
└── InvalidValue             an argument makes no sense, or JSON does not fit a type

Every message says what failed, for which execution, why, and what to do.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from .models import CANCELLATION_REASON, Execution, ExecutionStatus
from .problem import ExecutionProblem as ExecutionProblem
from .problem import ExecutionProblemCode as ExecutionProblemCode
from .problem import InvalidValue as InvalidValue

_ACTIONS: Final = {
    "attempts": "read the attempts of",
    "checkpoint": "set a checkpoint of",
    "create a child": "create a child of",
    "finish_with_children": "let the children end",
    "get": "read",
    "heartbeat": "record a heartbeat of",
    "history": "read the history of",
    "log": "add a log entry to",
    "logs": "read the log of",
    "timeout": "time out",
    "update_progress": "update the progress of",
}


@dataclass(eq=False)
class ExecutionNotFound(ExecutionProblem, LookupError):  # noqa: N818
    """There is no execution with this id: `problem.execution_id`."""

    code = ExecutionProblemCode.NOT_FOUND
    template = (
        "No execution has the id {0.execution_id!r:.82}:"
        " it was deleted, or never created in this database."
    )
    execution_id: str


@dataclass(eq=False)
class InvalidStateTransition(ExecutionProblem):
    """The status of the execution does not allow the verb. Nothing was changed."""

    code = ExecutionProblemCode.INVALID_STATE_TRANSITION
    execution_id: str
    verb: str
    from_status: ExecutionStatus
    to_status: ExecutionStatus | None
    """None if the verb changes no status."""
    sources: tuple[ExecutionStatus, ...]
    """The statuses in which the verb is allowed."""

    def __str__(self) -> str:
        return (
            f"Cannot {_action(self.verb, self.execution_id)}: "
            f"its status is {self.from_status}, not {_one_of(self.sources)}."
        )


@dataclass(eq=False)
class MaxRetriesExceeded(ExecutionProblem):
    """The execution has used all its attempts. Nothing was changed."""

    code = ExecutionProblemCode.MAX_RETRIES_EXCEEDED
    execution_id: str
    attempts: int
    max_attempts: int
    verb: str = "start"

    def __str__(self) -> str:
        used = "its only attempt" if self.attempts == 1 else f"all {self.attempts} attempts"
        return (
            f"Cannot {_action(self.verb, self.execution_id)}: "
            f"it has used {used} (max_attempts={self.max_attempts}). "
            "To allow another one, retry it with extra_attempts=1 (--extra-attempts 1); replay"
            " repeats the work as a new execution."
        )


@dataclass(eq=False)
class IdempotencyConflict(ExecutionProblem):
    """The key belongs to an execution of another type or payload. Nothing was created."""

    code = ExecutionProblemCode.IDEMPOTENCY_CONFLICT
    idempotency_key: str
    execution_id: str
    """The execution that holds the key."""
    differs: str = "type or payload"
    """What differs: "type", "payload", "type and payload" or, after manual SQL, "fingerprint"."""

    def __str__(self) -> str:
        return (
            f"The idempotency key {self.idempotency_key!r} belongs to execution "
            f"{self.execution_id}, which has another {self.differs}. {self._advice()}"
        )

    def _advice(self) -> str:
        if self.differs == "payload":
            return (
                "Use one key per request, and keep generated ids and times out of the payload:"
                " a repeated request must have the same payload."
            )
        if self.differs == "fingerprint":
            return (
                "Manual SQL may have changed it after its creation, or the payloads differ in the"
                " sign of a zero, which PostgreSQL does not store."
            )
        return "Use one key per request: begin it with the type, for example."


@dataclass(eq=False)
class StaleAttempt(ExecutionProblem):
    """The named attempt does not own the execution. Nothing was changed."""

    code = ExecutionProblemCode.STALE_ATTEMPT
    template = (
        "Attempt {0.attempt} does not own execution {0.execution_id}: attempt {0.current_attempt}"
        " is running. Stop the work of attempt {0.attempt}."
    )
    execution_id: str
    attempt: int
    current_attempt: int
    """The attempt that owns the execution."""


@dataclass(eq=False)
class AttemptLost(ExecutionProblem):
    """The attempt no longer owns its execution: stop working. Nothing was changed."""

    code = ExecutionProblemCode.ATTEMPT_LOST
    execution_id: str
    attempt: int
    execution: Execution | None
    """The execution now: cancelled, timed out, in another attempt; None if it was deleted."""

    def __str__(self) -> str:
        return (
            f"Attempt {self.attempt} no longer owns execution {self.execution_id}: "
            f"{self._reason()}. Stop working on it."
        )

    def _reason(self) -> str:
        if self.execution is None:
            return "it was deleted"
        if self.execution.attempts > self.attempt:
            return f"attempt {self.execution.attempts} has taken over"
        if self.execution.attempts < self.attempt:
            return "the transaction that started the attempt was rolled back"
        reason = self.execution.metadata.get(CANCELLATION_REASON)
        return f"its status is {self.execution.status}" + (f" ({reason})" if reason else "")


@dataclass(eq=False)
class AlreadyRunning(ExecutionProblem):
    """Another caller runs the tracked function under this key. Nothing was changed."""

    code = ExecutionProblemCode.ALREADY_RUNNING
    execution: Execution
    """The execution when it was read."""

    def __str__(self) -> str:
        worker = f", worker {self.execution.worker!r}" if self.execution.worker else ""
        return (
            f"Execution {self.execution.id} is already running: "
            f"attempt {self.execution.attempts}{worker}. Call again after it has finished;"
            " if its worker is dead, a sweep ends it."
        )


@dataclass(eq=False)
class ConcurrentUpdate(ExecutionProblem):
    """Another transaction interfered. Nothing was changed: try again.

    In a transaction of the caller, PostgreSQL has aborted the whole transaction (serialization
    failure or deadlock): roll it back and repeat it.
    """

    code = ExecutionProblemCode.CONCURRENT_UPDATE
    verb: str
    execution_id: str | None
    """None if the verb is for several executions."""

    def __str__(self) -> str:
        return (
            f"Cannot {_action(self.verb, self.execution_id)}: another transaction interfered."
            " Nothing was changed: try again; a transaction of your own, from its beginning."
        )


@dataclass(eq=False)
class ConnectionLost(ExecutionProblem):
    """The connection was lost several times in a row. Nothing was changed: try again."""

    code = ExecutionProblemCode.CONNECTION_LOST
    verb: str
    execution_id: str | None
    """None if the verb is for several executions."""

    def __str__(self) -> str:
        return (
            f"Cannot {_action(self.verb, self.execution_id)}: the connection to the database was"
            " lost several times in a row. Nothing was changed: try again."
        )


def _action(verb: str, execution_id: str | None) -> str:
    """Return a verb as a phrase: `start execution 0199…`, or `claim executions`."""
    phrase = _ACTIONS.get(verb, verb)
    return f"{phrase} execution {execution_id}" if execution_id else f"{phrase} executions"


def _one_of(statuses: Sequence[ExecutionStatus]) -> str:
    """Return statuses as text: `pending, running or retrying`."""
    *others, last = statuses or ("any",)
    return f"{', '.join(others)} or {last}" if others else f"{last}"
