"""What the sync and the async `tracked` share: options, signature, and the steps of a call."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cached_property, partial
from types import NoneType, SimpleNamespace
from typing import Any, get_type_hints

from pydantic import TypeAdapter

from ..core import json_values, validation
from ..core.errors import AlreadyRunning, InvalidStateTransition, InvalidValue
from ..core.models import Execution
from ..core.state_machine import CANCELLED, COMPLETED, FAILED, RUNNING, TIMED_OUT
from ..core.steps import Steps
from ..core.typed_json import read_as


@dataclass(frozen=True, slots=True, kw_only=True)
class TrackedOptions:
    """The options that the executions of a tracked function are created with."""

    type: str
    idempotency_key: Callable[..., str | None] | None
    payload: Callable[..., Any] | None
    max_attempts: int
    timeout: timedelta | None
    max_bytes: int

    def __post_init__(self) -> None:
        # Refuse at the decorator what `create` would refuse at the first call.
        validation.name("type", self.type)
        validation.integer("max_attempts", self.max_attempts, 1, validation.MAX_INTEGER)
        if self.timeout is not None:
            validation.duration("timeout", self.timeout)
        for argument in ("idempotency_key", "payload"):
            function = getattr(self, argument)
            if function is not None and not callable(function):
                raise InvalidValue(argument, "must be a function of the tracked one's arguments")

    def new_execution(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Return the arguments of `create` for a call."""
        return {
            "type": self.type,
            "payload": self.payload and self.payload(*args, **kwargs),
            "max_attempts": self.max_attempts,
            "timeout": self.timeout,
            "idempotency_key": self.idempotency_key and self.idempotency_key(*args, **kwargs),
        }

    def as_json(self, result: object) -> Any:
        """Return a result as the database will return it."""
        return (
            None if result is None else json_values.to_json("result", result, self.max_bytes).value
        )


def check_function(argument: str, function: object, *, is_async: bool, others: str) -> None:
    """Refuse generator functions, and async or plain ones; `others` says what takes those."""
    if not callable(function):
        raise InvalidValue(argument, f"must be a function, not {validation.type_name(function)}")
    forms = (function, type(function).__call__)  # an object may be callable
    if any(inspect.isgeneratorfunction(f) or inspect.isasyncgenfunction(f) for f in forms):
        raise InvalidValue(argument, "must return its result, not yield")
    if any(map(inspect.iscoroutinefunction, forms)) != is_async:
        kind = "an async" if is_async else "a plain"
        raise InvalidValue(argument, f"must be {kind} function: {others}")


class TrackedSignature:
    """The signature of a tracked function, and of what its callers see."""

    def __init__(self, function: Callable[..., Any], *, is_async: bool) -> None:
        self._function = function
        try:
            full = inspect.signature(function)
        except (TypeError, ValueError):
            raise InvalidValue("function", "must have parameters that Python can inspect") from None
        others = f"{'' if is_async else 'Async'}ExecutionManager tracks others"
        check_function("function", function, is_async=is_async, others=others)
        names = list(full.parameters)
        self._takes_attempt = "attempt" in names
        if self._takes_attempt:
            attempt, *behind = (full.parameters[name] for name in names[names.index("attempt") :])
            by_position = (attempt.POSITIONAL_OR_KEYWORD, attempt.VAR_POSITIONAL)
            if attempt.kind not in (attempt.KEYWORD_ONLY, attempt.POSITIONAL_OR_KEYWORD) or any(
                each.kind in by_position for each in behind
            ):
                raise InvalidValue("function", "must take its attempt as a keyword: *, attempt")
        self.public = full.replace(
            parameters=[each for name, each in full.parameters.items() if name != "attempt"]
        )
        """The public signature, without the injected `attempt`."""

    def check(self, *args: Any, **kwargs: Any) -> None:
        """Raise a TypeError for arguments that the function does not take."""
        self.public.bind(*args, **kwargs)
        if self._takes_attempt and "attempt" in kwargs:
            raise TypeError("attempt is injected: a caller must not pass it")

    def injected(self, attempt: object) -> dict[str, Any]:
        """Return the arguments that the function gets besides its callers'."""
        return {"attempt": attempt} if self._takes_attempt else {}

    def typed(self, execution_id: str, result: Any) -> Any:
        """Return a stored result as the return annotation says, if pydantic can validate that."""
        if self._adapter is None:
            return result
        return read_as("result", execution_id, result, self._adapter)

    @cached_property
    def _adapter(self) -> TypeAdapter[Any] | None:
        # At the first call: the annotation may name a class that is defined after the function.
        returned = SimpleNamespace(__annotations__={"return": self.public.return_annotation})
        names = getattr(inspect.unwrap(self._function), "__globals__", None)
        try:
            annotation = get_type_hints(returned, names, include_extras=True)["return"]
            if annotation in (inspect.Signature.empty, Any, NoneType):
                return None
            adapter: TypeAdapter[Any] = TypeAdapter(annotation)
            # For an Iterable, pydantic returns an iterator that validates later, and only once.
            return None if adapter.core_schema["type"] == "generator" else adapter
        except Exception:  # noqa: BLE001 - it cannot be resolved, or pydantic does not know it
            return None


def call_steps(
    manager: Any,
    new_execution: dict[str, Any],
    new_attempt: Callable[[str], Any],
    run_attempt: Callable[[Any], Any],
    sleep: Callable[[float], Any],
    *,
    typed: Callable[[str, Any], Any],
) -> Steps[Any]:
    """Create the execution of a call and make its attempts until one succeeds or none is left.

    `typed` makes of a stored result what the call returns.
    """
    execution: Execution = yield lambda: manager.create(**new_execution)
    wait = seconds_until_due(execution)
    while execution.status is not COMPLETED:
        attempt = new_attempt(execution.id)
        try:
            if execution.status in (FAILED, TIMED_OUT):
                execution = yield partial(manager.retry, execution.id)
            yield partial(sleep, wait)
            return (yield partial(run_attempt, attempt))
        except Exception as error:
            if attempt.retry_after is not None:
                wait = attempt.retry_after.total_seconds()
            elif isinstance(error, InvalidStateTransition) and not attempt.started:
                execution = yield partial(manager.get, execution.id)  # another caller was faster
                if execution.status is RUNNING:
                    # Its caller may have been killed; the database's clock decides.
                    swept = yield partial(manager._sweep_one, execution)  # noqa: SLF001
                    if swept is None:
                        raise AlreadyRunning(execution) from None
                    execution = swept
                if execution.status is CANCELLED:
                    raise
                wait = seconds_until_due(execution)
            else:
                raise
    return typed(execution.id, execution.result)


def seconds_until_due(execution: Execution) -> float:
    """Return for how many seconds a waiting execution is not due yet; 0 if it is due."""
    if execution.due_at is None:
        return 0
    # By this host's clock, but no more than the database's clock allowed for when it was written.
    left = execution.due_at - max(datetime.now(UTC), execution.updated_at)
    return max(0.0, left.total_seconds())
