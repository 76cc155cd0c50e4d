"""What must not be left half done when its task is cancelled."""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


async def finish_despite_cancellation(work: Coroutine[Any, Any, T]) -> T:
    """Let `work` end before any cancellation goes on: `await uninterrupted(write())`."""
    task = asyncio.ensure_future(work)
    # When a loop ends it cancels every task it knows: let it know only the one that waits here.
    asyncio.tasks._unregister_task(task)  # noqa: SLF001 - documented, for those who extend asyncio
    cancellation: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.wait([task])
        except asyncio.CancelledError as error:
            cancellation = error
    if cancellation is None:
        return task.result()
    if not task.cancelled():
        task.exception()  # seen, so that asyncio does not report it
    raise cancellation
