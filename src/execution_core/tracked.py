"""Functions whose calls are executions."""

import time
from collections.abc import Callable
from functools import wraps
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from .errors import InvalidStateTransition
from .tracking import Tracking, as_json, called, overtaken, pause
from .transitions import COMPLETED, FAILED, TIMED_OUT

if TYPE_CHECKING:
    from .manager import ExecutionManager

P = ParamSpec("P")
R = TypeVar("R")


def tracked(
    manager: "ExecutionManager", tracking: Tracking, function: Callable[P, R]
) -> Callable[P, R]:
    """Return a function each call of which is an execution."""
    signature, extra = called(function, asynchronous=False)

    @wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        execution = manager.create(**tracking.creation(*args, **kwargs))
        wait = pause(execution)
        while execution.status is not COMPLETED:
            try:
                if execution.status in (FAILED, TIMED_OUT):
                    execution = manager.retry(execution.id)
                time.sleep(wait)
                started = manager.start(execution.id, worker=tracking.worker)
            except InvalidStateTransition as problem:
                execution = overtaken(problem, manager.get(execution.id))
                wait = pause(execution)
                continue
            attempt = manager.attempt(started, **tracking.terms)
            try:
                with attempt:
                    result = function(*args, **kwargs, **extra(attempt))
                    attempt.result = as_json(result, tracking.max_bytes)
            except tracking.retry_on:
                if attempt.retry_after is None:
                    raise
                wait = attempt.retry_after.total_seconds()
            else:
                return attempt.result
        return execution.result

    call.__signature__ = signature  # type: ignore[attr-defined]
    return call
