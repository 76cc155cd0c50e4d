"""What both colours of a tracked function decide without asking a store."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from ..core import json_values, validation
from ..core.errors import AlreadyRunning, InvalidStateTransition, InvalidValue
from ..core.models import Execution
from ..core.state_machine import CANCELLED, RUNNING


@dataclass(frozen=True, slots=True, kw_only=True)
class TrackedOptions:
    """What the executions of a tracked function are made with."""

    type: str
    idempotency_key: Callable[..., str | None] | None
    payload: Callable[..., Any] | None
    max_attempts: int
    timeout: timedelta | None
    max_bytes: int

    def __post_init__(self) -> None:
        # What `create` would refuse at the first call had better be said at once.
        validation.name("type", self.type)
        validation.integer("max_attempts", self.max_attempts, 1, validation.MAX_INTEGER)
        if self.timeout is not None:
            validation.duration("timeout", self.timeout)
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


class TrackedSignature:
    """How a tracked function is called.

    Raises:
        InvalidValue: it is no function, of the other mode, or takes its attempt by position.
    """

    def __init__(self, function: Callable[..., Any], *, asynchronous: bool) -> None:
        try:
            full = inspect.signature(function)
        except (TypeError, ValueError):
            raise InvalidValue("function", "must be one whose parameters Python can tell") from None
        forms = (function, type(function).__call__)  # an object may be called like a function
        if any(inspect.isgeneratorfunction(f) or inspect.isasyncgenfunction(f) for f in forms):
            raise InvalidValue("function", "must return its result, and this one yields")
        if any(map(inspect.iscoroutinefunction, forms)) != asynchronous:
            wanted, manager = ("an async", "") if asynchronous else ("a plain", "Async")
            raise InvalidValue(
                "function", f"must be {wanted} function: {manager}ExecutionManager tracks others"
            )
        names = list(full.parameters)
        self._takes_attempt = "attempt" in names
        if self._takes_attempt:
            asked, *behind = (full.parameters[name] for name in names[names.index("attempt") :])
            by_position = (asked.POSITIONAL_OR_KEYWORD, asked.VAR_POSITIONAL)
            if asked.kind not in (asked.KEYWORD_ONLY, asked.POSITIONAL_OR_KEYWORD) or any(
                each.kind in by_position for each in behind
            ):
                raise InvalidValue("function", "must take its attempt as a keyword: *, attempt")
        self.shown = full.replace(
            parameters=[each for name, each in full.parameters.items() if name != "attempt"]
        )
        """What its callers see: the attempt is not theirs to give."""

    def check(self, *args: Any, **kwargs: Any) -> None:
        """Refuse, with a TypeError, arguments that the function does not take."""
        self.shown.bind(*args, **kwargs)
        if self._takes_attempt and "attempt" in kwargs:
            raise TypeError("attempt is not the caller's to give")

    def keywords(self, attempt: object) -> dict[str, Any]:
        """Return what it is given besides its callers' arguments."""
        return {"attempt": attempt} if self._takes_attempt else {}


def seconds_until_due(execution: Execution) -> float:
    """Return how many seconds to wait before an attempt."""
    if execution.retry_at is None:
        return 0
    # By this host's clock what is left; by the database's own what it cannot be more than.
    left = execution.retry_at - max(datetime.now(UTC), execution.updated_at)
    return max(0.0, left.total_seconds())


def after_lost_race(problem: InvalidStateTransition, found: Execution) -> Execution:
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
    return None if result is None else json_values.to_json("result", result, max_bytes).value
