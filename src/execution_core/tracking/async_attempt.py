"""An attempt as an `async with` block: `attempt` for asyncio."""

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Coroutine, Iterable
from contextvars import Context
from datetime import timedelta
from functools import partial
from types import TracebackType
from typing import Any, Self, TypeVar

from ..core import transitions
from ..core.models import LogLevel
from ..core.shield import finish_despite_cancellation
from ..core.steps import run_async, with_coroutines
from ..core.store import AsyncExecutionStore, AsyncTransaction
from .attempt_options import AttemptOptions
from .attempt_state import AttemptState
from .cancellation import TaskCancellation
from .chunks import AsyncChunk
from .iteration import CheckpointedIteration
from .timers import TimerHeartbeat, start_heartbeats

T = TypeVar("T")


@with_coroutines("within")
class AsyncAttempt(AttemptState[Coroutine[Any, Any, None], AsyncTransaction]):
    """One attempt at an execution: `async with manager.attempt(id) as attempt: ...`.

    It writes only while it owns the execution. When the execution was cancelled, timed out, taken
    over or deleted, every write raises `AttemptLost`, and so does the end of a block that has not
    noticed. No write sends or returns the payload.

    Its verbs are awaited: `await attempt.heartbeat()`. A cancelled block first records its
    failure. Code that blocks the event loop also blocks the heartbeats.
    """

    lost: asyncio.Event
    """Is set when a heartbeat or a write finds that the attempt has lost its execution."""
    can_cancel_task = True
    _run = staticmethod(run_async)
    _heartbeat: TimerHeartbeat | None

    def __init__(self, store: AsyncExecutionStore, options: AttemptOptions) -> None:
        super().__init__(store, options)
        self._cancellation = TaskCancellation()
        self.lost = self._cancellation.lost
        self._loop: asyncio.AbstractEventLoop | None = None
        self._log_task: asyncio.Task[None] | None = None
        self._log_scheduled = False

    async def __aenter__(self) -> Self:
        self._mark_entered()
        self._loop = asyncio.get_running_loop()
        try:
            await self._shield(run_async(self._enter_steps()))
        except BaseException as error:
            if self.started:  # ownership was lost, or the task was cancelled
                await self._shield(self._leave(error))
            raise
        self._begin_block()
        if self._options.cancel_task:
            self._cancellation.begin()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._end_block()
        await self._shield(self._leave(error, lost=self._cancellation.end(error)))

    def each(
        self,
        items: Iterable[T] | AsyncIterable[T],
        *,
        checkpoint: str = "last_index",
        every: int = 1,
    ) -> AsyncIterator[T]:
        """Iterate, resuming after the last checkpoint: `async for row in attempt.each(rows): ...`.

        An item counts as done when the loop asks for the next one, so its effects must be
        committed by then: for rows in the same database, use `chunks`. After every `every` items,
        and at the end, one statement sets the checkpoint to the index of the last item done and
        updates the progress, whose total is `len(items)`, or 0 until the end if that is unknown.

        Args:
            items: the same items in the same order for every attempt. A set has no order.
            checkpoint: the key of the checkpoint.
            every: how many items are done again after a crash, at most.

        Raises:
            InvalidValue: the checkpoint holds something other than an index, the items are a set,
                or they are fewer than the checkpoint says are done.
        """
        return self._each(items, self._iteration(items, checkpoint, every))

    async def _each(
        self, items: Iterable[T] | AsyncIterable[T], iteration: CheckpointedIteration
    ) -> AsyncIterator[T]:
        done, found = iteration.done, 0
        async for item in _to_async(items):
            found += 1
            if found <= done:
                continue
            yield item
            await run_async(self._advance_steps(iteration.item_done()))
        iteration.check_length(found)
        await run_async(self._advance_steps(iteration.exhausted()))

    def chunks(
        self,
        items: Iterable[T] | AsyncIterable[T],
        *,
        size: int = 1000,
        checkpoint: str = "last_index",
    ) -> AsyncIterator[AsyncChunk[T]]:
        """Iterate in transactions: `async for chunk in attempt.chunks(rows, size=1000): ...`.

        The end of `async with chunk.begin(Session) as session: ...` commits the caller's rows, the
        progress and the checkpoint together, so the next attempt resumes with the first chunk that
        was not committed: each item is done exactly once. A chunk is a list of items. `break` ends
        the loop, and what is committed stays. A chunk counts as a heartbeat.

        Args:
            items: the same items in the same order for every attempt. A set has no order.
            size: the maximum number of items in a chunk. On SQLite, other writers wait for a
                chunk, so it should take less than a second.
            checkpoint: the key of the checkpoint: the index of the last item done, as for `each`.

        Raises:
            InvalidValue: as `each`; or the attempt runs in a transaction of the caller's.
            RuntimeError: the loop asks for the next chunk although the last one is not committed.
        """
        return self._chunks(items, self._chunked_iteration(items, checkpoint, size), size)

    async def _chunks(
        self, items: Iterable[T] | AsyncIterable[T], iteration: CheckpointedIteration, size: int
    ) -> AsyncIterator[AsyncChunk[T]]:
        remaining, done, found = _to_async(items), iteration.done, 0
        while found < done and (skipped := await _take(remaining, min(size, done - found))):
            found += len(skipped)
        iteration.check_length(found)
        while chunk := AsyncChunk(await _take(remaining, size), self, iteration):
            yield chunk
            chunk.check_committed()
        await run_async(self._advance_steps(iteration.exhausted()))

    async def _leave(self, error: BaseException | None, *, lost: bool = False) -> None:
        try:
            await run_async(self._exit_steps(error))
            if lost:
                heartbeat = transitions.heartbeat(self.number)
                raise (await run_async(self._loss_steps(heartbeat))) from error
        finally:  # last: no sweep must take the execution while its log is being written
            if self._heartbeat is not None:
                await self._heartbeat.end(wait=not self._is_blocked())
                self._heartbeat = None

    async def _shield(self, work: Coroutine[Any, Any, None]) -> None:
        # Not in the caller's transaction: its session may be for one task alone, and the caller
        # rolls back what a cancellation leaves there.
        await (work if self._options.joined else finish_despite_cancellation(work))

    async def _start_heartbeat(self, interval: timedelta) -> None:
        on_loss = partial(self._joined.unless_ended, self._cancellation.on_loss)
        self._heartbeat = start_heartbeats(self._store, self.execution, interval, on_loss)

    async def _finish_log(self) -> None:
        await asyncio.sleep(0)  # let a scheduled write begin
        if self._log_task is not None:
            await asyncio.wait([self._log_task])

    def _capture(self, message: str, level: LogLevel, logger_name: str) -> None:
        self._buffer(self._captured(message, level, logger_name))
        if self._options.background and self._loop is not None and not self._log_scheduled:
            self._log_scheduled = True
            self._loop.call_soon_threadsafe(self._write_log)  # another thread may have logged

    def _write_log(self) -> None:
        self._log_scheduled = False
        if self._log_task is None or self._log_task.done():
            self._log_task = asyncio.create_task(run_async(self._flush_steps()), context=Context())
            # A loop that ends cancels every registered task, which would lose the entry.
            asyncio.tasks._unregister_task(self._log_task)  # noqa: SLF001


async def _to_async(items: Iterable[T] | AsyncIterable[T]) -> AsyncIterator[T]:
    if isinstance(items, AsyncIterable):
        async for item in items:
            yield item
    else:
        for item in items:
            yield item


async def _take(items: AsyncIterator[T], count: int) -> list[T]:
    """Return the next items, at most `count`."""
    taken = list[T]()
    while len(taken) < count:
        try:
            taken.append(await anext(items))
        except StopAsyncIteration:
            break
    return taken
