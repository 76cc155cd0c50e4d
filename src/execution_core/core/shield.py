"""Finish a coroutine even if its task is cancelled."""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


async def finish_despite_cancellation(work: Coroutine[Any, Any, T]) -> T:
    """Await `work` to its end, then raise a cancellation that arrived meanwhile.

    Example: `await finish_despite_cancellation(connection.close())`
    """
    task = asyncio.ensure_future(work)
    # When a loop ends, it cancels all registered tasks: leave only the waiting one registered.
    asyncio.tasks._unregister_task(task)  # noqa: SLF001 - documented for extensions of asyncio
    cancellation: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.wait([task])
        except asyncio.CancelledError as error:
            cancellation = error
    if cancellation is None:
        return task.result()
    if not task.cancelled():
        task.exception()  # retrieve it, so that asyncio does not report it as never retrieved
    raise cancellation
