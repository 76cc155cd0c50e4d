"""What both colours of a tracked function decide without asking a store."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from . import values
from .backoff import Backoff
from .errors import AlreadyRunning, InvalidStateTransition, InvalidValue
from .execution import Execution
from .ownership import Exceptions, backoff_of, exceptions
from .transitions import CANCELLED, RUNNING


@dataclass(frozen=True, slots=True, kw_only=True)
class Tracking:
    """How the calls of a function are tracked: what its executions and attempts are made with."""

    type: str
    idempotency_key: Callable[..., str | None] | None
    payload: Callable[..., Any] | None
    max_attempts: int
    timeout: timedelta | None
    worker: str | None
    retry_on: Exceptions
    backoff: Backoff | None
    heartbeat: timedelta | None
    max_bytes: int

    def __post_init__(self) -> None:
        # What `create` and `attempt` would refuse at the first call had better be said at once.
        values.name("type", self.type)
        values.integer("max_attempts", self.max_attempts, 1, values.MAX_INTEGER)
        if self.worker is not None:
            values.name("worker", self.worker)
        for span in ("timeout", "heartbeat"):
            if getattr(self, span) is not None:
                values.duration(span, getattr(self, span))
        exceptions(self.retry_on)
        backoff_of(self.backoff)
        for argument in ("idempotency_key", "payload"):
            function = getattr(self, argument)
            if function is not None and not callable(function):
                raise InvalidValue(argument, "must be a function of the tracked one's arguments")

    def creation(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Return what `create` takes for a call."""
        return {
            "type": self.type,
            "payload": self.payload and self.payload(*args, **kwargs),
            "max_attempts": self.max_attempts,
            "timeout": self.timeout,
            "idempotency_key": self.idempotency_key and self.idempotency_key(*args, **kwargs),
        }

    @property
    def terms(self) -> dict[str, Any]:
        """What `attempt` takes for an execution that was started."""
        return {
            "retry_on": self.retry_on,
            "backoff": self.backoff,
            "heartbeat": self.heartbeat,
        }


def called(
    function: Callable[..., Any], *, asynchronous: bool
) -> tuple[inspect.Signature, Callable[[object], dict[str, Any]]]:
    """Return how callers see a tracked function, and what else it is given for an attempt.

    Raises:
        InvalidValue: it is of the other colour.
    """
    if inspect.iscoroutinefunction(function) != asynchronous:
        wanted, manager = ("an async", "") if asynchronous else ("a plain", "Async")
        raise InvalidValue(
            "function",
            f"must be {wanted} function: {manager}ExecutionManager tracks the others",
        )
    signature = inspect.signature(function)
    asked = signature.parameters.get("attempt")
    if asked is None or asked.kind not in (asked.KEYWORD_ONLY, asked.POSITIONAL_OR_KEYWORD):
        return signature, lambda attempt: {}  # noqa: ARG005 - it does not ask for its attempt
    others = [each for each in signature.parameters.values() if each is not asked]
    return signature.replace(parameters=others), lambda attempt: {"attempt": attempt}


def pause(execution: Execution) -> float:
    """Return how many seconds to wait before an attempt, by the database's own clock."""
    if execution.retry_at is None:
        return 0
    return max(0.0, (execution.retry_at - execution.updated_at).total_seconds())


def overtaken(problem: InvalidStateTransition, found: Execution) -> Execution:
    """Return the execution as it is after somebody else was quicker.

    Raises:
        AlreadyRunning: that one is at it.
        InvalidStateTransition: it was cancelled.
    """
    if found.status is RUNNING:
        raise AlreadyRunning(found) from None
    if found.status is CANCELLED:
        raise problem
    return found


def as_json(result: object, max_bytes: int) -> Any:
    """Return a result as the database will give it back."""
    return None if result is None else values.to_json("result", result, max_bytes).value
