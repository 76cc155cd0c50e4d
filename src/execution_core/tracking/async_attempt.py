"""An attempt as an `async with` block: the twin of `attempt`."""

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Coroutine, Iterable
from contextvars import Context
from copy import copy
from datetime import timedelta
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar

from ..core import transitions
from ..core.log_lines import NewLogEntry
from ..core.models import ExecutionStatus, LogLevel, replace_unstorable
from ..core.shield import finish_despite_cancellation
from ..core.store import AsyncExecutionStore, store_within
from ..core.transitions import Transition
from .attempt_options import AttemptOptions
from .attempt_state import AttemptState
from .iteration import CheckpointedIteration
from .log_capture import ACTIVE

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession, async_scoped_session

T = TypeVar("T")


class AsyncAttempt(AttemptState):
    """`Attempt` for asyncio: `async with manager.attempt(id) as attempt: ...`.

    A block that is cancelled first records that it was. Its heart beats in a task, which a loop
    that is blocked keeps from beating.
    """

    def __init__(self, store: AsyncExecutionStore, terms: AttemptOptions) -> None:
        super().__init__(terms)
        self._store = store
        self._beating: HeartbeatTask | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._logging: asyncio.Task[None] | None = None
        self._woken = False

    async def __aenter__(self) -> Self:
        self._enter()
        try:
            await self._whole(self._start())
        except BaseException as error:
            if self.started:  # and then a cancellation went on, or it was lost
                await self._whole(self._leave(error))
            raise
        self._begin_block()
        self._loop = asyncio.get_running_loop()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._end_block()
        await self._whole(self._leave(error))

    async def update_progress(
        self, current: int, total: int, *, message: str | None = None
    ) -> None:
        """Replace the progress: `await attempt.update_progress(50, 100, message="half way")`."""
        await self._write(self._progress(current, total, message))

    async def checkpoint(self, key: str, value: Any) -> None:
        """Set one checkpoint, any JSON value: `await attempt.checkpoint("last_index", 49)`."""
        await self._write(self._checkpoint(key, value))

    async def advance(
        self, current: int, total: int, *, key: str, value: Any, message: str | None = None
    ) -> None:
        """Replace the progress and set one checkpoint: `await attempt.advance(5, 9, key=…)`."""
        await self._write(self._advance(current, total, key, value, message))

    async def heartbeat(self) -> None:
        """Give a sign of life: `await attempt.heartbeat()`."""
        await self._write(self._heartbeat())

    async def log(
        self, message: str, *, level: LogLevel | str = LogLevel.INFO, data: Any = None
    ) -> None:
        """Add a line to the log: `await attempt.log("skipped a row", level="warning")`."""
        new = self._line(message, level, data)
        if await self._store.log(new) is None:
            raise self._lost(new.transition, await self._store.find_by_id(self._terms.id))

    def each(
        self,
        items: Iterable[T] | AsyncIterable[T],
        *,
        checkpoint: str = "last_index",
        every: int = 1,
    ) -> AsyncIterator[T]:
        """Go on behind the checkpoint: `async for row in attempt.each(rows, every=100): ...`."""
        return self._each(_to_async(items), self._new_iteration(items, checkpoint, every))

    def within(
        self, connection_or_session: "AsyncConnection | AsyncSession | async_scoped_session[Any]"
    ) -> Self:
        """Write in the caller's transaction: `await attempt.within(session).checkpoint("n", 7)`."""
        inside = copy(self)
        inside._store = store_within(self._store, connection_or_session)  # noqa: SLF001 - a copy of its own
        inside._checkpoints = dict(self._checkpoints)  # noqa: SLF001
        inside._entered = True  # noqa: SLF001 - it has no block of its own
        return inside

    async def _each(
        self, items: AsyncIterable[T], iteration: CheckpointedIteration
    ) -> AsyncIterator[T]:
        done_before = iteration.done
        async for item in items:
            if done_before:
                done_before -= 1
                continue
            yield item
            if iteration.item_done():
                await self.advance(**iteration.progress_args())
        if iteration.exhausted():
            await self.advance(**iteration.progress_args())

    async def _whole(self, work: Coroutine[Any, Any, None]) -> None:
        # In the caller's transaction by the caller's own task: its session may be for that task
        # alone, and what a cancellation leaves there is the caller's to roll back.
        await (work if self._terms.joined else finish_despite_cancellation(work))

    async def _start(self) -> None:
        id, start = self._terms.id, self._terms.start
        execution = self._terms.started or await self._store.update(id, start)
        if execution is None:
            raise transitions.refusal(start, id, await self._store.find_by_id(id))
        self._own(execution)
        if self._terms.started:
            await self.heartbeat()  # it may have been taken since it was claimed
        if self._terms.heartbeat is not None:
            self._beating = HeartbeatTask(self, self._terms.heartbeat)

    async def _leave(self, error: BaseException | None) -> None:
        if self._beating is not None:
            await self._beating.stop()
        await self._log_all()
        if error is None:
            await self._end()
        else:
            await self._record(error)

    async def _write(self, transition: Transition) -> None:
        if not self._terms.alone:
            await self._log_kept()
        if await self._write_status(transition) is None:
            raise self._lost(transition, await self._store.find_by_id(self._terms.id))
        self._wrote(transition)

    async def _write_status(self, transition: Transition) -> ExecutionStatus | None:
        status: ExecutionStatus | None = await self._store.update(
            self._terms.id, transition, returning="status"
        )
        return status

    async def _end(self) -> None:
        try:
            transition = self._complete()
        except Exception as error:  # a result that cannot be stored
            await self._record(error)
            raise
        await self._write(transition)

    async def _record(self, error: BaseException) -> None:
        """Record why the block was left. Whatever comes of that, the error itself goes on."""
        try:
            if self._is_told(error):
                return
            transition = self._fail(error)
            self._failed(transition, await self._write_status(transition))
        except Exception:  # noqa: BLE001 - the block's own error must not be hidden
            self._not_recorded()

    def _record_logged(self, message: str, level: LogLevel, logger_name: str) -> None:
        self._keep(self._line(message, level, {"logger": replace_unstorable(logger_name)}))
        if self._terms.alone and self._loop is not None and not self._woken:
            self._woken = True
            self._loop.call_soon_threadsafe(self._log_soon)  # this may be another thread

    def _log_soon(self) -> None:
        self._woken = False
        if self._logging is None or self._logging.done():
            self._logging = asyncio.create_task(self._log_kept(), context=Context())
            # When a loop ends it cancels every task it knows, and then the line would be lost.
            asyncio.tasks._unregister_task(self._logging)  # noqa: SLF001

    async def _log_all(self) -> None:
        await asyncio.sleep(0)  # whatever was to begin soon has begun
        if self._logging is not None:
            await asyncio.wait([self._logging])
        self._keep_what_was_dropped()
        await self._log_kept()

    async def _log_kept(self) -> None:
        """Write what `logging` brought."""
        if not self._logged:
            return
        current = ACTIVE.get()
        ACTIVE.set(None)  # writing may be logged as well
        try:
            while self._logged and await self._log_one(self._logged.popleft()):
                pass
        finally:
            ACTIVE.set(current)

    async def _log_one(self, line: NewLogEntry) -> bool:
        """Write a line of `logging`; False when that failed."""
        try:
            await self._store.log(line)
        except Exception:  # noqa: BLE001 - what is said of the work must not end it
            self._not_logged()
            return False
        return True

    async def _beat(self) -> bool:
        """Beat by itself; False when there is no use in going on."""
        try:
            return await self._write_status(self._heartbeat()) is not None
        except Exception:  # noqa: BLE001 - the next one may be heard
            self._not_beaten()
            return True


class HeartbeatTask:
    """A task that beats for an attempt until it is stopped, or the attempt is lost."""

    def __init__(self, attempt: AsyncAttempt, interval: timedelta) -> None:
        self._attempt = attempt
        self._seconds = interval.total_seconds()
        self._stopped = asyncio.Event()
        self._task = asyncio.create_task(self._run(), name=f"heartbeat-{attempt.execution.id}")

    async def stop(self) -> None:
        """Stop after the heartbeat that is under way."""
        self._stopped.set()  # not cancelled: a statement on its way would cost its connection
        await asyncio.wait([self._task])

    async def _run(self) -> None:
        while not await self._stopped_within() and await self._attempt._beat():  # noqa: SLF001
            pass

    async def _stopped_within(self) -> bool:
        try:
            async with asyncio.timeout(self._seconds):
                return await self._stopped.wait()
        except TimeoutError:
            return False


async def _to_async(items: Iterable[T] | AsyncIterable[T]) -> AsyncIterator[T]:
    if isinstance(items, AsyncIterable):
        async for item in items:
            yield item
    else:
        for item in items:
            yield item
