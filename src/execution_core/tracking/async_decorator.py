"""Tracked async functions: `sync_decorator` for asyncio."""

import asyncio
from collections.abc import Callable, Coroutine
from functools import wraps
from typing import Any, ParamSpec, TypeVar

from ..core.steps import run_async
from .async_attempt import AsyncAttempt
from .decorator import TrackedOptions, TrackedSignature, call_steps

P = ParamSpec("P")
R = TypeVar("R")


def track(
    manager: Any,
    options: TrackedOptions,
    new_attempt: Callable[[str], AsyncAttempt],
    function: Callable[P, Coroutine[Any, Any, R]],
) -> Callable[P, Coroutine[Any, Any, R]]:
    """Return an async function that creates an execution for each call and runs its attempts."""
    signature = TrackedSignature(function, is_async=True)

    @wraps(function)
    async def tracked(*args: Any, **kwargs: Any) -> Any:
        async def run_attempt(attempt: AsyncAttempt) -> Any:
            async with attempt:
                result: Any = await function(*args, **kwargs, **signature.injected(attempt))
                attempt.result = options.as_json(result)
            return attempt.result

        signature.check(*args, **kwargs)
        new_execution = options.new_execution(*args, **kwargs)
        steps = call_steps(manager, new_execution, new_attempt, run_attempt, asyncio.sleep)
        return await run_async(steps)

    tracked.__signature__ = signature.public  # type: ignore[attr-defined]
    return tracked
