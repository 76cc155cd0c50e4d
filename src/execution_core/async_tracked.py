"""Async functions whose calls are executions: the twin of `tracked`."""

import asyncio
from collections.abc import Awaitable, Callable
from functools import wraps
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from .errors import InvalidStateTransition
from .tracking import Tracking, as_json, called, overtaken, pause
from .transitions import COMPLETED, FAILED, TIMED_OUT

if TYPE_CHECKING:
    from .async_manager import AsyncExecutionManager

P = ParamSpec("P")
R = TypeVar("R")


def tracked(
    manager: "AsyncExecutionManager", tracking: Tracking, function: Callable[P, Awaitable[R]]
) -> Callable[P, Awaitable[R]]:
    """Return a function each call of which is an execution."""
    signature, extra = called(function, asynchronous=True)

    @wraps(function)
    async def call(*args: Any, **kwargs: Any) -> Any:
        execution = await manager.create(**tracking.creation(*args, **kwargs))
        wait = pause(execution)
        while execution.status is not COMPLETED:
            try:
                if execution.status in (FAILED, TIMED_OUT):
                    execution = await manager.retry(execution.id)
                await asyncio.sleep(wait)
                started = await manager.start(execution.id, worker=tracking.worker)
            except InvalidStateTransition as problem:
                execution = overtaken(problem, await manager.get(execution.id))
                wait = pause(execution)
                continue
            attempt = manager.attempt(started, **tracking.terms)
            try:
                async with attempt:
                    result = await function(*args, **kwargs, **extra(attempt))
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
