"""Async functions whose calls are executions: the twin of `tracked`."""

import asyncio
from collections.abc import Callable, Coroutine
from functools import wraps
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from ..core.errors import InvalidStateTransition
from ..core.state_machine import COMPLETED, FAILED, TIMED_OUT
from .async_attempt import AsyncAttempt
from .decorator import TrackedOptions, TrackedSignature, after_lost_race, as_json, seconds_until_due

if TYPE_CHECKING:
    from .async_manager import AsyncExecutionManager

P = ParamSpec("P")
R = TypeVar("R")


def tracked(
    manager: "AsyncExecutionManager",
    tracking: TrackedOptions,
    attempt_at: Callable[[str], AsyncAttempt],
    function: Callable[P, Coroutine[Any, Any, R]],
) -> Callable[P, Coroutine[Any, Any, R]]:
    """Return a function each call of which is an execution."""
    signature = TrackedSignature(function, asynchronous=True)

    @wraps(function)
    async def call(*args: Any, **kwargs: Any) -> Any:
        signature.check(*args, **kwargs)
        execution = await manager.create(**tracking.creation(*args, **kwargs))
        wait = seconds_until_due(execution)
        while execution.status is not COMPLETED:
            attempt = attempt_at(execution.id)
            try:
                if execution.status in (FAILED, TIMED_OUT):
                    execution = await manager.retry(execution.id)
                await asyncio.sleep(wait)
                async with attempt:
                    result = await function(*args, **kwargs, **signature.keywords(attempt))
                    attempt.result = as_json(result, tracking.max_bytes)
            except Exception as error:
                if attempt.retry_after is not None:
                    wait = attempt.retry_after.total_seconds()
                elif isinstance(error, InvalidStateTransition) and not attempt.started:
                    execution = after_lost_race(error, await manager.get(execution.id))
                    wait = seconds_until_due(execution)
                else:
                    raise
            else:
                return attempt.result
        return execution.result

    call.__signature__ = signature.shown  # type: ignore[attr-defined]
    return call
